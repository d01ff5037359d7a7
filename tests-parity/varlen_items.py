"""Padded batches of items of different sizes, in every rank, for the suites of the varlen ops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any


@dataclass(frozen=True)
class Items:
    """A padded batch: the sizes of its items, and the window."""

    name: str
    padded: tuple[int, ...]
    sizes: tuple[tuple[int, ...], ...]
    window: dict[str, Any]
    heads: int = 2
    kv_heads: int = 2
    dims: tuple[int, int] = (4, 4)

    def __str__(self) -> str:
        return self.name

    @property
    def rank(self) -> int:
        return len(self.padded)

    @property
    def argument(self) -> list[Any]:
        """The sizes as the op takes them: ``[B]`` in rank 1, else ``[B, rank]``."""
        return [size[0] if self.rank == 1 else list(size) for size in self.sizes]

    def arrays(self) -> list[Array]:
        """query, key, value, and cotangents of out and lse."""
        random = np.random.default_rng(len(self.name))
        lead, (d, d_v) = (len(self.sizes), *self.padded), self.dims
        shapes = [(*lead, self.heads, d), (*lead, self.kv_heads, d), (*lead, self.kv_heads, d_v)]
        shapes += [(*lead, self.heads, d_v), (*lead, self.heads)]
        return [random.standard_normal(shape) for shape in shapes]

    def outside(self) -> Array:
        """``[B, *padded]`` bool: padding tokens."""
        outside = np.ones((len(self.sizes), *self.padded), bool)
        for item, size in enumerate(self.sizes):
            outside[(item, *(slice(length) for length in size))] = False
        return outside


BATCHES = (
    Items("sequences", (11,), ((11,), (5,), (0,), (7,), (5,)), {"kernel_size": 5}),
    Items("dilated", (13,), ((13,), (8,), (6,)), {"kernel_size": 3, "dilation": 2, "is_causal": True}),
    Items("grouped", (9,), ((6,), (9,)), {"kernel_size": 4, "stride": 3, "scale": 0.3}, 4, 2, (5, 3)),
    Items("images", (6, 7), ((6, 7), (3, 4), (0, 7), (5, 3), (4, 0)), {"kernel_size": (3, 2), "stride": (2, 1)}),
    Items("causal", (7, 6), ((7, 4), (5, 6)), {"kernel_size": 2, "dilation": (2, 1), "is_causal": (True, False)}),
    Items("volumes", (4, 3, 5), ((4, 3, 5), (2, 3, 3), (4, 2, 3)), {"kernel_size": (2, 2, 3)}, 2, 1),
    Items("nothing", (5,), ((0,), (0,)), {"kernel_size": 3}),
    Items("no items", (5, 5), (), {"kernel_size": 3}),
)
