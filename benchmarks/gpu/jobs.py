"""The problems to run on the GPU and the planner's launches for each, with variants that change one choice at a time.

Both sides import this: build.py where clang is, run.py where the GPU is. It imports no framework.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "shared-metal"))

from natten_metal.caches import clear_all  # noqa: E402
from natten_metal.metal import op_launches, tiling  # noqa: E402
from natten_metal.metal.op_launches import Launch, fills_words  # noqa: E402
from natten_metal.metal.source import ITEM_SIZES, Instance  # noqa: E402
from natten_metal.problem.problem import Problem  # noqa: E402
from natten_metal.tuning.design import Trial  # noqa: E402

DTYPES = ("float16", "float32")
SMALL_DTYPES = ("float16", "bfloat16", "float32")
# ptxas may use 255 registers a thread; with 128 twice as many simdgroups are resident.
REGISTER_CAPS = (0, 128)


def attention(shape: tuple[int, ...], window: tuple[int, ...], batch: int, heads: int, dim: int) -> Problem:
    """Fused attention with stride and dilation 1, not causal, float32."""
    one, none = (1,) * len(shape), (False,) * len(shape)
    return Problem("na", batch, shape, shape, heads, heads, dim, dim, window, one, one, none, dim**-0.5, "float32")


# Timed: problem by name.
TIMED = {
    "2-D 64x64 K7 D32": attention((64, 64), (7, 7), 1, 4, 32),
    "2-D 56x56 K7 D32 B32": attention((56, 56), (7, 7), 32, 4, 32),
    "2-D 128x128 K7 D64": attention((128, 128), (7, 7), 4, 8, 64),
    "2-D 64x64 K13 D64": attention((64, 64), (13, 13), 4, 16, 64),
    "2-D 128x128 K41 D64": attention((128, 128), (41, 41), 1, 4, 64),
    "3-D 16x24x24 K7,9,9 D64": attention((16, 24, 24), (7, 9, 9), 1, 4, 64),
    "1-D 32768 K1025 D64": attention((32768,), (1025,), 1, 8, 64),
    "2-D 64x64 dense D64": attention((64, 64), (64, 64), 4, 16, 64),
    "2-D 48x48 K7 D32 qk": replace(attention((48, 48), (7, 7), 1, 8, 32), op="qk", head_dim_v=0),
    "2-D 48x48 K7 D32 av": replace(attention((48, 48), (7, 7), 1, 8, 32), op="av", head_dim=0),
}
# Timed to compare bricks in rows of their own with flat ones. What the first half shows may decide thresholds; the
# second was held out.
CHOSEN_ON = {
    "3-D 16x24x24 K7,9,9 D64": TIMED["3-D 16x24x24 K7,9,9 D64"],
    "2-D 128x128 K41 D64": TIMED["2-D 128x128 K41 D64"],
    "2-D 64x64 K7 D32": TIMED["2-D 64x64 K7 D32"],
    "2-D 96x96 K9 D64": attention((96, 96), (9, 9), 1, 8, 64),
    "3-D 32x32x32 K3 D32": attention((32, 32, 32), (3, 3, 3), 1, 4, 32),
    "3-D 8x48x96 K2,12,6 D64": attention((8, 48, 96), (2, 12, 6), 1, 4, 64),
    "2-D 128x128 K3 D32": attention((128, 128), (3, 3), 4, 8, 32),
    "3-D 24x24x24 K5 D64": attention((24, 24, 24), (5, 5, 5), 1, 4, 64),
}
HELD_OUT = {
    "2-D 64x64 K13 D64": TIMED["2-D 64x64 K13 D64"],
    "2-D 56x56 K7 D32 B32": TIMED["2-D 56x56 K7 D32 B32"],
    "2-D 128x128 K7 D64": TIMED["2-D 128x128 K7 D64"],
    "2-D 128x128 K5 D64": attention((128, 128), (5, 5), 4, 8, 64),
    "2-D 96x96 K11 D64": attention((96, 96), (11, 11), 1, 8, 64),
    "2-D 96x96 K21 D64": attention((96, 96), (21, 21), 1, 8, 64),
    "2-D 64x64 K7 D128": attention((64, 64), (7, 7), 4, 8, 128),
    "3-D 16x32x32 K3,5,5 D32": attention((16, 32, 32), (3, 5, 5), 1, 4, 32),
    "3-D 12x40x40 K4,7,7 D64": attention((12, 40, 40), (4, 7, 7), 1, 4, 64),
}
WAYS = CHOSEN_ON | HELD_OUT
# Timed per executed brick, beside dense attention with the same head dim: few of its bricks have a mask, and a patch
# walks over many.
DENSE = {
    32: {"2-D 64x64 dense D32": attention((64, 64), (64, 64), 1, 16, 32)},
    64: {"2-D 64x64 dense D64": TIMED["2-D 64x64 dense D64"]},
    128: {"2-D 64x64 dense D128": attention((64, 64), (64, 64), 1, 16, 128)},
}
BRICKS = {
    "2-D 128x128 K40 D128": attention((128, 128), (40, 40), 1, 2, 128),
    "3-D 30x48x80 K18,24,24 D128": attention((30, 48, 80), (18, 24, 24), 1, 1, 128),
    "2-D 96x96 K21 D64 B4": attention((96, 96), (21, 21), 4, 8, 64),
    "2-D 96x96 K11 D64 B4": attention((96, 96), (11, 11), 4, 8, 64),
    "2-D 96x96 K9 D64 B4": attention((96, 96), (9, 9), 4, 8, 64),
    "2-D 128x128 K5 D64": HELD_OUT["2-D 128x128 K5 D64"],
    "2-D 128x128 K3 D32": CHOSEN_ON["2-D 128x128 K3 D32"],
    "3-D 32x32x32 K3 D32": CHOSEN_ON["3-D 32x32x32 K3 D32"],
    "2-D 64x64 K7 D128": HELD_OUT["2-D 64x64 K7 D128"],
    "1-D 65536 K64 D128": attention((65536,), (64,), 1, 4, 128),
}
BESIDE_DENSE = BRICKS | {name: one for found in DENSE.values() for name, one in found.items()}
# Timed to see what a team of simdgroups is worth in the backward. The first half was measured while teams were written
# and their size was chosen; the second was held out.
TEAM_CHOSEN_ON = {
    "2-D 128x128 K40 D128": attention((128, 128), (40, 40), 1, 2, 128),
    "2-D 64x64 K7 D128": HELD_OUT["2-D 64x64 K7 D128"],
    "2-D 64x64 dense D128": attention((64, 64), (64, 64), 1, 4, 128),
    "2-D 64x64 K7 D96": attention((64, 64), (7, 7), 4, 8, 96),
    "2-D 56x56 K7 D256": attention((56, 56), (7, 7), 2, 4, 256),
    "2-D 96x96 K21 D256": attention((96, 96), (21, 21), 1, 2, 256),
}
TEAM_HELD_OUT = {
    "3-D 30x48x80 K18,24,24 D128": attention((30, 48, 80), (18, 24, 24), 1, 1, 128),
    "1-D 65536 K64 D128": attention((65536,), (64,), 1, 4, 128),
    "2-D 96x96 K21 D128": attention((96, 96), (21, 21), 1, 4, 128),
    "3-D 16x24x24 K5 D128": attention((16, 24, 24), (5, 5, 5), 1, 4, 128),
    "2-D 80x80 K15 D96": attention((80, 80), (15, 15), 1, 8, 96),
    "2-D 64x64 K13 D256": attention((64, 64), (13, 13), 1, 4, 256),
}
TEAMS = TEAM_CHOSEN_ON | TEAM_HELD_OUT
# Timed on matrix units beside the planned 8x8 kernels: the fused problems of TIMED, and each rank with head dim 128.
MATRIX_UNITS = {name: one for name, one in TIMED.items() if one.op == "na"} | {
    name: (HELD_OUT | TEAMS)[name]
    for name in ("2-D 64x64 K7 D128", "2-D 128x128 K40 D128", "1-D 65536 K64 D128", "3-D 16x24x24 K5 D128")
}


def _small() -> dict[str, Problem]:
    """Small problems that together launch every template; small enough for the memory and race checkers."""
    base = attention((13, 11), (5, 7), 2, 2, 24)
    strided = replace(base, stride=(2, 3), is_causal=(False, True), heads=4, scale=0.3)
    flat = replace(
        attention((45,), (9,), 2, 4, 32), kv_heads=2, dilation=(2,), is_causal=(True,), additional=11, head_dim_v=16
    )
    deep = replace(attention((6, 7, 9), (3, 4, 5), 1, 2, 64), stride=(1, 2, 1), dilation=(1, 1, 2))
    return {
        "small 2-D bias, additional": replace(base, has_rpb=True, additional=19),
        "small 2-D strided, grouped": strided,
        "small 1-D dilated, causal, additional": flat,
        "small 3-D": deep,
        "small qk": replace(base, op="qk", head_dim_v=0, has_rpb=True, is_causal=(True, False)),
        "small av": replace(base, op="av", head_dim=0, is_causal=(True, False)),
        "small 3-D qk": replace(deep, op="qk", head_dim_v=0),
        "small 3-D av": replace(deep, op="av", head_dim=0),
    }


def _small_units() -> dict[str, Problem]:
    """Small problems whose rows are long enough for bricks of matrix units in rows of their own."""
    long = replace(attention((77,), (21,), 2, 4, 32), kv_heads=2, dilation=(2,), is_causal=(True,), head_dim_v=16)
    strided = replace(attention((9, 35), (4, 7), 1, 4, 24), kv_heads=2, stride=(2, 3), is_causal=(False, True))
    return {
        "small units 1-D dilated, causal, additional": replace(long, additional=19),
        "small units 2-D strided, grouped": replace(strided, scale=0.3),
        "small units 2-D D64": attention((14, 44), (9, 13), 1, 2, 64),
        "small units 3-D D128": attention((3, 5, 21), (2, 3, 5), 1, 2, 128),
    }


SMALL, SMALL_UNITS = _small(), _small_units()
UNTIMED = SMALL | SMALL_UNITS
PROBLEMS = TIMED | WAYS | BESIDE_DENSE | TEAMS | UNTIMED
SETS = {"TIMED": TIMED, "SMALL": SMALL, "CHOSEN_ON": CHOSEN_ON, "HELD_OUT": HELD_OUT, "BRICKS": BESIDE_DENSE}
SETS |= {"TEAM_CHOSEN_ON": TEAM_CHOSEN_ON, "TEAM_HELD_OUT": TEAM_HELD_OUT}
SETS |= {"MATRIX_UNITS": MATRIX_UNITS, "SMALL_UNITS": SMALL_UNITS}
SMALL_VARIANTS = ("plan", "flip", "run", "flat", "team", "team-flat")


# What a variant changes in every kernel that walks a box.
CHANGES: dict[str, Callable[[Instance], dict[str, Any]]] = {
    "plan": lambda i: {},
    "flip": lambda i: {"stage": not i.stage, "flat": False} if i.team == 1 else {},
    "bricks": lambda i: {"bricks": 3 - i.bricks},
    "flip-bricks": lambda i: {"stage": not i.stage and i.team == 1, "flat": False, "bricks": 3 - i.bricks},
    "run": lambda i: {},
    "flat": lambda i: {},
    "mpp-run": lambda i: {},
    "mpp-flat": lambda i: {},
    "alone": lambda i: {},
    "team": lambda i: {},
    "team-flat": lambda i: {},
}
# Variants whose walks are those of matrix units (here mma.sync), where these take the problem: whether bricks run on.
ON_MATRIX_UNITS = {"mpp-run": False, "mpp-flat": True}
# What flat bricks have to save before the planner takes them, in variants that decide it beforehand.
GAINS = {"run": math.inf, "flat": 0.0, "team-flat": 0.0}
# Registers that a patch may take before a team shares it: no team, or one wherever there can be one.
REGISTERS = {"alone": math.inf, "team": 0, "team-flat": 0}


@contextmanager
def thresholds(variant: str) -> Iterator[None]:
    """The planner's thresholds for flat bricks and for teams, changed for a while if the variant says so."""
    kept = tiling.FLAT_GAIN, tiling.MOST_REGISTERS
    tiling.FLAT_GAIN = GAINS.get(variant, kept[0])
    tiling.MOST_REGISTERS = REGISTERS.get(variant, kept[1])
    clear_all()
    try:
        yield
    finally:
        tiling.FLAT_GAIN, tiling.MOST_REGISTERS = kept
        clear_all()


