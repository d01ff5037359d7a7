"""What will run, as frozen data: ``plan(problem, device, backend, order, verdicts) -> Plan``.

The planner decides and the launchers follow: a plan names the backend, says why in one sentence, and holds all that
is launched, forward and backward (:mod:`.programs`). A fallback is a plan too, with its reason.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from ..problem import checks
from ..problem.interval import at_hand
from ..problem.ops import Op
from ..problem.problem import Axis, Problem, describe
from . import limits
from .backend import AUTO, BACKENDS, Backend, Work
from .blocks import AxisBlocks, Blocks, tiles_per_group
from .boxes import box_size
from .device import Device
from .programs import Blank, CpuCall, DenseOperations, Made, MetalLaunches, Program, Refused, Walks
from .verdicts import NOTHING_LEARNED, Failure, KernelFailure, Verdicts

if TYPE_CHECKING:
    from ..metal.launches import Launch
    from ..metal.tiling import Target

# Bytes of logits that a chunk of a walk may hold, of what it gathers for them, and of logits in a single tile. A
# tile of one row is always allowed: it holds at most all keys of all heads.
STEP_BYTES = 4 << 20
GATHER_BYTES = 64 << 20
TILE_BYTES = 64 << 20
TILES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)

# Measured costs on a two-core x86-64 CPU with torch, in units of one multiply-accumulate of its matrix product:
# per (row, column) pair for mask and softmax, per element gathered, per tile for starting a small product.
PAIR_COST = 70
GATHER_COST = 14
TILE_COST = 20_000


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What will run. backend: the one that runs the forward; why: why that one, in one sentence.

    Plans are compared by identity, because the planner keeps them; so hashing one costs nothing.

    device, requested: where, and the requested backend, which may be 'auto'. backward: the gradient's program,
    which another backend may run; backward_without_lse: the same where no gradient flows into lse.
    """

    problem: Problem
    device: Device
    requested: str
    backend: str
    why: str
    forward: Program
    backward: Program
    backward_without_lse: Program

    @property
    def record(self) -> Op:
        """The op's record."""
        return self.problem.record

    @property
    def name(self) -> str:
        """The op's public name, for messages."""
        return self.problem.name

    def gradient(self, has_lse_grad: bool) -> Program:
        """The gradient's program. has_lse_grad: whether one flows into lse; ignored if the op has no lse."""
        return self.backward if has_lse_grad else self.backward_without_lse


def refusal(problem: Problem, device: Device, backend: str, verdicts: Verdicts = NOTHING_LEARNED) -> str | None:
    """Why ``backend`` cannot take ``problem`` on ``device``; None if it can."""
    found = _forward(problem, device, BACKENDS[backend], verdicts)
    return None if isinstance(found, Program) else str(found)


def plan(
    problem: Problem, device: Device, backend: str, order: tuple[str, ...], verdicts: Verdicts = NOTHING_LEARNED
) -> Plan:
    """The plan of ``problem``: the first backend of ``order`` that can take it, or the one that ``backend`` names.

    Raises NotImplementedError with the reason if ``backend`` cannot take it, or if nothing can; and KernelFailure if
    the kernels of ``backend`` are known to fail on this machine.
    """
    if backend != AUTO:
        found = _forward(problem, device, BACKENDS[backend], verdicts)
        if isinstance(found, Failure):
            raise KernelFailure(found)
        if isinstance(found, str):
            checks.reject_problem(problem.name, backend, found)
        gradients = (_gradient(problem, device, backend, (backend,), lse, verdicts) for lse in (True, False))
        return Plan(problem, device, backend, backend, f"backend='{backend}' was asked for", found, *gradients)
    passed: dict[str, str | Failure] = {}
    for index, name in enumerate(order):
        found = _forward(problem, device, BACKENDS[name], verdicts)
        if not isinstance(found, Program):
            passed[name] = found
            continue
        failed = next((reason for reason in passed.values() if isinstance(reason, Failure)), None)
        found = replace(found, failed=failed, missing=_missing_kernels(found, device, order))
        gradients = (_gradient(problem, device, backend, order[index:], lse, verdicts) for lse in (True, False))
        why = "; ".join(f"{other}: {reason}" for other, reason in passed.items())
        return Plan(
            problem, device, backend, name, why or "the fastest backend that takes this problem", found, *gradients
        )
    raise checks.no_backend(problem.name, passed)


