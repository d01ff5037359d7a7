"""The functions that clients call, as plain masked softmax over all keys: the reference of this suite.

Nothing here is shared with the packages: windows are enumerated token by token, from the definition. Quadratic,
differentiated by torch alone. :func:`attend` is heads-last and scales; :func:`logits` and :func:`weighted` are the two
split ops, heads-first and unscaled, as in the older generations.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

Size = int | Sequence[int]


def _per_axis(size: Size, rank: int) -> tuple[int, ...]:
    return (size,) * rank if isinstance(size, int) else tuple(size)


def _window(length: int, size: int, dilation: int, query: int, stride: int = 1, causal: bool = False) -> list[int]:
    """The keys of one query on one axis: ``size`` members of its dilation group, as centred as the border allows.

    Every ``stride`` consecutive queries of the group share the window of the one in their middle. Causal: the ``size``
    members up to the last of those queries, cut off after the query itself.
    """
    group = list(range(query % dilation, length, dilation))
    position = group.index(query)
    together = range(len(group))[position - position % stride :][:stride]
    if causal:
        return group[max(together[-1] - size + 1, 0) : position + 1]
    middle = min(together[0] + stride // 2, len(group) - 1)
    start = min(max(middle - size // 2, 0), len(group) - size)
    return group[start : start + size]


@cache
def _seen(*axes: tuple[int, int, int, int, bool]) -> Tensor:
    """Which keys each query sees ``[N, N]``. axes: length, size, dilation, stride, causal of each."""
    seen = torch.ones(1, 1)
    for length, size, dilation, *rest in axes:
        own = torch.zeros(length, length)
        for query in range(length):
            own[query, _window(length, size, dilation, query, *rest)] = 1
        seen = torch.kron(seen, own)
    return seen.bool()


@cache
def _neighbors(shape: tuple[int, ...], sizes: tuple[int, ...], dilations: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The keys of each query's window ``[N, W]``, row-major, and their entries in the flat rpb ``[N, W]``."""
    keys, entries = [], []
    for query in itertools.product(*map(range, shape)):
        axes = [_window(*of, at) for *of, at in zip(shape, sizes, dilations, query, strict=True)]
        keys.append([])
        entries.append([])
        for key in itertools.product(*axes):
            token = entry = 0
            for k, q, length, size, dilation in zip(key, query, shape, sizes, dilations, strict=True):
                token = token * length + k
                entry = entry * (2 * size - 1) + (k - q) // dilation + size - 1
            keys[-1].append(token)
            entries[-1].append(entry)
    return torch.tensor(keys), torch.tensor(entries)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Size,
    dilation: Size = 1,
    scale: float | None = None,
    backend: str | None = None,
    *,
    stride: Size = 1,
    is_causal: bool | Sequence[bool] = False,
) -> Tensor:
    """Fused attention, ``[B, *shape, H, D]``; ``backend`` is accepted for upstream's signature."""
    shape = tuple(query.shape[1:-2])
    rank, scale = len(shape), query.shape[-1] ** -0.5 if scale is None else scale
    given = (_per_axis(each, rank) for each in (kernel_size, dilation, stride, is_causal))
    seen = _seen(*zip(shape, *given, strict=True))
    q, k, v = (x.flatten(1, -3).transpose(1, 2) for x in (query, key, value))
    scores = (scale * (q @ k.mT)).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).unflatten(1, shape)


def logits(query: Tensor, key: Tensor, rpb: Tensor | None, kernel_size: Size, dilation: Size = 1) -> Tensor:
    """``[B, H, *shape, W]``: logits of all pairs, of which those in the window are kept; rpb ``[H, 2w-1, ...]``."""
    shape = tuple(query.shape[2:-1])
    keys, entries = _neighbors(shape, _per_axis(kernel_size, len(shape)), _per_axis(dilation, len(shape)))
    every = query.flatten(2, -2) @ key.flatten(2, -2).mT
    own = every.gather(-1, keys.expand(*every.shape[:2], -1, -1))
    if rpb is not None:
        own = own + rpb.flatten(1)[:, entries]
    return own.unflatten(2, shape)


def weighted(attn: Tensor, value: Tensor, kernel_size: Size, dilation: Size = 1) -> Tensor:
    """``[B, H, *shape, D]``: weights spread over all keys, times values."""
    shape = tuple(value.shape[2:-1])
    keys, _ = _neighbors(shape, _per_axis(kernel_size, len(shape)), _per_axis(dilation, len(shape)))
    own = attn.flatten(2, -2)
    every = own.new_zeros(*own.shape[:2], len(keys), len(keys))
    every = every.scatter(-1, keys.expand(*own.shape[:2], -1, -1), own)
    return (every @ value.flatten(2, -2)).unflatten(2, shape)


def unbiased_logits(query: Tensor, key: Tensor, kernel_size: Size, dilation: Size = 1) -> Tensor:
    """:func:`logits` without rpb."""
    return logits(query, key, None, kernel_size, dilation)