@dataclass(frozen=True, slots=True)
class Job:
    """One program to run: the launches of a problem. direction: 'forward' or 'backward'; variant: a key of CHANGES."""

    problem: str
    dtype: str
    direction: str
    variant: str = "plan"

    @property
    def problem_in_dtype(self) -> Problem:
        """The problem in the job's dtype."""
        return replace(PROBLEMS[self.problem], dtype=self.dtype)

    @property
    def has_lse_grad(self) -> bool:
        """Whether the backward gets a gradient of lse; only the small fused problems do."""
        return self.problem in UNTIMED and self.problem_in_dtype.op == "na"

    @property
    def launches(self) -> tuple[Launch, ...]:
        """The planner's launches on contiguous tensors, the variant applied to those that walk."""
        p = self.problem_in_dtype
        with thresholds(self.variant):
            forward = self.direction == "forward"
            made = op_launches.forward(p) if forward else op_launches.backward(p, self.has_lse_grad)
        return tuple(_changed(launch, p, self.variant) for launch in made)


def _changed(launch: Launch, problem: Problem, variant: str) -> Launch:
    if not launch.instance.record.walks:
        return launch
    if variant in ON_MATRIX_UNITS:
        launch = _on_matrix_units(launch, problem, ON_MATRIX_UNITS[variant])
    instance = launch.instance
    # Staging copies 16 bytes at a time where head dims are full and every token starts at a 16-byte boundary. That
    # holds for fresh contiguous tensors with full head dims, but not always for rows of window slots.
    slotted = any(name in ("attn", "logits_grad") for _, name in launch.inputs)
    odd = slotted and problem.slots * ITEM_SIZES[problem.dtype] % 16 != 0
    instance = replace(instance, wide=fills_words(launch) and not odd)
    return replace(launch, instance=replace(instance, **CHANGES[variant](instance)))