def _forward(problem: Problem, device: Device, backend: Backend, verdicts: Verdicts) -> Program | Failure | str:
    """The program of ``backend``, or why it cannot run: a rule, or a kernel that failed."""
    reason = _rule(problem, device, backend)
    if reason is not None:
        return reason
    outputs = tuple(Made(o.name, o.shape(problem), o.dtype(problem)) for o in problem.record.outputs)
    common = problem, backend.name, problem.record.forward, outputs
    work = backend.on(device.kind)
    if work is Work.DENSE_OPERATIONS:
        return DenseOperations(*common)
    if not problem.batch:
        return Blank(*common)
    if work is Work.WALKS:
        return Walks(*common, queries=walk(problem, transposed=False))
    if work is Work.CPU_KERNELS:
        return CpuCall(*common)
    return _metal_program(common, device, backend, verdicts, None)


def _gradient(
    problem: Problem, device: Device, requested: str, order: tuple[str, ...], has_lse_grad: bool, verdicts: Verdicts
) -> Program:
    """The gradient's program on the first backend of ``order`` that can run it; ``order[0]`` runs the forward."""
    failed: Failure | None = None
    for name in order:
        backend = BACKENDS[name]
        if name != order[0] and _rule(problem, device, backend) is not None:
            continue
        found = _gradient_on(problem, device, backend, has_lse_grad, verdicts)
        if isinstance(found, Program):
            return found if failed is None else replace(found, failed=failed, why=str(failed))
        failed = failed or found
    assert failed is not None, "a backend that runs the forward has a gradient, unless its kernels fail"
    return Refused(problem, requested, problem.record.backward, (), why=str(failed), failed=failed)


def _gradient_on(
    problem: Problem, device: Device, backend: Backend, has_lse_grad: bool, verdicts: Verdicts
) -> Program | Failure:
    record = problem.record
    given = (operand for operand in record.inputs if operand.differentiable and operand.given(problem))
    gradients = tuple(Made(operand.gradient, operand.shape(problem), operand.dtype(problem)) for operand in given)
    common = problem, backend.name, record.backward, gradients
    work = backend.on(device.kind)
    if work is Work.DENSE_OPERATIONS:
        return DenseOperations(*common)
    if not problem.batch:
        return Blank(*common)
    if work is Work.WALKS:
        keys = walk(problem, transposed=True) if record.bilinear else None
        return Walks(*common, queries=walk(problem, transposed=False), keys=keys)
    if work is Work.CPU_KERNELS:
        return CpuCall(*common)
    return _metal_program(common, device, backend, verdicts, has_lse_grad and len(record.outputs) > 1)


def _rule(problem: Problem, device: Device, backend: Backend) -> str | None:
    """Why ``backend`` cannot take ``problem``, whatever its kernels do; None if it can, provided that none fails."""
    missing = device.reason_missing(backend.name)
    if missing is not None:
        return missing
    work = backend.on(device.kind)
    if work is None:
        return f"{backend.name} computes nothing on a {device.kind.upper()}"
    if problem.dtype == "float64" and not device.float64:
        return f"{device.name} does not compute in float64; the CPU does"
    if device.longest is not None and (reason := limits.too_long(problem, work, device.longest)):
        return reason
    if work in (Work.METAL_KERNELS, Work.CPU_KERNELS) and (reason := limits.too_large(problem)):
        return reason
    if work is not Work.METAL_KERNELS:
        return None
    return limits.metal_limit(problem, device.smallest if backend.by_value else 1)


def _missing_kernels(program: Program, device: Device, order: Iterable[str]) -> str:
    """Why 'auto' chose a walk on a CPU, where kernels would be many times faster; '' if it did not."""
    if device.kind != "cpu" or not isinstance(program, Walks | Blank):
        return ""
    reasons = (device.reason_missing(name) for name in order if BACKENDS[name].cpu is Work.CPU_KERNELS)
    return next((reason for reason in reasons if reason is not None), "")


class Fitting(NamedTuple):
    """Launches that fit a machine. target: what their tilings were chosen for in the end. no_matrix_units: why none of
    them is on matrix units; '' if one is.
    """

    launches: "tuple[Launch, ...]"
    target: "Target"
    no_matrix_units: str | Failure


def fitting(problem: Problem, device: Device, backend: Backend, verdicts: Verdicts, lse_grad: bool | None) -> Fitting:
    """The launches of an op (lse_grad None) or of its gradient, as the kernels are known to run here."""
    # What describes the Metal kernels is imported with the first of them: a CPU never needs it.
    from ..metal import mpp, op_launches
    from ..metal.tiling import Target
    from .costs import measured, of_matrix_units

    missing: str | Failure = device.no_matrix_units or mpp.why_not(problem) or ""
    units = None if missing else of_matrix_units(device)
    room = op_launches.MAX_SIMDGROUPS if backend.tells_limits else op_launches.cautious_simdgroups(problem)
    while True:
        target = Target(room, measured(device), None, units)
        made = (
            op_launches.forward(problem, target)
            if lse_grad is None
            else op_launches.backward(problem, lse_grad, target)
        )
        on_matrix_units = [launch for launch in made if launch.instance.record.mpp]
        failed = verdicts.failure_of(on_matrix_units)
        if failed is not None:
            missing, units = failed, None
            continue
        if not on_matrix_units and not missing:
            missing = "others are predicted to be faster"
        fewer = verdicts.room(made)
        if fewer is None or room == 1:
            return Fitting(made, target, missing)
        room = max(1, min(fewer, room - 1))


