"""Plans of thousands of problems: every row once, within Metal's limits, exactly counted work."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import tolerances
from cases import Case, inputs, lse_dtype

from natten_mps._metal.metal.costs import UnitCosts, microseconds
from natten_mps._metal.metal.counts import counts_of
from natten_mps._metal.metal.flat import LONGEST_BOX, bricks_of, fits
from natten_mps._metal.metal.op_launches import PARAMS, Launch, backward, forward
from natten_mps._metal.metal.source import ITEM_SIZES, THREADGROUP_BYTES, Instance
from natten_mps._metal.metal.templates import TEMPLATES
from natten_mps._metal.metal.tiles import count_bricks, patches
from natten_mps._metal.metal.tiling import FLAT_GAIN, MOST_REGISTERS, Target, candidates
from natten_mps._metal.plan.costs import predicted as chip_costs
from natten_mps._metal.plan.device import Device
from natten_mps._metal.plan.limits import metal_limit
from natten_mps._metal.problem.problem import Piece, Problem

from .launch import run_all, tiles_of
from .pool import PIECES, piece_of
from .verify import check_work
from .work import bricks_by_force, dispatched_rows, work_of
from .work_table import NAMED, TABLE, problem, text, useful

GPU = Device("gpu", "some gpu", float64=False)
MAX_THREADS = 1024
PROBLEMS = 2000


def perhaps_a_piece(whole: Problem, rng: random.Random) -> Problem:
    """A random piece of a problem, or all of it."""
    if rng.random() >= PIECES:
        return whole
    window = whole.kernel_size, whole.stride, whole.dilation, whole.is_causal
    ranges = piece_of(whole.query_shape, window, rng)
    (queries, query_start), (keys, key_start) = (
        (tuple(high - low for low, high in side), tuple(low for low, _ in side)) for side in ranges
    )
    piece = Piece(whole.full_shape, query_start, key_start)
    return replace(whole, query_shape=queries, key_shape=keys, piece=piece)


def random_problem(rng: random.Random) -> Problem:
    """Any problem that a user might have: short and long axes, small and whole windows, pieces."""
    rank = rng.randint(1, 3)
    longest = {1: (9, 300, 5000), 2: (6, 40, 300), 3: (4, 14, 60)}[rank]
    shape = tuple(rng.randint(1, rng.choice(longest)) for _ in range(rank))
    dilation = tuple(rng.choice((1, 1, rng.randint(1, min(n, 9)))) for n in shape)
    kernel = tuple(
        rng.choice((1, rng.randint(1, n // d), min(7, n // d), n // d)) for n, d in zip(shape, dilation, strict=True)
    )
    op = rng.choice(("na", "na", "na", "qk", "av"))
    rpb = op != "av" and rng.random() < 0.2
    stride = tuple(1 if rpb else rng.choice((1, rng.randint(1, w))) for w in kernel)
    kv_heads = rng.randint(1, 3)
    dims = [rng.choice((1, 8, 16, 24, 32, 40, 64, 80, 96, 128, 192, 256)) for _ in range(2)]
    whole = Problem(
        op,
        rng.randint(1, 3),
        shape,
        shape,
        kv_heads * rng.choice((1, 1, 2, 3, 4, 8)),
        kv_heads,
        0 if op == "av" else dims[0],
        0 if op == "qk" else dims[1],
        kernel,
        stride,
        dilation,
        tuple(rng.random() < 0.3 for _ in shape),
        0.3,
        rng.choice(("float32", "float16", "bfloat16")),
        rng.choice((0, 0, 1, 30, 200)) if op == "na" else 0,
        rpb,
    )
    return perhaps_a_piece(whole, rng)


def param(launch: Launch, name: str) -> tuple[int, ...]:
    first, count = PARAMS[name]
    return launch.params[first : first + count]


def check_limits(problem: Problem, launch: Launch) -> None:
    """Assert that a launch is within Metal's limits, and that its grid reaches every row once."""
    i, p = launch.instance, problem
    assert i.threadgroup_bytes <= THREADGROUP_BYTES
    assert 0 < launch.threads <= MAX_THREADS and launch.threads % 32 == 0
    assert min(launch.grid) >= 1 and max(launch.grid) < 2**31
    if i.template in ("na_delta", "na_sum"):
        rows, each = param(launch, "kRowCount")[0], launch.threads // 8 if i.template == "na_delta" else launch.threads
        assert (launch.grid[0] - 1) * each < rows <= launch.grid[0] * each and launch.grid[1:] == (1, 1)
        return
    assert launch.threads == 32 * i.simdgroups * i.team and math.prod(i.patch) * i.heads == 8
    (parts,) = param(launch, "kParts")
    if i.of_additional:
        tiles, rest = divmod(launch.grid[1], parts)
        assert rest == 0 and (tiles - 1) * 8 * i.simdgroups < p.additional <= tiles * 8 * i.simdgroups
        assert launch.grid[::2] == (p.kv_heads, p.batch) and parts <= p.query_shape[0]
        return
    tiles = param(launch, "kTiles")[: p.rank]
    assert tiles == tiles_of(p, i)
    assert (dispatched_rows(p, i, tiles) == 1).all()
    if i.template == "na_rpb":
        assert launch.grid == (p.heads, parts, 1) and 1 <= parts <= math.prod(tiles) * math.prod(p.dilation) * p.batch
        assert i.table >= math.prod(2 * w - 1 for w in p.kernel_size)
        return
    heads = p.kv_heads if i.record.transposed else p.heads // i.heads
    assert launch.grid == (heads, math.prod(tiles), p.batch * math.prod(p.dilation))
    assert p.group_heads % i.heads == 0


