"""Problems to share among processes: cut axes, shards of any length, and every feature of the fused op."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from natten_mps._metal.problem.shards import Shards

Array = Any


@dataclass(frozen=True)
class ShardCase:
    """One problem and how it is cut: ``bounds`` of the shards on each axis, and the axes ``cut``."""

    bounds: tuple[tuple[int, ...], ...]
    cut: tuple[int, ...]
    window: dict[str, tuple[Any, ...]]
    seed: int
    batch: int = 1
    heads: int = 2
    kv_heads: int = 2
    head_dim_v: int = 3
    additional: int = 0
    rpb: bool = False
    wrap: tuple[bool, ...] = ()
    dtype: str = ""  # empty: the one that the framework's tests use

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(each[-1] for each in self.bounds)

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(len(self.bounds[axis]) - 1 for axis in self.cut)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the window, by name."""
        return self.window | ({"wrap": self.wrap} if self.wrap else {})

    @property
    def shards(self) -> Shards:
        wrap = tuple(axis for axis, wraps in enumerate(self.wrap) if wraps)
        return Shards(self.bounds, self.cut, tuple(self.window.values()), wrap)  # type: ignore[arg-type]

    @property
    def inputs(self) -> dict[str, Array]:
        """The tensors of the whole problem, by name."""
        random, head_dim = np.random.default_rng(self.seed), 4
        keys = (self.batch, *self.shape, self.kv_heads)
        made = {
            "query": random.standard_normal((self.batch, *self.shape, self.heads, head_dim)),
            "key": random.standard_normal((*keys, head_dim)),
            "value": random.standard_normal((*keys, self.head_dim_v)),
        }
        if self.additional:
            for name, width in (("additional_keys", head_dim), ("additional_values", self.head_dim_v)):
                made[name] = random.standard_normal((self.batch, self.additional, self.kv_heads, width))
        if self.rpb:
            made["rpb"] = random.standard_normal((self.heads, *(2 * w - 1 for w in self.window["kernel_size"])))
        return made

    @property
    def cotangents(self) -> list[Array]:
        random, heads = np.random.default_rng(self.seed + 1), (self.batch, *self.shape, self.heads)
        return [random.standard_normal((*heads, self.head_dim_v)), random.standard_normal(heads)]

    def bytes_per_token(self, itemsize: int) -> int:
        return self.batch * self.kv_heads * (4 + self.head_dim_v) * itemsize


def per_axis(rank: int, **window: Any) -> dict[str, tuple[Any, ...]]:
    defaults = {"kernel_size": 3, "stride": 1, "dilation": 1, "is_causal": False}
    return {name: value if isinstance(value, tuple) else (value,) * rank for name, value in (defaults | window).items()}


def drawn(random: Random, count: int, seed: int) -> ShardCase:
    """A random case. Some shards have only one token, and some windows are as wide as the axis."""
    rank = random.choice((1, 2, 2, 3))
    grid = (2, 2) if count == 4 and rank > 1 and random.random() < 0.5 else (count,)
    cut = tuple(random.sample(range(rank), len(grid)))
    bounds: list[tuple[int, ...]] = []
    for axis in range(rank):
        length = random.randint(4, 14 if rank > 1 else 40) if axis in cut else random.randint(3, 6)
        inner = random.sample(range(1, length), grid[cut.index(axis)] - 1) if axis in cut else []
        bounds.append((0, *sorted(inner), length))
    window: list[tuple[Any, ...]] = []
    rpb = random.random() < 0.25
    for each in bounds:
        d = random.randint(1, min(3, each[-1] // 2))
        w = random.randint(1, random.choice((min(3, each[-1] // d), each[-1] // d)))
        window.append((w, 1 if rpb else random.randint(1, w), d, random.random() < 0.3))
    wraps = [
        random.random() < 0.4 and not causal and length[-1] % (s * d) == 0
        for length, (_, s, d, causal) in zip(bounds, window, strict=True)
    ]
    names = ("kernel_size", "stride", "dilation", "is_causal")
    kv_heads, repeats = random.choice((1, 2)), random.choice((1, 2))
    return ShardCase(
        tuple(bounds),
        cut,
        dict(zip(names, zip(*window, strict=True), strict=True)),
        seed,
        batch=random.choice((1, 1, 2)),
        heads=kv_heads * repeats,
        kv_heads=kv_heads,
        additional=random.choice((0, 0, 2)),
        rpb=rpb,
        wrap=tuple(wraps) if any(wraps) else (),
    )


WRAPPED = ShardCase(((0, 2, 7, 12),), (0,), per_axis(1, kernel_size=5, stride=2, dilation=2), 5, wrap=(True,))
NAMED = {
    1: [
        ShardCase(((0, 9), (0, 11)), (1,), per_axis(2, kernel_size=(3, 5), dilation=(2, 1)), 4, rpb=True, additional=2)
    ],
    2: [ShardCase(((0, 3, 20),), (0,), per_axis(1, kernel_size=4, is_causal=True), 1, dtype="bfloat16")],
    3: [ShardCase(((0, 1, 2, 19),), (0,), per_axis(1, kernel_size=9, dilation=2), 2), WRAPPED],
    4: [ShardCase(((0, 4, 9), (0, 2, 11)), (1, 0), per_axis(2, kernel_size=(3, 5)), 3)],
}


def cases(count: int, more: int) -> list[ShardCase]:
    """Problems for ``count`` processes, the same in each of them: those with names, and ``more`` random ones."""
    random = Random(count)
    return [*NAMED[count], *(drawn(random, count, 10 * index) for index in range(more))]
