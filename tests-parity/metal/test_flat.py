"""Flat bricks: the positions that their words hold, and calls of both packages that run them."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any

import frameworks
import pytest
import tolerances
from cases import make
from frameworks import MLX, MPS, Path

from natten_mps._metal.metal.flat import LONGEST_BOX, fits
from natten_mps._metal.metal.source import KERNELS
from natten_mps._metal.metal.templates import TEMPLATES
from natten_mps._metal.metal.tiles import axis_boxes, padded_dim
from natten_mps._metal.metal.tiling import FLAT_GAIN, by_rule, candidates
from natten_mps._metal.problem.problem import Problem

from .host import EmulatedHost
from .launch import kernels
from .pool import KITS
from .test_tiles import problem, small_problem
from .verify import check_launch, sample_of

if TYPE_CHECKING:
    from .mlx_host import EmulatedMlxHost

WALKS = ("na_fwd", "na_bwd_dq", "na_bwd_dkv")
# The planner takes flat bricks for all three walks of this case.
CASE = make("img-flat-bricks", (9, 11), 3, heads=1, head_dim=8)


# --- positions ---------------------------------------------------------------------------------------


def test_the_longest_box_is_what_the_fields_of_a_word_hold() -> None:
    """The numbers of kernels/flat.h and of metal/flat.py; the highest bit of a field is free, and no two overlap."""
    text = (KERNELS / "flat.h").read_text(encoding="ascii")
    bits = re.search(r"BITS = RANK == 2 \? (\d+) : (\d+);", text)
    tops = re.search(r"TOPS = RANK == 2 \? (0x[0-9a-f]+)u : (0x[0-9a-f]+)u;", text)
    assert bits and tops and "MOST = (1 << (BITS - 1)) - 1;" in text
    for rank, wide, top in zip((2, 3), map(int, bits.groups()), tops.groups(), strict=True):
        assert LONGEST_BOX[rank] == 2 ** (wide - 1) - 1
        assert rank * wide <= 32 and int(top, 16) == sum(1 << (axis * wide + wide - 1) for axis in range(rank))


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("template", ["na_fwd", "na_bwd_dkv"])
def test_the_longest_box_runs(template: str, axis: int) -> None:
    """511 columns on one axis of three: queries and keys at its ends see what they should, in both walks."""
    kit = next(kit for kit in KITS if kit.name == "vol-flat")
    instance, ones = kit.instances[template], (1, 1, 1)
    transposed, rng = instance.record.transposed, random.Random(f"{template}/{axis}")
    changed: dict[str, Any] = {"shape": [1, 1, 1], "kernel_size": [1, 1, 1]}
    # All queries see the key in the middle of an axis that is shorter than two windows.
    n, window = (LONGEST_BOX[3], 300) if transposed else (600, LONGEST_BOX[3] + 1 - instance.patch[axis])
    changed["shape"][axis], changed["kernel_size"][axis] = n, window
    changed = {name: tuple(values) for name, values in changed.items()} | {"is_causal": (False,) * 3, "piece": None}
    changed |= {"stride": ones, "dilation": ones, "batch": 1, "heads": 1, "kv_heads": 1}
    sample = sample_of(kit, rng, axis, **changed)
    lengths = [length for length, _ in axis_boxes(sample.problem.axes[axis], transposed, instance.patch[axis])]
    assert max(lengths) == LONGEST_BOX[3] and fits(sample.problem, instance.patch, transposed)
    check_launch(sample, instance, kernels([kit.instances[template]])[instance], rng, "forward")


# --- who chooses them --------------------------------------------------------------------------------


def test_the_rule_has_a_threshold_and_measured_costs_have_none() -> None:
    """Candidates hold flat ones wherever positions fit their words; and what the rule chooses."""
    rng, met = random.Random(11), set()
    for _ in range(60):
        one = small_problem(rng)
        for name in WALKS:
            template, dims = TEMPLATES[name], (padded_dim(one.head_dim), padded_dim(one.head_dim_v))
            arguments = one, template, *dims, 8, not template.transposed
            found, rule = list(candidates(*arguments)), by_rule(*arguments)
            assert len(set(found)) == len(found) and rule in found
            assert any(candidate.flat for candidate in found) == (one.rank > 1)
            met.add((one.rank > 1, rule.flat))
    assert met == {(False, False), (True, False), (True, True)}
    saves_little = problem((56, 56), 7, 32, 1)
    arguments = saves_little, TEMPLATES["na_fwd"], 32, 32, 8, True
    assert FLAT_GAIN > 1 and not by_rule(*arguments).flat and any(c.flat for c in candidates(*arguments))


# --- from end to end ---------------------------------------------------------------------------------


def flags(name: str) -> str:
    """The letters at the end of a kernel's name (source.py)."""
    return name.rpartition("_")[2]


def planned_flat(one: Problem) -> None:
    for name in WALKS:
        template, dim = TEMPLATES[name], padded_dim(one.head_dim)
        assert by_rule(one, template, dim, dim, 8, not template.transposed).flat, name


def test_natten_mps_runs_flat_kernels(metal: EmulatedHost) -> None:
    """Forward and backward: each walk ran once and flat, and results are within bounds."""
    planned_flat(CASE.problem("float16"))
    found, _ = frameworks.run.__wrapped__(Path(MPS, "metal"), CASE, "float16")
    tolerances.assert_within(found, tolerances.fused(CASE, "float16"), "flat in natten_mps")
    walks = [name for name in metal.names if name.startswith(WALKS)]
    assert [name.partition("_r2")[0] for name in walks] == list(WALKS)
    assert all("f" in flags(name) for name in walks), walks


def test_natten_mlx_runs_flat_kernels(mlx_metal: EmulatedMlxHost) -> None:
    planned_flat(CASE.problem("float16"))
    found, _ = frameworks.run.__wrapped__(Path(MLX, "fast_metal"), CASE, "float16")
    tolerances.assert_within(found, tolerances.fused(CASE, "float16"), "flat in natten_mlx")
    walks = [launch.name for launch in mlx_metal.ran if launch.name.startswith(WALKS)]
    assert {name.partition("_r2")[0] for name in walks} == set(WALKS)
    assert all("f" in flags(name) for name in walks), walks