def check_team(launch: Launch, max_simdgroups: int) -> None:
    """Assert that two simdgroups share a patch exactly where its rows and sums need more registers than one may use."""
    i = launch.instance
    alone = replace(i, team=1, part=0)
    # Elements of rows and sums, 64 of an 8x8 fragment in 32 lanes; sums are float.
    blocks = {"na_bwd_dq": (i.dim + i.dim_v, i.dim), "na_bwd_dkv": (i.dim + i.dim_v, i.dim + i.dim_v)}
    rows, sums = blocks.get(i.template, (0, 0))
    wanted = rows * ITEM_SIZES[i.dtype] // 16 + sums // 4
    assert not sums or alone.registers == wanted
    shared = wanted > MOST_REGISTERS and i.dim == i.dim_v and max_simdgroups > 1 and not i.of_additional
    assert i.team == (2 if shared else 1), (i.name, wanted)
    if shared:
        assert i.simdgroups == 1 and not i.stage and i.threadgroup_bytes == 1024 * i.bricks
        assert replace(i, part=0).registers * 2 == wanted


@pytest.mark.parametrize("max_simdgroups", [1, 4, 8])
def test_plans(max_simdgroups: int) -> None:
    rng, planned, shared, seen = random.Random(max_simdgroups), 0, 0, set()
    for _ in range(PROBLEMS):
        one = random_problem(rng)
        if metal_limit(one):
            continue
        target = Target(max_simdgroups)
        for launch in (*forward(one, target), *backward(one, True, target)):
            check_limits(one, launch)
            check_team(launch, max_simdgroups)
            assert launch.simdgroups <= max_simdgroups or launch.instance.template in ("na_delta", "na_sum")
            planned += 1
            seen |= {(launch.instance.template, launch.instance.stage), launch.instance.patch, launch.instance.heads}
            shared += launch.instance.team > 1
    assert planned > 2 * PROBLEMS
    walking = [template.name for template in TEMPLATES.values() if template.walks]
    assert seen >= {(template, stage) for template in walking for stage in (True, False)}
    assert shared > PROBLEMS // 50 if max_simdgroups > 1 else not shared
    assert seen >= {(1, 1, 8), (1, 8, 1), (2, 2, 2), 1, 2, 4, 8}


