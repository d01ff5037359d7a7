"""Items of different sizes in one padded batch.

Each item attends within its own size, as if it were alone. Padding is never read; it gives out 0, lse
-inf and gradient 0. Items of equal size are computed together. Lists of tensors ``[*shape, H, D]`` in place
of padded batches give lists back.
"""

from typing import Any

import torch
from torch import Tensor

from ._arrays import optional_spec, spec
from ._metal import checks, checks_varlen, faces
from ._walk import compute_dtype
from .functional import Bools, Ints, Result, _autocast, _fused, attention


def padded_items(
    face: str, name: str, tensors: tuple[Any, ...], sizes: Any, window: tuple[Any, ...], scale: Any, return_lse: bool,
    backend: Any, rpb: Tensor | None = None,
) -> Any:  # fmt: skip
    if all(isinstance(tensor, (list, tuple)) for tensor in tensors):
        return _listed_items(face, name, tensors, sizes, window, scale, return_lse, backend, rpb)
    query, key, value, rpb = _autocast(*tensors, rpb)
    tensors = (query, key, value)
    q, k, v = (spec(face, which, t) for which, t in zip(("query", "key", "value"), tensors, strict=True))
    rank = checks.tensor_rank(face, "query", q, faces.rank_of(face))
    kernel_size, stride, dilation, is_causal = given = checks.window_arguments(face, rank, *window)
    bias = optional_spec(face, "rpb", rpb)
    faces.fused(face, q, k, v, kernel_size, stride, dilation, is_causal, scale, rpb=bias)
    with_lse = checks.flag(face, "return_lse", return_lse)
    items = checks.varlen_sizes(face, name, faces.sizes_on_host(sizes), q, kernel_size, dilation)
    out = query.new_zeros(*query.shape[:-1], value.shape[-1])
    lse = query.new_full(query.shape[:-1], -torch.inf, dtype=compute_dtype(query))
    # Without any item the padded shape itself, for no item at all: gradients are zero, not missing.
    for size in sorted({size for size in items if 0 not in size}) or [q.shape[1:-2]]:
        which = torch.tensor([item for item, own in enumerate(items) if own == size], device=query.device).long()
        region = (which[:, None], *_region(size, query.device))
        parts = tuple(_cut(tensor.index_select(0, which), size) for tensor in tensors)
        own_out, own_lse = _fused(face, (*parts, None, None, rpb), given, scale, True, backend, {})
        out = out.index_put(region, own_out.flatten(1, rank))
        lse = lse.index_put(region, own_lse.flatten(1, rank))
    return (out, lse) if with_lse else out


def _listed_items(
    face: str, name: str, tensors: tuple[Any, ...], sizes: Any, window: tuple[Any, ...], scale: Any, return_lse: bool,
    backend: Any, rpb: Tensor | None,
) -> Any:  # fmt: skip
    """Items as tensors of their own, ``[*shape, H, D]`` each: lists of results, each as if alone."""
    with_lse = checks.flag(face, "return_lse", return_lse)
    specs = [
        [spec(face, f"{which}[{i}]", item) for i, item in enumerate(items)]
        for which, items in zip(("query", "key", "value"), tensors, strict=True)
    ]
    checks.listed_items(face, name, specs, faces.sizes_on_host(sizes))
    outs, lses = [], []
    for query, key, value in zip(*tensors, strict=True):
        parts = (query[None], key[None], value[None])
        if 0 in query.shape[:-2]:
            out = query.new_zeros(1, *query.shape[:-1], value.shape[-1])
            lse = query.new_zeros(1, *query.shape[:-1], dtype=compute_dtype(query))
        else:
            out, lse = _fused(face, (*parts, None, None, rpb), window, scale, True, backend, {})
        outs.append(out[0])
        lses.append(lse[0])
    return (outs, lses) if with_lse else outs


def _cut(tensor: Tensor, size: tuple[int, ...]) -> Tensor:
    """The first ``size`` tokens of each axis."""
    for axis, length in enumerate(size):
        tensor = tensor.narrow(1 + axis, 0, length)
    return tensor