def _on_matrix_units(launch: Launch, problem: Problem, flat: bool) -> Launch:
    i = launch.instance
    found = [] if i.of_additional else tiling.on_matrix_units(problem, i.record, i.dim, i.dim_v, 4, every=False)
    chosen = next((candidate for candidate in found if candidate.flat == flat), None)
    return launch if chosen is None else Trial(problem, i.record, chosen).launch


def chosen(problems: list[str], variants: list[str], dtypes: list[str]) -> list[Job]:
    """The jobs of some problems (none: all of TIMED and SMALL), and of all that a name of a set stands for.

    In each variant (none: timed ones as planned, small ones in every way); timed ones in each dtype (none: DTYPES).
    Without variants on matrix units where these take no walk of the problem.
    """
    found = []
    for name in [one for given in problems or ["TIMED", "SMALL"] for one in SETS.get(given, (given,))]:
        small = name in UNTIMED
        for dtype in SMALL_DTYPES if small else dtypes or DTYPES:
            for variant in variants or (SMALL_VARIANTS if small else ["plan"]):
                both = [Job(name, dtype, direction, variant) for direction in ("forward", "backward")]
                if variant not in ON_MATRIX_UNITS or any(instance.mpp for instance in instances(both)):
                    found += both
    return found


def instances(of: list[Job]) -> list[Instance]:
    """Every kernel that the jobs launch, each once."""
    return list(dict.fromkeys(launch.instance for job in of for launch in job.launches))