def small_problem(rng: random.Random) -> Problem:
    rank = rng.randint(1, 3)
    shape = tuple(rng.randint(1, {1: 40, 2: 10, 3: 5}[rank]) for _ in range(rank))
    dilation = tuple(rng.randint(1, min(3, n)) for n in shape)
    kernel = tuple(rng.randint(1, n // d) for n, d in zip(shape, dilation, strict=True))
    stride = tuple(rng.choice((1, rng.randint(1, w))) for w in kernel)
    causal = tuple(rng.random() < 0.4 for _ in shape)
    heads = rng.choice((1, 2, 4, 8))
    whole = Problem("na", 1, shape, shape, heads, 1, 8, 8, kernel, stride, dilation, causal, 1.0, "float32")
    return perhaps_a_piece(whole, rng)


def test_bricks_are_counted_exactly() -> None:
    """For all patches of small problems, the planner's count, a simulated launch, and a count over all pairs agree."""
    rng, full_ones = random.Random(0), 0
    for _ in range(400):
        one = small_problem(rng)
        for transposed in (False, True):
            for heads in (h for h in (1, 2, 4, 8) if one.heads % h == 0 and (h == 1 or not transposed)):
                for patch in patches(one.rank, heads):
                    found = count_bricks(one, patch, heads, transposed)
                    wanted = bricks_by_force(one, patch, heads, transposed)
                    assert (found.executed, found.full) == wanted, (one, patch, heads, transposed)
                    template = "na_bwd_dkv" if transposed else "na_fwd"
                    instance = Instance(template, "float32", one.rank, 16, 16, patch, heads, rng.randint(1, 3))
                    assert work_of(one, instance).bricks == wanted
                    full_ones += found.full
    assert full_ones > 1000


def test_flat_bricks_are_counted_exactly() -> None:
    """For all patches of small problems: sums over axes are the boxes of all patches, counted one by one."""
    rng, run_on = random.Random(2), 0
    for _ in range(150):
        one = small_problem(rng)
        if one.rank == 1:
            continue
        for transposed in (False, True):
            for heads in (h for h in (1, 2, 4, 8) if one.heads % h == 0 and (h == 1 or not transposed)):
                for patch in patches(one.rank, heads):
                    found = bricks_of(one, patch, heads, transposed, flat=True)
                    template = "na_bwd_dkv" if transposed else "na_fwd"
                    kernel = Instance(
                        template, "float32", one.rank, 16, 16, patch, heads, rng.randint(1, 3), stage=False, flat=True
                    )
                    assert found == work_of(one, kernel).bricks, (one, patch, heads, transposed)
                    run_on += found.executed < count_bricks(one, patch, heads, transposed).executed
                    assert found.executed <= count_bricks(one, patch, heads, transposed).executed
    assert run_on > 500


@pytest.mark.parametrize("rank", [2, 3])
def test_positions_of_flat_bricks_fit_their_fields(rank: int) -> None:
    """The longest box that kernels/flat.h can number, and one that is a column longer."""
    longest, patch = LONGEST_BOX[rank], (1, 1, 8)
    for window, fitting in ((longest - 7, True), (longest - 6, False)):
        shape = (*(2,) * (rank - 1), 2 * longest)
        one = problem(shape, (*(1,) * (rank - 1), window), 8, 1)
        assert fits(one, patch, False) == fitting
    assert not fits(problem((50,), 7, 8, 1), patch, False)


def test_bricks_of_full_attention() -> None:
    """Queries and keys differ in number; if causal, with more keys than queries, no query sees some of the keys."""
    for queries, keys, causal in itertools.product((1, 9, 24, 61), (1, 8, 33, 60), (False, True)):
        shapes, window = ((queries,), (keys,)), (max(queries, keys),)
        one = Problem("attention", 1, *shapes, 1, 1, 8, 8, window, (1,), (1,), (causal,), 1.0, "float32")
        for template, transposed in (("na_fwd", False), ("na_bwd_dkv", True)):
            instance = Instance(template, "float32", 1, 16, 16)
            found = count_bricks(one, instance.patch, 1, transposed)
            assert (found.executed, found.full) == work_of(one, instance).bricks, (queries, keys, causal, template)


def test_the_planned_patch_executes_the_fewest_bricks() -> None:
    """In rows of their own, or flat where that saves enough of them, columns are read directly and the walk gains."""
    rng, met = random.Random(1), set()
    for _ in range(300):
        one = replace(small_problem(rng), dtype=rng.choice(("float16", "float32")))
        for launch in (*forward(one), *backward(one, False)):
            i, transposed = launch.instance, launch.instance.record.transposed
            if not i.record.walks:
                continue
            choices = [
                (patch, h)
                for h in ((1,) if transposed else (1, 2, 4, 8))
                if one.heads % h == 0
                for patch in patches(one.rank, h)
            ]
            run, flat = (
                min(bricks_of(one, patch, h, transposed, way).executed for patch, h in choices) for way in (False, True)
            )
            slower = transposed and one.dtype == "float32"
            runs_on = not i.stage and one.rank > 1 and flat * FLAT_GAIN <= run and not slower
            assert i.flat == runs_on and launch.bricks == (flat if runs_on else run) * one.batch * one.kv_heads
            assert not i.flat or launch.full == 0
            met.add((i.template, i.flat, slower and flat * FLAT_GAIN <= run))
    walks = itertools.product(("na_fwd", "na_bwd_dq", "na_bwd_dkv"), (False, True), (False,))
    assert met == {*walks, ("na_bwd_dkv", False, True)}


# --- known problems ----------------------------------------------------------------------------------


def test_the_committed_table_is_up_to_date() -> None:
    """After a change of the planner, run ``python -m metal.work_table --write`` and look at what changed."""
    assert TABLE.read_text(encoding="ascii") == text()


def ratios(name: str) -> dict[str, float]:
    """Executed work over useful work, by template."""
    one = NAMED[name]
    return {s.instance.template: s.bricks / useful(one) for s in (*forward(one), *backward(one, False)) if s.bricks}


@pytest.mark.parametrize("name", ["FLUX 256x256 K80", "Hunyuan 30x48x80 K18x24x24"])
def test_large_windows_at_stride_one_waste_little(name: str) -> None:
    found = ratios(name)
    assert set(found) == {"na_fwd", "na_bwd_dq", "na_bwd_dkv"}
    assert all(1 <= ratio <= 1.2 for ratio in found.values()), found


@pytest.mark.parametrize("name", ["FLUX 256x256 K80 s16", "Hunyuan 30x48x80 K18x24x24 s16x8x8"])
def test_strides_that_fit_the_tiles_waste_nothing(name: str) -> None:
    """Exactly the bricks that the windows consist of, all of them without a mask."""
    one = NAMED[name]
    assert all(ratio == 1 for ratio in ratios(name).values())
    assert all(launch.full == launch.bricks for launch in (*forward(one), *backward(one, False)))


SCALED = {
    "FLUX": problem((32, 32), 10, 32, 2),
    "FLUX, stride": problem((32, 32), 16, 32, 2, s=8),
    "Hunyuan": problem((6, 12, 16), (4, 6, 6), 32, 1),
    "Hunyuan, stride": problem((6, 8, 24), (4, 4, 8), 32, 1, s=(4, 4, 8)),
    "NAT": problem((28, 28), 7, 32, 1),
    "DiNAT, grouped": problem((20, 20), 5, 32, 4, d=(4, 2), kv_heads=1),
    "causal": problem((200,), 64, 32, 1, causal=True),
    # Windows of many bricks, which waste as little as those of full size.
    "FLUX, large windows": problem((20, 80), (16, 64), 16, 1),
    "FLUX, wide windows": problem((24, 80), (20, 56), 16, 1),
    "Hunyuan, large windows": problem((5, 12, 32), (4, 10, 24), 16, 1),
}
# The full-size problems that the last three stand for.
FULL_SIZE = {
    "FLUX, large windows": "FLUX 256x256 K80",
    "FLUX, wide windows": "FLUX 256x256 K80",
    "Hunyuan, large windows": "Hunyuan 30x48x80 K18x24x24",
}
# Tensors that later launches read.
BETWEEN = ("delta", "stats")
LONG = ("FLUX, wide windows", "Hunyuan, large windows")


def query_walks(launches: Iterable[Launch]) -> dict[str, bool]:
    """Whether templates whose rows are queries stage their columns. (In the key walk, that depends on the size.)"""
    walks = [launch.instance for launch in launches if launch.bricks and not launch.instance.record.transposed]
    return {instance.template: instance.stage for instance in walks}


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.all] if name in LONG else []) for name in SCALED]
)
def test_planned_work_is_what_runs(name: str) -> None:
    """Well-known problems, scaled down and executed: exactly the planned bricks and reads, and correct results."""
    one = SCALED[name]
    case = Case(
        f"scaled/{name}",
        one.query_shape,
        one.kernel_size,
        one.stride,
        one.dilation,
        one.is_causal,
        one.batch,
        one.heads,
        one.kv_heads,
        one.head_dim,
        one.head_dim_v,
    )
    assert case.problem("float16") == replace(one, scale=case.factor)
    arrays = inputs(case, "float16")
    launches = (*forward(one), *backward(one, True))
    tensors = arrays | {"out_grad": arrays["d_out"], "lse_grad": arrays["d_lse"]}
    runs = run_all(launches, tensors)
    found = {}
    for done in runs.values():
        done.assert_written_once()
        assert done.bricks == (done.launch.bricks, done.launch.full)
        if done.launch.bricks:
            check_work(one, done, *param(done.launch, "kParts"))
        found |= {output: laid.values for output, laid in done.outputs.items() if output not in BETWEEN}
    values = {name.removesuffix("_grad"): array for name, array in found.items()}
    tolerances.assert_within(values, tolerances.fused(case, "float16"), name)
    executed = {
        done.launch.instance.template: done.launch.bricks / useful(one) for done in runs.values() if done.launch.bricks
    }
    if "stride" in name:
        assert set(executed.values()) == {1.0}
    if name in FULL_SIZE:
        full = NAMED[FULL_SIZE[name]]
        assert max(executed.values()) <= 1.2
        assert query_walks(launches) == query_walks((*forward(full), *backward(full, True)))
    assert len(executed) == 3 and min(executed.values()) >= 1
    assert lse_dtype("float16") == "float32" and np.isfinite(values["lse"]).all()