def _region(size: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """Index arrays of all tokens of an item, one per axis, flat."""
    grid = torch.meshgrid(*(torch.arange(length, device=device) for length in size), indexing="ij")
    return [axis.reshape(1, -1) for axis in grid]


def attend_packed(
    tensors: tuple[Any, ...], items: tuple[checks_varlen.Span, ...], is_causal: bool, scale: Any, backend: str
) -> tuple[Tensor, Tensor]:
    """Attention of sequences that lie behind one another in one batch item; those of equal size together."""
    query, key, value = tensors
    out = query.new_zeros(*query.shape[:-1], value.shape[-1])
    lse = query.new_full(query.shape[:-1], -torch.inf, dtype=compute_dtype(query))
    sizes = sorted({(item.queries, item.keys) for item in items if item.queries and item.keys})
    # Without any, one token of no item at all: gradients are zero, not missing.
    for queries, keys in sizes or [(1, 1)]:
        own = [item for item in items if (item.queries, item.keys) == (queries, keys)]
        rows, columns = (
            torch.tensor(starts, device=query.device).long()[:, None] + torch.arange(count, device=query.device)
            for starts, count in (([item.query for item in own], queries), ([item.key for item in own], keys))
        )
        parts = (query[0, rows], key[0, columns], value[0, columns])
        own_out, own_lse = attention(*parts, is_causal, scale, return_lse=True, backend=backend)
        first = torch.zeros_like(rows)
        out, lse = out.index_put((first, rows), own_out), lse.index_put((first, rows), own_lse)
    return out, lse


def generate_varlen_parameters(
    query: Tensor, key: Tensor, value: Tensor, seqlens_Q: Any = None, seqlens_KV: Any = None
) -> tuple[Tensor | None, Tensor | None, int, int]:
    """What packed :func:`attention` takes, made once for many calls, in upstream's order.

    seqlens_Q, seqlens_KV: lengths of the packed sequences, ints ``[n]``.
    Returns cumulative_seqlen_Q and cumulative_seqlen_KV, int32 ``[n + 1]`` on the query's device, max_seqlen_Q and
    max_seqlen_KV; (None, None, 0, 0) without lengths. ValueError or TypeError for what :func:`attention` refuses.
    """
    batches = tuple(int(tensor.shape[0]) for tensor in (query, key, value))
    given = (faces.sizes_on_host(seqlens_Q), faces.sizes_on_host(seqlens_KV))
    lengths = checks_varlen.packed_lengths("generate_varlen_parameters", batches, given)
    if lengths is None:
        return None, None, 0, 0
    queries, keys = (
        torch.tensor(checks_varlen.cumulative(each), dtype=torch.int32, device=query.device) for each in lengths
    )
    return queries, keys, max(lengths[0]), max(lengths[1])


def na1d_varlen(
    query: Tensor, key: Tensor, value: Tensor, seq_lens: Any, kernel_size: Ints, dilation: Ints = 1,
    scale: float | None = None, *, stride: Ints = 1, is_causal: Bools = False, return_lse: bool = False,
    backend: str | None = None,
) -> Result:  # fmt: skip
    """:func:`na1d` of padded sequences: query ``[B, L_max, H, D]``, seq_lens ``[B]`` ints (0 is legal).

    ValueError if an item is shorter than ``kernel_size * dilation`` (it names the item).
    """
    window = (kernel_size, stride, dilation, is_causal)
    return padded_items("na1d_varlen", "seq_lens", (query, key, value), seq_lens, window, scale, return_lse, backend)


def na2d_varlen(
    query: Tensor, key: Tensor, value: Tensor, spatial_sizes: Any, kernel_size: Ints, dilation: Ints = 1,
    scale: float | None = None, *, stride: Ints = 1, is_causal: Bools = False, return_lse: bool = False,
    backend: str | None = None,
) -> Result:  # fmt: skip
    """:func:`na2d` of padded images: query ``[B, X_max, Y_max, H, D]``, spatial_sizes ``[B, 2]`` ints."""
    window = (kernel_size, stride, dilation, is_causal)
    tensors = (query, key, value)
    return padded_items("na2d_varlen", "spatial_sizes", tensors, spatial_sizes, window, scale, return_lse, backend)


def na3d_varlen(
    query: Tensor, key: Tensor, value: Tensor, spatial_sizes: Any, kernel_size: Ints, dilation: Ints = 1,
    scale: float | None = None, *, stride: Ints = 1, is_causal: Bools = False, return_lse: bool = False,
    backend: str | None = None,
) -> Result:  # fmt: skip
    """:func:`na3d` of padded volumes: query ``[B, X_max, Y_max, Z_max, H, D]``, spatial_sizes ``[B, 3]`` ints."""
    window = (kernel_size, stride, dilation, is_causal)
    tensors = (query, key, value)
    return padded_items("na3d_varlen", "spatial_sizes", tensors, spatial_sizes, window, scale, return_lse, backend)
