"""Random problems, and which query sees which key, found by a loop over all pairs straight from the definition.

No code is shared with the packages: a query's keys are listed one by one. Truth and bounds come from :mod:`rounding`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from pieces import Cut, random_cut
from rounding import Dense, Tensors, Wanted, accumulator

Array = Any
ITEMS = 3  # items of a varlen batch


def keys_of_axis(query: int, length: int, w: int, s: int, d: int, causal: bool, wrap: bool = False) -> list[int]:
    """The keys that a query sees on one axis, from the start of the window."""
    group, p = query % d, query // d
    members = range(group, length, d)
    n = len(members)
    if wrap:
        first = p // s * s + s // 2 - w // 2
        return [members[t % n] for t in range(first, first + w)]
    if causal:
        leader = min(p // s * s + s - 1, n - 1)
        seen = range(max(leader - w + 1, 0), p + 1)
    else:
        leader = min(p // s * s + s // 2, n - 1)
        first = min(max(leader - w // 2, 0), n - w)
        seen = range(first, first + w)
    return [members[t] for t in seen]


@dataclass(frozen=True)
class Window:
    """The window's arguments, one number per axis."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    is_causal: tuple[bool, ...]
    wrap: tuple[bool, ...] = ()

    @property
    def arguments(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value}

    def tables(self, shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
        """mask and bias offsets ``[queries, keys]``; the key of each window slot ``[queries, window]``, or -1."""
        wrap = self.wrap or (False,) * len(shape)
        arguments = (self.kernel_size, self.stride, self.dilation, self.is_causal, wrap)
        count, axes = int(np.prod(shape)), list(zip(shape, *arguments, strict=True))
        mask, offsets = np.zeros((count, count), dtype=bool), np.zeros((count, count), dtype=int)
        slots = np.full((count, int(np.prod(self.kernel_size))), -1)
        widths = [2 * w - 1 for w in self.kernel_size]
        for row, token in enumerate(np.ndindex(*shape)):
            seen = [keys_of_axis(query, *axis) for query, axis in zip(token, axes, strict=True)]
            window_slots = itertools.product(*(range(len(keys)) for keys in seen))
            for slot, key in zip(window_slots, itertools.product(*seen), strict=True):
                column = int(np.ravel_multi_index(key, shape))
                mask[row, column] = True
                offsets[row, column] = np.ravel_multi_index(self._away(token, key, slot, wrap), widths)
                slots[row, np.ravel_multi_index(slot, self.kernel_size)] = column
        return mask, offsets, slots

    def _away(
        self, token: tuple[int, ...], key: tuple[int, ...], slot: tuple[int, ...], wrap: tuple[bool, ...]
    ) -> list[int]:
        """The entry of rpb for a pair, by axis; past the end of an axis that wraps around, distances grow further."""
        away = []
        axes = zip(token, key, slot, self.kernel_size, self.stride, self.dilation, wrap, strict=True)
        for q, k, t, w, s, d, wraps in axes:
            distance = s // 2 - w // 2 + t - q // d % s if wraps else (k - q) // d
            away.append(distance + w - 1)
        return away


def rounded(values: Array, dtype: str) -> Array:
    """The nearest values of ``dtype``, as float64."""
    if dtype != "bfloat16":
        return np.asarray(values).astype(dtype).astype(np.float64)
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


@dataclass(frozen=True)
class Random:
    """A random problem. arrays: inputs and cotangents, exact in the dtype, and perhaps a key mask of bools; sizes:
    those of the items of a varlen batch; cut: the piece of a larger problem that this is, if any.
    """

    op: str
    dtype: str
    window: Window
    arrays: Tensors = field(repr=False)
    sizes: tuple[tuple[int, ...], ...] = ()
    cut: Cut | None = None

    @property
    def rank(self) -> int:
        return len(self.window.kernel_size)

    def dense(self, arrays: Tensors, rounded_weights: bool) -> tuple[Dense, Array]:
        like = arrays["query" if "query" in arrays else "d_out"]
        if self.cut is None:
            mask, offsets, slots = self.window.tables(like.shape[1:-2])
        else:
            mask, offsets, slots = self.cut.of_tables(*self.window.tables(self.cut.full_shape))
        scale = like.shape[-1] ** -0.5
        # For each axis that wraps around: one for the keys repeated at each end, and one for the sum of all.
        roundings = 3 * sum(self.window.wrap)
        return Dense(
            arrays, mask, offsets, scale, self.dtype, rounded_weights=rounded_weights, roundings=roundings
        ), slots

    def wanted(self, rounded_weights: bool = False) -> Wanted:
        """Truth and error bound of every result and gradient."""
        if self.op == "varlen":
            return self._items(rounded_weights)
        dense, slots = self.dense(self.arrays, rounded_weights)
        return {"na": dense.fused, "qk": lambda: dense.qk(slots), "av": lambda: dense.av(slots)}[self.op]()

    def _items(self, rounded_weights: bool) -> Wanted:
        """Each item as a separate problem; zeros in the padding, and -inf in lse."""
        found: Wanted = {}
        like = {"out": "d_out", "lse": "d_lse"}
        for item, size in enumerate(self.sizes):
            own = (slice(item, item + 1), *map(slice, size))
            dense, _ = self.dense({name: array[own] for name, array in self.arrays.items()}, rounded_weights)
            for name, pair in dense.fused().items():
                whole = self.arrays[like.get(name, name)]
                empty = np.full(whole.shape, -np.inf if name == "lse" else 0.0)
                truth, error = found.setdefault(name, (empty, np.zeros(whole.shape)))
                truth[own], error[own] = pair
        return found


def wrapped(window: Window, others: tuple[bool, ...]) -> Window:
    """The window where axes wrap around: the first axis, and the others as ``others`` says."""
    wrap = (True, *others)
    causal = tuple(causal and not wraps for causal, wraps in zip(window.is_causal, wrap, strict=True))
    return replace(window, is_causal=causal, wrap=wrap)


def next_multiple(length: int, stride: int, dilation: int, wraps: bool) -> int:
    """The length of an axis that wraps: a multiple of stride times dilation."""
    return -(-length // (stride * dilation)) * stride * dilation if wraps else length


@lru_cache(maxsize=64)
def problem(op: str, dtype: str, number: int, width: int | None = None, wraps: bool = False) -> Random:
    """A random problem. width: the head dim, for kernels that are compiled for one. wraps: some axes wrap around."""
    random = np.random.default_rng([11, number, *map(ord, op + dtype + "w" * wraps)])

    def draw(least: int, most: int) -> int:
        return int(random.integers(least, most + 1))

    rank = draw(1, 3)
    shape = tuple(draw(1, {1: 30, 2: 7, 3: 4}[rank]) for _ in range(rank))
    dilation = tuple(draw(1, min(length, 3)) for length in shape)
    kernel_size = tuple(draw(1, length // d) for length, d in zip(shape, dilation, strict=True))
    biased = op in ("na", "qk") and draw(0, 2) == 0
    stride = tuple(1 if biased else draw(1, w) for w in kernel_size)
    window = Window(kernel_size, stride, dilation, tuple(draw(0, 2) == 0 for _ in shape))
    if wraps:
        window = wrapped(window, tuple(draw(0, 3) > 0 for _ in shape[1:]))
        shape = tuple(map(next_multiple, shape, window.stride, window.dilation, window.wrap))
    kv, dim, dim_v = draw(1, 2), width or draw(1, 9), width or draw(1, 9)
    batch, heads = ITEMS if op == "varlen" else draw(1, 2), kv * draw(1, 2)
    shapes = {"query": (*shape, heads, dim), "key": (*shape, kv, dim), "value": (*shape, kv, dim_v)}
    if op == "na" and draw(0, 2) == 0:
        additional = draw(1, 5)
        shapes |= {"additional_keys": (additional, kv, dim), "additional_values": (additional, kv, dim_v)}
    slots = (*shape, heads, int(np.prod(kernel_size)))
    shapes |= {"attn": slots, "d_logits": slots, "d_out": (*shape, heads, dim_v), "d_lse": (*shape, heads)}
    kept = {
        "qk": ("query", "key", "d_logits"),
        "av": ("attn", "value", "d_out"),
    }.get(op, set(shapes) - {"attn", "d_logits"})
    arrays = {name: random.standard_normal((batch, *shapes[name])) for name in shapes if name in kept}
    if biased:
        arrays["rpb"] = random.standard_normal((heads, *(2 * w - 1 for w in kernel_size)))
    # The largest logit is about 4 standard deviations; those that na_qk returns must fit the dtype.
    largest = 4 if op == "qk" and dtype == "float16" else 5
    factor = (10 ** random.uniform(0, largest) / 4) ** 0.5
    for name in {"query", "key", "additional_keys"} & set(arrays):
        arrays[name] *= factor
    arrays = {name: rounded(a, accumulator(dtype) if name == "d_lse" else dtype) for name, a in arrays.items()}
    sizes = ()
    if op == "varlen":
        least = [w * d for w, d in zip(kernel_size, dilation, strict=True)]
        sizes = tuple(tuple(draw(*ends) for ends in zip(least, shape, strict=True)) for _ in range(batch))
    return Random(op, dtype, window, arrays, sizes)


@lru_cache(maxsize=64)
def piece(op: str, dtype: str, number: int, width: int | None = None) -> Random:
    """A random piece of the problem of that number."""
    whole = problem(op, dtype, number, width)
    shape = next(iter(whole.arrays.values())).shape[1:-2]
    cut = random_cut(shape, whole.window.tables(shape)[0], np.random.default_rng([12, number, *map(ord, op + dtype)]))
    return replace(whole, arrays=cut.of(whole.arrays), cut=cut)


@lru_cache(maxsize=64)
def masked(dtype: str, number: int, width: int | None = None) -> Random:
    """A random problem of the fused op, a piece, or one that wraps around, with a random key mask."""
    make = (problem, piece, partial(problem, wraps=True))[number % 3]
    whole = make("na", dtype, number, width)
    random = np.random.default_rng([13, number, *map(ord, dtype)])
    # The share of keys that may be seen; the smallest leaves some queries without any.
    mask = random.random(whole.arrays["key"].shape[:-2]) < random.choice([0.95, 0.5, 0.1])
    if random.integers(3) == 0:
        mask[random.integers(len(mask))] = False
    return replace(whole, arrays=whole.arrays | {"key_mask": mask})
