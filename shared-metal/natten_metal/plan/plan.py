"""What will run, as frozen data: ``plan(problem, device, backend, tiers) -> Plan``.

The planner decides and the launchers obey: a plan names the path, says why in one sentence, and holds
whatever the path needs: the walks of the pure path, or the launches of the Metal kernels. A fallback is a
plan too, with its reason.
"""

import itertools
from dataclasses import dataclass, replace
from functools import lru_cache

from ..metal import steps
from ..problem import checks
from ..problem.problem import OUTPUTS, Axis, Problem, describe
from . import limits, verdicts
from .backends import KernelFailure
from .blocks import AxisBlocks, Blocks, box_size, tiles_per_group
from .device import Device

# Bytes of logits that one step of a walk may hold, of what it gathers for them, and of logits in a single tile. A
# tile of one row is taken whatever it holds: less than all keys of all heads.
STEP_BYTES = 4 << 20
GATHER_BYTES = 64 << 20
TILE_BYTES = 64 << 20
TILES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)

# Measured costs on a two-core x86-64 CPU with torch, in units of one multiply-accumulate of its matrix product:
# per (row, column) pair for mask and softmax, per element gathered, per tile for a small product's start.
PAIR_COST = 70
GATHER_COST = 14
TILE_COST = 20_000


# Tiers that launch the Metal kernels, and those that run the CPU kernels. 'nanobind' does what its stream's device
# asks for.
METAL_TIERS = ("metal", "fast_metal", "nanobind")
CPU_TIERS = ("native", "nanobind")


@dataclass(frozen=True, slots=True)
class Plan:
    """What will run. path: the tier. why: one sentence.

    queries: the pure path's walk; keys: the second one of its split ops' gradients. forward: the Metal path's launches
    (their gradients' are :func:`.steps.backward`). failed: what keeps 'auto' from a faster tier; whoever runs the plan
    warns of it.
    """

    problem: Problem
    path: str
    why: str
    queries: Blocks | None = None
    keys: Blocks | None = None
    forward: tuple[steps.Step, ...] = ()
    failed: KernelFailure | None = None


def obstacle(problem: Problem, device: Device, tier: str) -> str | None:
    """Why ``tier`` cannot take ``problem`` on ``device``; None if it can."""
    reason = _rule(problem, device, tier)
    if reason is None and (failure := _forward_failure(problem, device, tier)) is not None:
        return str(failure)
    return reason


def _rule(problem: Problem, device: Device, tier: str) -> str | None:
    """The rule that ``tier`` breaks; None if it takes ``problem`` wherever its kernels run."""
    missing = device.reason_missing(tier)
    if missing is not None:
        return missing
    if problem.dtype == "float64" and not device.float64:
        return f"{device.name} does not compute in float64; the CPU does"
    if device.longest is not None and (reason := limits.too_long(problem, tier, device.longest)):
        return reason
    if tier in METAL_TIERS + CPU_TIERS and (reason := limits.too_large(problem)):
        return reason
    if not launches_metal(tier, device):
        return None
    smallest = device.smallest if tier == "fast_metal" else 1
    return limits.obstacle(problem, smallest)


def _forward_failure(problem: Problem, device: Device, tier: str) -> KernelFailure | None:
    """The failure of a kernel that ``problem`` would launch."""
    if not launches_metal(tier, device) or not problem.batch:
        return None
    return verdicts.failure_of(steps.forward(problem, most_simdgroups(problem, tier)))


def gradient_failure(problem: Problem, device: Device, tier: str) -> KernelFailure | None:
    """The failure of a kernel that the gradients of ``problem`` would launch: the pure path computes them then."""
    if not launches_metal(tier, device) or not problem.batch:
        return None
    has_lse_grad = OUTPUTS[problem.op] > 1
    return verdicts.failure_of(steps.backward(problem, has_lse_grad, most_simdgroups(problem, tier)))


def launches_metal(tier: str, device: Device) -> bool:
    """Whether ``tier`` launches the Metal kernels on ``device``; those that run the CPU kernels take every problem."""
    return tier in METAL_TIERS and not (tier in CPU_TIERS and device.kind == "cpu")


@lru_cache(maxsize=1024)
def plan(problem: Problem, device: Device, backend: str, tiers: tuple[str, ...]) -> Plan:
    """The plan of ``problem``: the first of ``tiers`` that can take it, or the one that ``backend`` names.

    Raises NotImplementedError with the reason if ``backend`` cannot take it, or if nothing can; and the KernelFailure
    again if the kernels of ``backend`` failed on this machine.
    """
    if backend != "auto":
        reason = _rule(problem, device, backend)
        if reason is not None:
            checks.reject_problem(problem.name, backend, reason)
        failure = _forward_failure(problem, device, backend)
        if failure is not None:
            raise failure
        return _plan_of(problem, device, backend, f"backend='{backend}' was asked for")
    reasons = {tier: obstacle(problem, device, tier) for tier in tiers}
    for tier in tiers:
        if reasons[tier] is None:
            passed = [f"{other}: {reasons[other]}" for other in tiers[: tiers.index(tier)]]
            planned = _plan_of(problem, device, tier, "; ".join(passed) or "the fastest path that takes this problem")
            return replace(planned, failed=_failure_before(problem, device, tiers[: tiers.index(tier)]))
    raise checks.no_backend(problem.name, reasons)


