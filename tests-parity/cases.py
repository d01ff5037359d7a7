"""The table of cases that all suites share: named problems of every rank and feature, with seeded inputs.

No framework is imported here: the suites of the packages, of the CPU kernels and of the emulated Metal kernels read the
same table. Most sizes are odd on purpose, so that they are no multiples of tiles, groups or vectors.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from natten_mps._metal.problem.problem import Piece, Problem

Array = Any
Ranges = tuple[tuple[int, int], ...]
DTYPES = ("float64", "float32", "float16", "bfloat16")
INPUTS = ("query", "key", "value", "additional_keys", "additional_values", "rpb")


@dataclass(frozen=True)
class Case:
    """One problem. additional: number of additional keys; None if none are given. A scale of None is D ** -0.5.

    masked: some keys may not be seen. piece: the queries and the keys at hand, ``(low, high)`` on each axis of
    ``shape``; None for all of them.
    """

    name: str
    shape: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    is_causal: tuple[bool, ...]
    batch: int = 1
    heads: int = 2
    kv_heads: int = 2
    head_dim: int = 8
    head_dim_v: int = 8
    additional: int | None = None
    rpb: bool = False
    scale: float | None = None
    piece: tuple[Ranges, Ranges] | None = None
    masked: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def query_shape(self) -> tuple[int, ...]:
        """The queries at hand on each axis."""
        return self.shape if self.piece is None else tuple(high - low for low, high in self.piece[0])

    @property
    def key_shape(self) -> tuple[int, ...]:
        """The keys at hand on each axis."""
        return self.shape if self.piece is None else tuple(high - low for low, high in self.piece[1])

    @property
    def face(self) -> str:
        """The fused face of this rank."""
        return f"na{self.rank}d"

    @property
    def window(self) -> dict[str, Any]:
        """The window arguments by name, as every face takes them."""
        names = ("kernel_size", "stride", "dilation", "is_causal")
        return {name: getattr(self, name) for name in names}

    @property
    def factor(self) -> float:
        """The scale, with None replaced by its value."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    def problem(self, dtype: str = "float64", op: str = "na") -> Problem:
        """The problem of this case: 'na', 'qk' or 'av'."""
        fused, piece = op == "na", None
        if self.piece is not None:
            piece = Piece(self.shape, *(tuple(low for low, _ in ranges) for ranges in self.piece))
        return Problem(
            op,
            self.batch,
            self.query_shape,
            self.key_shape,
            self.heads,
            self.kv_heads,
            0 if op == "av" else self.head_dim,
            0 if op == "qk" else self.head_dim_v,
            self.kernel_size,
            self.stride,
            self.dilation,
            self.is_causal,
            1.0 if op == "av" else self.factor,
            dtype,
            (self.additional or 0) if fused else 0,
            self.rpb and op != "av",
            piece,
            self.masked and fused,
        )

    @property
    def tags(self) -> frozenset[str]:
        """The features that this case has, for suites that pick from the table."""
        groups = [
            len(range(g, length, d)) for length, d in zip(self.shape, self.dilation, strict=True) for g in range(d)
        ]
        shortest = [length // d for length, d in zip(self.shape, self.dilation, strict=True)]
        found = {
            f"rank{self.rank}": True,
            "even": any(w % 2 == 0 for w in self.kernel_size),
            "odd": any(w % 2 for w in self.kernel_size),
            "single": 1 in self.kernel_size,
            "whole": any(w == n for w, n in zip(self.kernel_size, shortest, strict=True)),
            "stride": max(self.stride) > 1,
            "stride-uneven": any(n % s for n in groups for s in self.stride),
            "dilation": max(self.dilation) > 1,
            "dilation-uneven": any(n % d for n, d in zip(self.shape, self.dilation, strict=True)),
            "causal": any(self.is_causal),
            "causal-mixed": len(set(self.is_causal)) == 2,
            "gqa": self.heads > self.kv_heads > 1,
            "mqa": self.heads > self.kv_heads == 1,
            "values": self.head_dim != self.head_dim_v,
            "additional": bool(self.additional),
            "rpb": self.rpb,
            "masked": self.masked,
            "scale": self.scale is not None,
            f"batch{self.batch}": True,
            "small": self.batch * self.heads * int(np.prod(self.shape)) * self.head_dim <= 1200,
        }
        return frozenset(tag for tag, has in found.items() if has)


def make(name: str, shape: tuple[int, ...], kernel_size: Any, **given: Any) -> Case:
    """A case. One number stands for all axes; kv_heads and head_dim_v default to heads and head_dim."""
    rank = len(shape)

    def per_axis(value: Any) -> tuple[Any, ...]:
        return value if isinstance(value, tuple) else (value,) * rank

    window = [per_axis(given.pop(n, default)) for n, default in (("s", 1), ("d", 1), ("causal", False))]
    given.setdefault("kv_heads", given.setdefault("heads", 2))
    given.setdefault("head_dim_v", given.setdefault("head_dim", 8))
    return Case(name, shape, per_axis(kernel_size), *window, **given)


CASES = (
    make("seq", (17,), 5),
    make("seq-even", (16,), 4),
    make("seq-single", (13,), 1),
    make("seq-single-dilated", (13,), 1, d=5),
    make("seq-whole", (11,), 11),
    make("seq-whole-even", (12,), 12, s=5),
    make("seq-one-token", (1,), 1),
    make("seq-stride", (19,), 5, s=2),
    make("seq-stride-dividing", (24,), 6, s=3),
    make("seq-stride-window", (21,), 7, s=7),
    make("seq-stride-even", (23,), 4, s=3),
    make("seq-dilated", (20,), 3, d=4),
    make("seq-dilated-uneven", (23,), 3, d=5),
    make("seq-dilated-whole", (21,), 7, d=3),
    make("seq-dilated-stride", (37,), 6, s=4, d=3),
    make("seq-causal", (17,), 5, causal=True),
    make("seq-causal-even", (18,), 6, causal=True),
    make("seq-causal-whole", (13,), 13, causal=True),
    make("seq-causal-stride", (22,), 6, s=4, causal=True),
    make("seq-causal-dilated-stride", (31,), 5, s=2, d=3, causal=True),
    make("seq-gqa", (18,), 5, heads=4, kv_heads=2),
    make("seq-mqa-causal", (15,), 4, heads=3, kv_heads=1, causal=True),
    make("seq-dim1", (14,), 5, head_dim=1),
    make("seq-dim3-values5", (14,), 3, head_dim=3, head_dim_v=5),
    make("seq-dim20", (19,), 7, head_dim=20),
    make("seq-dim33-values1", (12,), 5, head_dim=33, head_dim_v=1),
    make("seq-dim64", (21,), 9, head_dim=64, heads=1),
    make("seq-dim128-values64", (17,), 6, head_dim=128, head_dim_v=64, heads=1),
    make("seq-additional", (15,), 5, additional=3),
    make("seq-additional-zero", (15,), 5, additional=0),
    make(
        "seq-additional-everything",
        (29,),
        4,
        s=3,
        d=3,
        causal=True,
        heads=4,
        kv_heads=2,
        head_dim_v=5,
        additional=17,
        batch=2,
    ),
    make("seq-rpb", (16,), 7, rpb=True),
    make("seq-rpb-causal-dilated", (22,), 4, d=3, causal=True, rpb=True),
    make("seq-rpb-additional-gqa", (13,), 6, heads=4, kv_heads=2, additional=5, rpb=True),
    make("seq-batch0", (9,), 3, batch=0, additional=2, rpb=True),
    make("seq-batch3", (11,), 4, batch=3),
    make("seq-scale-zero", (12,), 5, scale=0.0),
    make("seq-scale-negative", (12,), 5, scale=-0.7, additional=2),
    make("seq-long", (301,), 31, heads=1),
    make("seq-long-stride", (257,), 32, s=16, heads=1, head_dim=20),
    make("seq-long-causal-dilated", (299,), 20, d=7, causal=True, heads=3, kv_heads=1),
    make("img", (7, 9), 3),
    make("img-uneven", (9, 8), (5, 4)),
    make("img-whole", (5, 6), (5, 6)),
    make("img-single", (6, 7), (1, 3)),
    make("img-thin", (1, 15), (1, 4)),
    make("img-stride", (9, 10), (5, 4), s=(2, 3)),
    make("img-dilated", (11, 13), (3, 4), d=(3, 2)),
    make("img-mixed", (12, 11), (4, 5), s=(4, 2), d=(2, 2), causal=(False, True)),
    make("img-causal", (8, 7), (3, 4), causal=True),
    make("img-causal-first", (7, 10), 5, s=(1, 3), d=(1, 2), causal=(True, False), head_dim=3),
    make("img-gqa", (6, 7), 3, heads=6, kv_heads=2),
    make("img-mqa-values", (7, 6), (4, 3), heads=4, kv_heads=1, head_dim=16, head_dim_v=24),
    make("img-dim33", (6, 5), (3, 5), head_dim=33, heads=1),
    make("img-additional", (7, 8), (3, 4), d=(2, 1), additional=4),
    make(
        "img-additional-everything",
        (9, 11),
        (4, 5),
        s=(3, 2),
        d=(2, 2),
        causal=(True, False),
        heads=4,
        kv_heads=2,
        head_dim=20,
        head_dim_v=12,
        additional=7,
        batch=2,
        scale=0.4,
    ),
    make("img-rpb", (8, 9), (4, 3), rpb=True),
    make(
        "img-rpb-everything",
        (9, 8),
        (3, 4),
        d=(3, 2),
        causal=(False, True),
        heads=4,
        kv_heads=2,
        additional=3,
        rpb=True,
        batch=2,
    ),
    make("img-batch0", (5, 6), 3, batch=0, heads=4, kv_heads=2, additional=3, rpb=True),
    make("img-batch3", (6, 5), (3, 2), batch=3, causal=(True, False)),
    make("img-large", (25, 22), 7, heads=1, head_dim=16),
    make("img-large-stride", (21, 23), (8, 6), s=(4, 3), heads=1),
    make("img-large-rpb", (19, 21), (5, 7), rpb=True),
    make("vol", (3, 5, 4), 3),
    make("vol-mixed", (4, 5, 6), (2, 3, 4), s=(1, 2, 3), d=(2, 1, 1)),
    make("vol-causal-first", (5, 4, 7), (3, 4, 2), causal=(True, False, False)),
    make("vol-causal", (5, 4, 7), (5, 2, 3), s=(2, 2, 2), d=(1, 2, 2), causal=True),
    make("vol-whole", (3, 4, 2), (3, 4, 2)),
    make("vol-thin", (1, 9, 1), (1, 4, 1), d=(1, 2, 1)),
    make("vol-gqa-additional", (4, 3, 5), 3, heads=4, kv_heads=2, additional=5, head_dim_v=3),
    make("vol-rpb", (4, 5, 3), (3, 2, 3), rpb=True),
    make(
        "vol-rpb-everything",
        (5, 4, 6),
        (2, 3, 3),
        d=(2, 1, 2),
        causal=(False, True, False),
        heads=2,
        kv_heads=1,
        additional=2,
        rpb=True,
        batch=2,
    ),
    make("vol-large", (8, 9, 10), (3, 5, 4), heads=1),
    make("vol-batch0", (3, 4, 5), 3, batch=0, causal=(True, False, True)),
    make("vol-dim64", (3, 4, 5), (2, 4, 3), heads=1, head_dim=64),
)
# Fused attention with a key mask, apart from CASES because it has nothing to do in the suites of other ops. The first
# has lines of more than one word of bits.
MASKED = (
    make("seq-masked", (77,), 6, s=2, d=3, masked=True, batch=2),
    make("seq-masked-causal-gqa", (70,), 5, causal=True, heads=4, kv_heads=2, additional=3, masked=True),
    make("img-masked", (7, 37), (4, 5), s=(3, 2), heads=4, kv_heads=1, head_dim=20, head_dim_v=12, masked=True),
    make("img-masked-rpb", (8, 9), (2, 3), d=(2, 3), causal=(True, False), rpb=True, masked=True, batch=2),
    make("vol-masked", (4, 5, 6), (2, 3, 3), d=(2, 1, 2), causal=(False, True, False), rpb=True, masked=True),
    make("vol-masked-additional", (3, 5, 4), (1, 2, 2), s=(1, 2, 1), additional=2, masked=True),
    make("seq-masked-batch0", (9,), 3, batch=0, masked=True),
)
BY_NAME = {case.name: case for case in (*CASES, *MASKED)}


def tagged(*tags: str) -> tuple[Case, ...]:
    """The cases that have all of ``tags``."""
    return tuple(case for case in CASES if case.tags.issuperset(tags))


def rounded(array: Array, dtype: str) -> Array:
    """``array`` rounded once to ``dtype`` (nearest, ties to even), held in float64."""
    array = np.asarray(array, dtype=np.float64)
    if dtype == "float64":
        return array
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):
            return array.astype(dtype).astype(np.float64)
    # bfloat16 is the upper half of a float32, so rounding is integer arithmetic on the bits. Baselines compute in
    # float32, so their values are exact here; inputs go through float32 as well.
    bits = array.astype(np.float32).view(np.uint32).astype(np.uint64)
    nearest = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return nearest.astype(np.uint32).view(np.float32).astype(np.float64)


