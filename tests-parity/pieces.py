"""Pieces of a problem: which queries and keys of it a call is given, and the tensors that belong to them.

Independent of the packages, except for :func:`slabs`, which asks them for the keys that are needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any
Ranges = tuple[tuple[int, int], ...]
# Tensors with a token for each query, and for each key; all others go to every piece.
OF_QUERIES = ("query", "attn", "out", "lse", "logits", "d_out", "d_lse", "d_logits")
OF_KEYS = ("key", "value", "key_mask")


@dataclass(frozen=True)
class Cut:
    """A piece of a problem of ``full_shape``: ``[low, high)`` of its queries and of its keys on each axis."""

    full_shape: tuple[int, ...]
    queries: Ranges
    keys: Ranges

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the faces for this piece."""
        starts = (tuple(low for low, _ in ranges) for ranges in (self.queries, self.keys))
        return {"full_shape": self.full_shape} | dict(zip(("query_start", "key_start"), starts, strict=True))

    def at(self, name: str) -> tuple[slice, ...]:
        """The index of the piece's part of a tensor ``[B, *shape, ...]``; of a tensor without such axes, all of it."""
        ranges = self.queries if name in OF_QUERIES else self.keys if name in OF_KEYS else ()
        return (slice(None), *(slice(*pair) for pair in ranges)) if ranges else ()

    def of(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """The piece's part of each tensor of the whole problem."""
        return {name: array[self.at(name)] for name, array in arrays.items()}

    def tokens(self, ranges: Ranges) -> Array:
        """The tokens of ranges, numbered row-major over full_shape."""
        return (
            np.arange(int(np.prod(self.full_shape))).reshape(self.full_shape)[tuple(slice(*r) for r in ranges)].ravel()
        )

    def of_tables(self, mask: Array, offsets: Array, slots: Array) -> tuple[Array, Array, Array]:
        """Mask and rpb entries ``[queries, keys]`` and the key of each slot (-1: none), for the tokens of the piece."""
        rows, columns = self.tokens(self.queries), self.tokens(self.keys)
        number = np.full(len(mask) + 1, -1)
        number[columns] = np.arange(len(columns))
        return mask[np.ix_(rows, columns)], offsets[np.ix_(rows, columns)], number[slots[rows]]


def random_cut(full_shape: tuple[int, ...], mask: Array, random: np.random.Generator) -> Cut:
    """Some queries, and at least the keys that they see. ``mask``: ``[queries, keys]`` of the whole problem."""

    def pair(low: int, high: int, least: int, most: int) -> tuple[int, int]:
        """A random range that holds [low, high) and lies in [least, most)."""
        return int(random.integers(least, low + 1)), int(random.integers(high, most + 1))

    firsts = [int(random.integers(length)) for length in full_shape]
    queries = tuple(pair(first, first + 1, first, length) for first, length in zip(firsts, full_shape, strict=True))
    rows = np.ravel_multi_index(np.meshgrid(*(range(*r) for r in queries), indexing="ij"), full_shape).ravel()
    seen = np.unravel_index(np.flatnonzero(mask[rows].any(0)), full_shape)
    needed = [(int(axis.min()), int(axis.max()) + 1) for axis in seen]
    spare = random.integers(3) > 0  # often more keys than are needed
    keys = tuple(pair(*r, 0, length) if spare else r for r, length in zip(needed, full_shape, strict=True))
    return Cut(full_shape, queries, keys)


def slabs(case: Any, axis: int, parts: int) -> Iterator[Cut]:
    """A case of the table cut along one axis into ``parts`` slabs of uneven length, each with the keys it needs."""
    from natten_mps import key_range

    length = case.shape[axis]
    ends = sorted({round(length * (part / parts) ** 1.3) for part in range(parts)} | {length})
    for low, high in itertools.pairwise(ends):
        queries = tuple((low, high) if a == axis else (0, n) for a, n in enumerate(case.shape))
        yield Cut(case.shape, queries, key_range(case.shape, **case.window, query_range=queries))
