"""Instances to draw from, and random problems that each of them accepts.

A kit is a set of compile-time choices and the templates that are built with it. Together the kits combine rank, dtype,
staged, direct and wide reads, heads in rows, rpb, additional keys and window slots, independently of the planner.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from cases import Case, Ranges

from natten_mps._metal.metal.mpp import lie_in_rows
from natten_mps._metal.metal.source import Instance
from natten_mps._metal.metal.templates import MPP_TEMPLATES, TEMPLATES
from natten_mps._metal.problem.ranges import key_range

FUSED = ("na_fwd", "na_bwd_dq", "na_bwd_dkv")
MPP = tuple(MPP_TEMPLATES)
SPLIT = ("na_qk", "na_av", "na_av_t")
# Instances whose options differ from the kit's: name -> template and changes.
SPECIAL: dict[str, tuple[str, dict[str, Any]]] = {
    "of_additional": ("na_bwd_dkv", {"of_additional": True, "rpb": False, "masked": False, "flat": False}),
    "slots": ("na_rpb", {"slots": True, "masked": False, "rpb": True, "stage": False, "dim": 16, "dim_v": 16}),
    "na_rpb": ("na_rpb", {"rpb": True, "stage": False}),
    "zero": ("na_qk", {"empty_zero": True, "rpb": False}),
    "na_delta": ("na_delta", {"lse_grad": True, "stage": False, "rpb": False}),
    "delta": ("na_delta", {"stage": False, "rpb": False}),
    "na_sum": ("na_sum", {"rank": 1, "dim": 0, "dim_v": 0, "stage": False, "rpb": False, "simdgroups": 8}),
}
# Templates in which heads may share a patch, and templates that may be masked.
HEADS_IN_ROWS = ("na_fwd", "na_bwd_dq", "na_qk", "na_av", *MPP[:2])
MASKABLE = (*FUSED, "na_rpb")
TABLE = 256
# The share of random problems that are pieces of larger ones.
PIECES = 1 / 3


def piece_of(shape: tuple[int, ...], window: tuple[Any, ...], rng: random.Random) -> tuple[Ranges, Ranges]:
    """Random queries of a problem, and at least the keys that these need, perhaps with more on either side.

    window: kernel_size, stride, dilation, is_causal.
    """
    queries, keys = [], []
    for n in shape:
        low = rng.randrange(n)
        queries.append((low, rng.randint(low + 1, n)))
    for (low, high), n in zip(key_range(shape, *window, queries), shape, strict=True):
        keys.append((rng.choice((low, rng.randint(0, low))), rng.choice((high, rng.randint(high, n)))))
    return tuple(queries), tuple(keys)


@dataclass(frozen=True)
class Kit:
    """One set of choices. patch and heads: for templates that put heads in rows; key_patch: for the others.

    reads: 'staged' or 'direct', and 'wide' if tokens are not padded and are aligned.
    """

    name: str
    rank: int
    dtype: str
    dims: tuple[int, int]
    patch: tuple[int, int, int]
    key_patch: tuple[int, int, int]
    templates: tuple[str, ...]
    heads: int = 1
    simdgroups: int = 2
    chunk: int = 24
    bricks: int = 1
    part: int = 0
    reads: str = "staged"
    rpb: bool = False
    additional: bool = False
    masked: bool = False
    flat: bool = False
    team: int = 1

    def __str__(self) -> str:
        return self.name

    def instance(self, name: str) -> Instance:
        """The instance of one of the kit's templates."""
        template, changed = SPECIAL.get(name, (name, {}))
        in_rows, record = template in HEADS_IN_ROWS, (TEMPLATES | MPP_TEMPLATES)[template]
        options: dict[str, Any] = {
            "patch": self.patch if in_rows else self.key_patch,
            "heads": self.heads if in_rows else 1,
            "dim": self.dims[0] if record.reads_dim else 0,
            "dim_v": self.dims[1] if record.reads_dim_v else 0,
            "rank": self.rank,
            "simdgroups": self.simdgroups,
            "chunk": self.chunk,
            "bricks": self.bricks,
            "part": self.part if record.walks and template != "na_qk" else 0,
            "stage": "direct" not in self.reads,
            "wide": "wide" in self.reads and record.walks,
            "rpb": self.rpb and template not in ("na_av", "na_av_t"),
            "masked": self.masked and template in MASKABLE,
            "additional": self.additional and template in ("na_fwd", "na_bwd_dq", *MPP[:2]),
            "table": TABLE if template == "na_rpb" else 0,
            "team": self.team if record.sums(1, 1) else 1,
            "flat": self.flat and (record.walks or template == "na_rpb"),
        }
        return Instance(template, self.dtype, **(options | changed))

    @cached_property
    def instances(self) -> dict[str, Instance]:
        return {name: self.instance(name) for name in self.templates}

    def problem(self, name: str, rng: random.Random) -> Case:
        """A random case that every instance of the kit accepts; about every third is a piece of a larger one."""
        while True:
            case = self._any_problem(name, rng)
            entries = 1
            for w in case.kernel_size:
                entries *= 2 * w - 1
            if not case.rpb or entries <= TABLE:
                whole = rng.random() >= PIECES
                if not whole:
                    case = replace(case, piece=piece_of(case.shape, tuple(case.window.values()), rng))
                if self._accepts(case):
                    return case

    def _accepts(self, case: Case) -> bool:
        """Whether products of matrix units can read bricks of the case where they lie, if any instance does."""
        in_rows = [i for i in self.instances.values() if i.record.mpp and not i.flat]
        problem = case.problem(self.dtype)
        return all(lie_in_rows(problem, instance.record.transposed) for instance in in_rows)

    def _any_problem(self, name: str, rng: random.Random) -> Case:
        # Long along x: bricks without a mask need windows wider than a brick and a patch together.
        x = rng.randint(1, {1: 90, 2: 34, 3: 22}[self.rank])
        shape = (*(rng.randint(1, {2: 8, 3: 4}[self.rank]) for _ in range(self.rank - 1)), x)
        dilation = tuple(rng.choice((1, rng.randint(1, min(3, n)))) for n in shape)
        kernel = tuple(rng.randint(1, n // d) for n, d in zip(shape, dilation, strict=True))
        stride = tuple(1 if self.rpb else rng.choice((1, rng.randint(1, w))) for w in kernel)
        kv_heads, scales = rng.randint(1, 2), (None, None, 0.1, -0.2)
        dim, dim_v = (d if "wide" in self.reads else rng.randint(1, d) for d in self.dims)
        return Case(
            name,
            shape,
            kernel,
            stride,
            dilation,
            tuple(rng.random() < 0.3 for _ in shape),
            rng.randint(1, 2),
            kv_heads * self.heads * rng.choice((1, 1, 2)),
            kv_heads,
            dim,
            dim_v,
            rng.randint(1, 45) if self.additional else None,
            self.rpb,
            rng.choice(scales),
            masked=self.masked,
        )


# Patches of 8 rows along one, two and three axes.
LINE, FLAT, TALL, CUBE = (1, 1, 8), (1, 2, 4), (1, 4, 2), (2, 2, 2)
KITS = (
    Kit("seq-staged", 1, "float32", (16, 32), LINE, LINE, (*FUSED, "na_delta", *SPLIT, "na_sum"), bricks=2, part=3),
    Kit(
        "seq-wide-grouped",
        1,
        "bfloat16",
        (32, 16),
        (1, 1, 2),
        LINE,
        (*FUSED, "of_additional"),
        4,
        3,
        40,
        reads="staged wide",
        additional=True,
    ),
    Kit(
        "seq-direct-bias",
        1,
        "float16",
        (16, 16),
        (1, 1, 1),
        LINE,
        (*FUSED, "na_rpb", "slots"),
        8,
        bricks=3,
        reads="direct",
        rpb=True,
    ),
    Kit(
        "seq-small-chunk",
        1,
        "bfloat16",
        (16, 16),
        LINE,
        LINE,
        ("na_fwd", "na_bwd_dkv", "na_qk", "na_av_t"),
        chunk=8,
        part=1,
    ),
    Kit(
        "img-staged-bias",
        2,
        "float32",
        (16, 16),
        (1, 2, 2),
        FLAT,
        (*FUSED, "of_additional", "na_rpb", "na_qk"),
        2,
        chunk=16,
        rpb=True,
        additional=True,
    ),
    Kit(
        "img-direct",
        2,
        "float16",
        (32, 16),
        FLAT,
        TALL,
        (*FUSED, "na_delta", "zero", "na_av", "na_av_t", "na_sum"),
        bricks=2,
        reads="direct",
    ),
    Kit("img-wide", 2, "float32", (64, 32), TALL, LINE, (*FUSED, "na_av"), simdgroups=3, chunk=32, reads="staged wide"),
    Kit("img-bias", 2, "bfloat16", (16, 16), LINE, FLAT, (*FUSED, "na_rpb", "slots"), simdgroups=1, rpb=True),
    Kit(
        "vol-direct-grouped",
        3,
        "float16",
        (32, 16),
        (1, 1, 2),
        FLAT,
        (*FUSED, "of_additional", "delta"),
        4,
        part=4,
        reads="direct wide",
        additional=True,
    ),
    Kit(
        "vol-wide",
        3,
        "float32",
        (16, 16),
        CUBE,
        CUBE,
        (*FUSED, "of_additional", "na_av_t"),
        chunk=8,
        bricks=2,
        reads="staged wide",
        additional=True,
    ),
    Kit("seq-masked", 1, "float16", (16, 32), LINE, LINE, (*FUSED, "of_additional"), additional=True, masked=True),
    Kit(
        "img-masked-bias",
        2,
        "float32",
        (16, 16),
        (1, 2, 2),
        TALL,
        (*FUSED, "na_rpb"),
        2,
        bricks=2,
        reads="direct",
        rpb=True,
        masked=True,
    ),
    Kit("vol-masked", 3, "bfloat16", (16, 16), (1, 2, 4), CUBE, FUSED, chunk=16, part=2, masked=True),
    Kit("vol-staged", 3, "bfloat16", (16, 16), (2, 1, 4), CUBE, (*FUSED, "na_delta", "na_qk", "na_av"), part=2),
    Kit(
        "img-flat-bias",
        2,
        "float32",
        (16, 16),
        (1, 2, 2),
        TALL,
        (*FUSED, "na_rpb", "slots", "na_qk"),
        2,
        3,
        bricks=2,
        reads="direct",
        rpb=True,
        flat=True,
    ),
    Kit("img-flat", 2, "float16", (32, 16), FLAT, LINE, (*FUSED, *SPLIT), part=2, reads="direct", flat=True),
    Kit("vol-flat", 3, "float16", (32, 16), CUBE, FLAT, (*FUSED, *SPLIT), bricks=3, reads="direct wide", flat=True),
    Kit(
        "vol-flat-masked",
        3,
        "bfloat16",
        (16, 16),
        (1, 2, 2),
        (1, 4, 2),
        (*FUSED, "of_additional"),
        2,
        reads="direct",
        additional=True,
        masked=True,
        flat=True,
    ),
    Kit(
        "img-team",
        2,
        "float16",
        (32, 32),
        (1, 2, 2),
        FLAT,
        ("na_bwd_dq", "na_bwd_dkv"),
        2,
        1,
        part=2,
        reads="direct",
        rpb=True,
        additional=True,
        masked=True,
        team=2,
    ),
    Kit(
        "vol-team-flat",
        3,
        "float32",
        (32, 32),
        CUBE,
        LINE,
        ("na_bwd_dq", "na_bwd_dkv"),
        simdgroups=1,
        reads="direct wide",
        masked=True,
        flat=True,
        team=2,
    ),
    Kit("seq-team", 1, "bfloat16", (64, 64), LINE, LINE, ("na_bwd_dq", "na_bwd_dkv"), 1, 1, reads="direct", team=2),
)
# On matrix units: patches of 16 rows.
MPP_KITS = (
    Kit("seq-mpp", 1, "float16", (32, 32), (1, 1, 16), (1, 1, 16), MPP, reads="direct"),
    Kit(
        "seq-mpp-gathered",
        1,
        "bfloat16",
        (16, 16),
        (1, 1, 4),
        (1, 1, 16),
        MPP,
        4,
        reads="direct",
        additional=True,
        flat=True,
    ),
    Kit("img-mpp", 2, "float16", (64, 64), (1, 2, 8), (1, 4, 4), MPP, simdgroups=3, reads="direct wide"),
    Kit("img-mpp-grouped", 2, "bfloat16", (32, 32), (1, 2, 4), (1, 1, 16), MPP, 2, reads="direct", additional=True),
    Kit("img-mpp-flat", 2, "float16", (32, 32), (1, 4, 4), (1, 2, 8), MPP, reads="direct", flat=True),
    Kit(
        "img-mpp-flat-grouped",
        2,
        "bfloat16",
        (32, 64),
        (1, 2, 4),
        (1, 2, 8),
        MPP[:1],
        2,
        1,
        reads="direct wide",
        additional=True,
        flat=True,
    ),
    Kit("vol-mpp", 3, "bfloat16", (16, 16), (2, 2, 4), (1, 2, 8), MPP, reads="direct"),
    Kit("vol-mpp-flat", 3, "float16", (64, 64), (2, 4, 2), (4, 2, 2), MPP, reads="direct wide", flat=True),
    Kit("seq-mpp-128", 1, "float16", (128, 96), (1, 1, 16), (1, 1, 16), MPP[:1], simdgroups=1, reads="direct"),
)
# Head dims of large models, with few launches of each, because these are slow.
LONG_KITS = (
    Kit("seq-256", 1, "float32", (256, 256), LINE, LINE, FUSED, reads="direct wide"),
    Kit(
        "img-team-128",
        2,
        "float16",
        (128, 128),
        FLAT,
        FLAT,
        ("na_bwd_dq", "na_bwd_dkv"),
        simdgroups=1,
        reads="direct wide",
        flat=True,
        team=2,
    ),
    Kit("img-96-192", 2, "float16", (96, 192), FLAT, LINE, (*FUSED, "na_av_t"), simdgroups=1, chunk=8),
)