verdicts.depends(plan.cache_clear)


def _failure_before(problem: Problem, device: Device, tiers: tuple[str, ...]) -> KernelFailure | None:
    """The failure that took the first of ``tiers`` out of the choice, if one did."""
    able = (tier for tier in tiers if _rule(problem, device, tier) is None)
    return next((failure for tier in able if (failure := _forward_failure(problem, device, tier))), None)


def _plan_of(problem: Problem, device: Device, tier: str, why: str) -> Plan:
    if tier == "pure":
        second = walk(problem, transposed=True) if problem.op in ("qk", "av") else None
        return Plan(problem, tier, why, walk(problem, transposed=False), second)
    if launches_metal(tier, device) and problem.batch:
        return Plan(problem, tier, why, forward=steps.forward(problem, most_simdgroups(problem, tier)))
    return Plan(problem, tier, why)


def most_simdgroups(problem: Problem, tier: str) -> int:
    """Simdgroups that a tier's threadgroups may have; the launcher of 'metal' asks each kernel and lowers it."""
    return steps.MOST_SIMDGROUPS if tier == "metal" else steps.cautious_simdgroups(problem)


def walk(problem: Problem, transposed: bool) -> Blocks:
    """The cheapest tiles by the cost model, and how many fit a step's memory."""
    size = 8 if problem.dtype == "float64" else 4
    heads, group = problem.heads, problem.group_heads
    width = problem.head_dim + problem.head_dim_v
    best: tuple[float, tuple[AxisBlocks, ...]] | None = None
    for tiles in itertools.product(*(_tiles(axis, transposed) for axis in problem.axes)):
        axes = tuple(
            AxisBlocks(axis, transposed, tile, box_size(axis, transposed, tile))
            for axis, tile in zip(problem.axes, tiles, strict=True)
        )
        blocks = Blocks(axes, 1, 1)
        rows, columns = blocks.tile_rows, blocks.box_columns + (0 if transposed else problem.additional)
        if rows * columns * heads * size > TILE_BYTES and max(tiles) > 1:
            continue
        pairs = group * rows * columns
        # Grouped heads ride with the queries: rows of the one walk, columns of the other.
        gathered = (columns + group * rows) if not transposed else (rows + group * columns)
        cost = blocks.tiles * (pairs * (width + PAIR_COST) + gathered * width * GATHER_COST + TILE_COST)
        if best is None or cost < best[0]:
            best = (cost, axes)
    assert best is not None, "a tile of one row is taken whatever it holds"
    blocks = Blocks(best[1], 1, 1)
    rows, columns = blocks.tile_rows, blocks.box_columns
    gathered = (columns + group * rows if not transposed else rows + group * columns) * problem.kv_heads * width * size
    per_tile = rows * (columns + (0 if transposed else problem.additional)) * heads * size
    most = min(STEP_BYTES // per_tile, GATHER_BYTES // gathered)
    batch_step = max(1, min(problem.batch, most))
    return Blocks(best[1], max(1, min(blocks.tiles, most // batch_step)), batch_step)


def _tiles(axis: Axis, transposed: bool) -> list[int]:
    """Candidate tiles of an axis: a fixed table, whole axes, and multiples of the stride."""
    rows = axis.keys if transposed else axis.queries
    longest = tiles_per_group(rows, axis.dilation, 1)
    tiles = {tile for tile in TILES if tile <= longest}
    if longest <= TILES[-1]:
        tiles.add(longest)
    if axis.stride > 1:
        tiles |= {m * axis.stride for m in (1, 2, 4, 8) if m * axis.stride <= longest}
    return sorted(tiles)


def explain(planned: Plan, device: Device) -> str:
    """The plan in words: the problem, the path and why, and the walks if it has them."""
    lines = [describe(planned.problem), f"device: {device.name}", f"path: {planned.path} ({planned.why})"]
    for name, blocks in (("queries", planned.queries), ("keys", planned.keys)):
        if blocks is not None:
            tile = tuple(axis.tile for axis in blocks.axes)
            box = tuple(axis.box for axis in blocks.axes)
            whole = "forward and backward" if planned.keys is None else "forward and gradients of queries"
            purpose = whole if name == "queries" else "gradients of keys"
            lines.append(
                f"{purpose}: {blocks.tiles} tiles of {tile} {name}, each with a box of {box}, {blocks.step} at a time"
            )
    for step in planned.forward:
        lines.append(
            f"{step}, {step.instance.threadgroup_bytes} bytes of threadgroup memory each, {step.bricks} bricks, "
            f"{step.full} of them without a mask"
        )
    failure = gradient_failure(planned.problem, device, planned.path)
    if failure is not None:
        lines.append(f"gradients: pure ({failure})")
    return "\n".join(lines)