def lse_dtype(dtype: str) -> str:
    """The dtype of lse for inputs of ``dtype``."""
    return "float64" if dtype == "float64" else "float32"


def generator(name: str) -> np.random.Generator:
    """Random numbers that depend only on the name."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def inputs(case: Case, dtype: str = "float64", draw: int = 0) -> dict[str, Array]:
    """All tensors of the case by name, with the cotangents d_out and d_lse.

    Values are representable in ``dtype`` (d_lse in the dtype of lse) and held in float64. Another ``draw`` gives other
    values. Masked keys, and their values, are NaN or large.
    """
    random = generator(f"{case.name}/{draw}")
    b, h, kv = case.batch, case.heads, case.kv_heads
    shapes: dict[str, tuple[int, ...]] = {
        "query": (b, *case.query_shape, h, case.head_dim),
        "key": (b, *case.key_shape, kv, case.head_dim),
        "value": (b, *case.key_shape, kv, case.head_dim_v),
        "d_out": (b, *case.query_shape, h, case.head_dim_v),
        "d_lse": (b, *case.query_shape, h),
    }
    if case.additional is not None:
        shapes["additional_keys"] = (b, case.additional, kv, case.head_dim)
        shapes["additional_values"] = (b, case.additional, kv, case.head_dim_v)
    if case.rpb:
        shapes["rpb"] = (h, *(2 * w - 1 for w in case.kernel_size))
    found = {
        name: rounded(random.standard_normal(shape), lse_dtype(dtype) if name == "d_lse" else dtype)
        for name, shape in shapes.items()
    }
    if case.masked:
        found["key_mask"] = random.random((b, *case.key_shape)) < 0.6
        hidden = ~found["key_mask"][..., None, None]
        bad = np.where(random.random(hidden.shape) < 0.5, np.nan, 1000.0)
        found |= {name: np.where(hidden, bad, found[name]) for name in ("key", "value")}
    return found


def slot_inputs(case: Case, dtype: str = "float64", draw: int = 0) -> dict[str, Array]:
    """Further tensors for the split ops: attn, and the cotangent of logits."""
    random = generator(f"{case.name}/slots/{draw}")
    slots = (case.batch, *case.query_shape, case.heads, int(np.prod(case.kernel_size)))
    return {name: rounded(random.standard_normal(slots), dtype) for name in ("attn", "d_logits")}
