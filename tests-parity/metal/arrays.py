"""Arrays as kernels see them: the bits of a dtype, with a memory layout of their own."""

from __future__ import annotations

import mmap
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from metal_emulator import Buffer

Array = Any
STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "int32": np.int32}
WIDE_BYTES = 16
MAP_NORESERVE = 0x4000  # Linux's; Python has the name since 3.13


def encode(values: Array, dtype: str) -> Array:
    """The stored form of float64 ``values`` that ``dtype`` can hold. bfloat16 is the upper half of float32."""
    if dtype != "bfloat16":
        return np.asarray(values).astype(STORED[dtype])
    return (np.asarray(values).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def decode(stored: Array, dtype: str) -> Array:
    """The values of a stored array, as float64."""
    if dtype != "bfloat16":
        return stored.astype(np.float64)
    return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


@dataclass(frozen=True)
class Laid:
    """A tensor somewhere in flat memory. view: the tensor itself; offset: its first element.

    in_place: its elements are too far apart for the emulator to copy.
    """

    memory: Array
    view: Array
    offset: int
    dtype: str
    in_place: bool = False

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides in elements."""
        return tuple(stride // self.memory.itemsize for stride in self.view.strides)

    @property
    def values(self) -> Array:
        return decode(self.view, self.dtype)

    def bound(self, output: bool) -> Buffer:
        """The buffer that a host binds."""
        return Buffer(self.memory, self.offset * self.memory.itemsize, not output, self.in_place)

    def counts(self, per_element: Array) -> tuple[Array, Array]:
        """Counts for the tensor's own elements, and for the rest of its memory."""
        own = self._view(per_element)
        elsewhere = np.ones(len(per_element), bool)
        self._view(elsewhere)[...] = False
        return own, per_element[elsewhere]

    def _view(self, memory: Array) -> Array:
        strides = tuple(stride * memory.itemsize for stride in self.strides)
        return np.lib.stride_tricks.as_strided(memory[self.offset :], self.view.shape, strides)


def packed(values: Array, dtype: str) -> Laid:
    """The tensor alone, row-major."""
    stored = np.ascontiguousarray(encode(values, dtype))
    memory = stored.reshape(-1)
    return Laid(memory, memory.reshape(stored.shape), 0, dtype)


def far(values: Array, dtype: str, axis: int, step: int) -> Laid:
    """The tensor with ``step`` elements between two positions of ``axis``, in memory that is mostly never touched."""
    stored = encode(values, dtype)
    strides = [stride // stored.itemsize for stride in stored.strides]
    strides[axis] = step
    reach = sum((size - 1) * stride for size, stride in zip(stored.shape, strides, strict=True)) + 1
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    memory = np.frombuffer(mmap.mmap(-1, reach * stored.itemsize, flags), stored.dtype)
    view = np.lib.stride_tricks.as_strided(memory, stored.shape, [s * stored.itemsize for s in strides])
    view[...] = stored
    return Laid(memory, view, 0, dtype, in_place=True)


def scattered(values: Array, dtype: str, wide: bool, rng: random.Random) -> Laid:
    """The tensor with its axes in any order, gaps between tokens and an offset; only channels are contiguous.

    wide: tokens start at 16-byte boundaries. The gaps hold NaN, so that reading them shows in the results.
    """
    stored = encode(values, dtype)
    unit = WIDE_BYTES // stored.itemsize if wide else 1
    order = list(range(stored.ndim - 1))
    rng.shuffle(order)
    strides, step = [1] * stored.ndim, stored.shape[-1] + rng.choice((0, 0, 1, 3)) * unit
    for axis in reversed(order):
        strides[axis] = step
        step *= stored.shape[axis]
    offset = rng.choice((0, 1, 5)) * unit
    gap = encode(np.full(1, np.nan), dtype)[0]
    memory = np.full(offset + step, gap, stored.dtype)
    laid = Laid(memory, memory, offset, dtype)
    view = np.lib.stride_tricks.as_strided(memory[offset:], stored.shape, [s * stored.itemsize for s in strides])
    view[...] = stored
    return Laid(laid.memory, view, offset, dtype)