def _metal_program(
    common: tuple[Problem, str, str, tuple[Made, ...]],
    device: Device,
    backend: Backend,
    verdicts: Verdicts,
    lse_grad: bool | None,
) -> Program | Failure:
    found = fitting(common[0], device, backend, verdicts, lse_grad)
    failed = verdicts.failure_of(found.launches)
    return failed or MetalLaunches(*common, launches=found.launches, no_matrix_units=found.no_matrix_units)


def walk(problem: Problem, transposed: bool) -> Blocks:
    """The cheapest tiles by the cost model, and how many of them fit a chunk's memory."""
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
        # Query heads of a group are stacked with the queries: rows of one walk, columns of the other.
        gathered = (columns + group * rows) if not transposed else (rows + group * columns)
        cost = blocks.tiles * (pairs * (width + PAIR_COST) + gathered * width * GATHER_COST + TILE_COST)
        if best is None or cost < best[0]:
            best = (cost, axes)
    assert best is not None, "a tile of one row is always allowed"
    blocks = Blocks(best[1], 1, 1)
    rows, columns = blocks.tile_rows, blocks.box_columns
    gathered = (columns + group * rows if not transposed else rows + group * columns) * problem.kv_heads * width * size
    per_tile = rows * (columns + (0 if transposed else problem.additional)) * heads * size
    fitting = min(STEP_BYTES // per_tile, GATHER_BYTES // gathered)
    items_at_once = max(1, min(problem.batch, fitting))
    return Blocks(best[1], max(1, min(blocks.tiles, fitting // items_at_once)), items_at_once)


def _tiles(axis: Axis, transposed: bool) -> list[int]:
    """Candidate tiles of an axis: a fixed table, whole axes, and multiples of the stride."""
    _, rows = at_hand(axis, transposed)[0]
    longest = tiles_per_group(rows, axis.dilation, 1)
    tiles = {tile for tile in TILES if tile <= longest}
    if longest <= TILES[-1]:
        tiles.add(longest)
    if axis.stride > 1:
        tiles |= {m * axis.stride for m in (1, 2, 4, 8) if m * axis.stride <= longest}
    return sorted(tiles)


def explain(planned: Plan) -> str:
    """The plan in words: the problem, the backend and why, and what it launches."""
    forward, backward = planned.forward, planned.backward
    lines = [describe(planned.problem), f"device: {planned.device.name}", f"backend: {planned.backend} ({planned.why})"]
    if isinstance(forward, Walks):
        split = isinstance(backward, Walks) and backward.keys is not None
        purpose = "forward and gradients of queries" if split else "forward and backward"
        lines.append(_walk_in_words(purpose, "queries", forward.queries))
        if isinstance(backward, Walks) and split:
            lines.append(_walk_in_words("gradients of keys", "keys", backward.keys))
    if isinstance(forward, MetalLaunches):
        for launch in forward.launches:
            memory = f"{launch.instance.threadgroup_bytes} bytes of threadgroup memory each"
            lines.append(f"{launch}, {memory}, {launch.bricks} bricks, {launch.full} of them without a mask")
        lines.append(f"matrix units: {_used(forward.no_matrix_units)}")
    if isinstance(backward, Refused):
        lines.append(f"gradients: none ({backward.why})")
    elif backward.backend != planned.backend:
        lines.append(f"gradients: {backward.backend} ({backward.why})")
    elif backward.no_matrix_units != forward.no_matrix_units:
        lines.append(f"matrix units in gradients: {_used(backward.no_matrix_units)}")
    return "\n".join(lines)


def _used(missing: str | Failure) -> str:
    return f"not used ({missing})" if missing else "used"


def _walk_in_words(purpose: str, rows: str, blocks: Blocks | None) -> str:
    assert blocks is not None
    tile = tuple(axis.tile for axis in blocks.axes)
    box = tuple(axis.box for axis in blocks.axes)
    return (
        f"{purpose}: {blocks.tiles} tiles of {tile} {rows}, each with a box of {box}, {blocks.tiles_at_once} at a time"
    )