def test_tables_leave_no_room_for_staged_columns() -> None:
    """The gradient of the bias has tables of sums there: neither the rule nor measured costs stage."""
    one = replace(problem((64, 96), 31, 64, 1), has_rpb=True)
    for template in (TEMPLATES["na_rpb"], TEMPLATES["na_bwd_dq"]):
        found = candidates(one, template, 64, 64, 8, False)
        assert any(c.stage for c in found) == found[0].stage == template.walks, template.name
    costs = replace(chip_costs("Apple M3"), measured=True)
    (launch,) = (n for n in backward(one, False, Target(costs=costs)) if n.instance.template == "na_rpb")
    assert not launch.instance.stage and launch.instance.threadgroup_bytes == 4 * launch.instance.table * (
        launch.instance.simdgroups
    )


def test_measured_costs_choose_the_smallest_predicted_time() -> None:
    """What the planner compares is what a launch is predicted to take, grid, bytes and factors of kinds included."""
    factors = {"na_fwd half direct": 1.3, "na_fwd half flat 2-D 64 1x2x4": 0.7}
    costs = replace(chip_costs("Apple M3"), measured=True, kinds=factors)
    for one in (problem((40, 56), 9, 64, 1), replace(problem((41, 30), 5, 64, 1), dilation=(2, 4))):
        for own in (costs, replace(costs, kinds={})):

            def predicted(launch: Launch, one: Problem = one, own: UnitCosts = own) -> float:
                return microseconds(launch.instance, counts_of(one, launch), own)

            every = [
                forward(one, Target(candidate=c))[0] for c in candidates(one, TEMPLATES["na_fwd"], 64, 64, 8, True)
            ]
            (chosen,) = forward(one, Target(costs=own))
            assert predicted(chosen) == pytest.approx(min(map(predicted, every)), rel=1e-12)
