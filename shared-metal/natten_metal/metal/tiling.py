"""The tiling of a walk: patch, simdgroups, staged or direct, flat bricks or not. It changes speed, never results.

Two ways to choose. On a device whose unit costs were measured (``tune``), every candidate is counted exactly
(:mod:`.counts`) and the one with the smallest predicted time wins. Elsewhere a plain rule decides: fewest executed
bricks first, then thresholds that were measured on a GPU of another maker (benchmarks/gpu). Predicted unit costs of a
chip are not used for choices, because nothing has been measured on that chip.
"""

import math
from typing import NamedTuple, TypeVar

from ..caches import cached
from ..problem.ops import FUSED
from ..problem.problem import Problem
from ..problem.window import group_length
from . import mpp
from .bricks import bricks_of
from .costs import UnitCosts, microseconds
from .counts import walked
from .flat import bricks_of as narrow_bricks
from .flat import fits
from .source import Instance
from .templates import ON_MATRIX_UNITS, Template
from .tiles import COLUMNS, ROWS, Bricks, Candidate, chunk_size, patches

# Bricks per softmax group. Two give independent chains of products, but twice the code and more registers: one was
# faster on a GPU that ran the same kernels (benchmarks/gpu).
SOFTMAX_BRICKS = 1
# Measured there as well, beyond rank 1: windows shorter than the first are read directly, because staged ones have few
# bricks between two barriers. Where a row has to be split, and in the key walk with its two sums in registers, staging
# is faster only if windows are at least as long as the second.
SHORT_WINDOW, LONG_WINDOW = 16, 56
# Simdgroups that a threadgroup may have.
MAX_SIMDGROUPS = 8
# Simdgroups of a threadgroup that reads directly: they share nothing, and small threadgroups fill the GPU more evenly.
DIRECT_SIMDGROUPS = 4
# 32-bit registers of a lane that a patch's rows and sums may take (Instance.registers). Beyond, a team of simdgroups
# shares the patch, and reads directly. Half of 128: more are said to cost an Apple GPU simdgroups, and addresses, masks
# and loads need the other half. Chosen so before it was measured (benchmarks/gpu).
MOST_REGISTERS, TEAM = 64, 2
# Among measured costs, patches that execute at most this many times the fewest bricks are candidates: the others cannot
# win back what they waste. On the GPU that ran every tiling of 63 problems, the fastest one never wasted more.
WASTE = 1.15
# Simdgroups of candidates, besides the rule's own numbers: of those that read directly and of those that stage. Between
# them they came within 5 % of the fastest of 1, 2, 4 and 8 in each of those problems.
DIRECT_NUMBERS, STAGED_NUMBERS = (1, 4), (4, 8)
# What flat bricks, which run on from row to row, have to save before the rule chooses them: bricks in rows of their own
# over flat ones. On the GPU that ran both, saving so much always paid in walks that run_on_pays lets through
# (benchmarks/gpu). Where costs were measured, flat bricks are candidates whatever they save.
FLAT_GAIN = 1.1


class Tiling(NamedTuple):
    """A choice, and what follows from it: staged columns, tiles along each axis, and exact bricks."""

    chosen: Candidate
    chunk: int
    tiles: tuple[int, ...]
    bricks: Bricks


class Target(NamedTuple):
    """What a tiling is chosen for.

    max_simdgroups: that a threadgroup may have. costs: measured unit costs of the device; None where nothing was
    measured. candidate: one that was chosen already, to be timed or compared with the choice. matrix_units: unit costs,
    measured or predicted, by which a walk on matrix units is compared with others; None where there is none.
    """

    max_simdgroups: int = MAX_SIMDGROUPS
    costs: UnitCosts | None = None
    candidate: Candidate | None = None
    matrix_units: UnitCosts | None = None


@cached("tilings", 1024)
def tiling(problem: Problem, template: Template, dim: int, dim_v: int, target: Target, in_rows: bool = True) -> Tiling:
    """The tiling of a walk of ``template``. in_rows: whether query heads of a key/value head may share a patch."""
    chosen = target.candidate or _chosen(problem, template, dim, dim_v, target, in_rows and not template.transposed)
    if not may_share(template, dim, dim_v, chosen.team):
        chosen = chosen._replace(team=1)
    patch = chosen.patch
    extents = [*patch[3 - problem.rank : -1], patch[-1] * chosen.simdgroups]
    tiles = tuple(
        -(-group_length(a.keys if template.transposed else a.queries, 0, a.dilation) // extent)
        for a, extent in zip(problem.axes, extents, strict=True)
    )
    record = ON_MATRIX_UNITS[template.name] if chosen.mpp else template
    bricks = bricks_of(problem, record, patch, chosen.heads, chosen.flat)
    return Tiling(chosen, max(chunk_size(problem.dtype, dim, dim_v), COLUMNS), tiles, bricks)


def _chosen(problem: Problem, template: Template, dim: int, dim_v: int, target: Target, in_rows: bool) -> Candidate:
    """The smallest predicted time among measured costs, or the rule's. On matrix units nothing but a prediction can
    choose, because their bricks are others: where nothing was measured, their best is compared with the rule's.
    """
    room, costs = target.max_simdgroups, target.costs
    if costs is None:
        found = [by_rule(problem, template, dim, dim_v, room, in_rows)]
    else:
        found = candidates(problem, template, dim, dim_v, room, in_rows)
    if target.matrix_units is not None:
        found += on_matrix_units(problem, template, dim, dim_v, room, every=costs is not None)
    by = costs or target.matrix_units
    if by is None or len(found) == 1:
        return found[0]
    return min(found, key=lambda candidate: (predicted(problem, template, (dim, dim_v), candidate, by), candidate))


def on_matrix_units(
    problem: Problem, template: Template, dim: int, dim_v: int, max_simdgroups: int, every: bool
) -> list[Candidate]:
    """The tilings of a walk on matrix units: with the fewest bricks in rows of their own, and with the fewest that run
    on. every: the others that waste little beside these, and single simdgroups.
    """
    if template.name not in ON_MATRIX_UNITS or not mpp.takes(problem, template.transposed):
        return []
    found: list[Candidate] = []
    for flat in (False, True):
        for shape in _near(mpp.shapes(problem, template.transposed, flat))[: None if every else 1]:
            one = Candidate(shape.patch, shape.heads, 1, False, flat, mpp=True)
            room = min(max_simdgroups, mpp.room(problem, candidate_instance(problem, template, (dim, dim_v), one)))
            found += [one._replace(simdgroups=n) for n in ((1, room) if every else (room,))]
    return list(dict.fromkeys(found))


Shape = tuple[int, tuple[int, int, int], int]
S = TypeVar("S", bound=tuple[int, tuple[int, int, int], int])


def _patches(problem: Problem, transposed: bool, in_rows: bool, flat: bool = False) -> list[Shape]:
    """(executed bricks, patch, heads) of every patch, best first: fewest bricks, then the widest. flat: they run on."""
    choices = [h for h in (1, 2, 4, 8) if problem.group_heads % h == 0] if in_rows else [1]
    shapes = [(patch, h) for h in choices for patch in patches(problem.rank, h)]
    counted = [(narrow_bricks(problem, patch, h, transposed, flat).executed, patch, h) for patch, h in shapes]
    return sorted(counted, key=lambda shape: (shape[0], -shape[1][-1], shape[2]))


def by_rule(
    problem: Problem,
    template: Template,
    dim: int,
    dim_v: int,
    max_simdgroups: int,
    in_rows: bool,
    may_run_on: bool = True,
) -> Candidate:
    """What the rule chooses: fewest executed bricks, then the widest patch; simdgroups that divide the axis.

    Where columns are read directly, bricks run on if they may and if that saves enough of them.
    """
    transposed, chunk = template.transposed, chunk_size(problem.dtype, dim, dim_v)
    executed, patch, heads = _patches(problem, transposed, in_rows)[0]
    axis = problem.axes[-1]
    length = group_length(axis.keys if transposed else axis.queries, 0, axis.dilation)
    simdgroups = _simdgroups(length, patch[-1], chunk + 2 - axis.window, max_simdgroups)
    cut = simdgroups * patch[-1] + axis.window - 1 > chunk + 1
    short = LONG_WINDOW if transposed or cut else SHORT_WINDOW
    direct = problem.rank > 1 and axis.window < short
    team = team_of(problem.dtype, template, dim, dim_v, max_simdgroups)
    if may_stage(template, chunk) and not direct and team == 1:
        return Candidate(patch, heads, simdgroups, True)
    running_on = _running_on(problem, transposed, in_rows) if may_run_on and run_on_pays(problem, template) else []
    flat = bool(running_on) and running_on[0][0] * FLAT_GAIN <= executed
    if flat:
        _, patch, heads = running_on[0]
    if team > 1:
        return Candidate(patch, heads, 1, False, flat, team)
    simdgroups = _simdgroups(length, patch[-1], DIRECT_SIMDGROUPS * ROWS, min(max_simdgroups, DIRECT_SIMDGROUPS))
    return Candidate(patch, heads, simdgroups, False, flat)


def may_share(template: Template, dim: int, dim_v: int, team: int) -> bool:
    """Whether a team of so many simdgroups may share a patch: all make as many products, and the channels of a member's
    share of the sums fill whole loads (products_along of kernels/stage.h).
    """
    sums = template.sums(dim, dim_v)
    return sums > 0 and dim == dim_v and sums % (team * 16) == 0


def team_of(dtype: str, template: Template, dim: int, dim_v: int, max_simdgroups: int) -> int:
    """Simdgroups that share a patch, in the rule: as few as leave each of them few enough registers."""
    alone = Instance(template.name, dtype, 1, dim, dim_v)
    fits = alone.registers <= MOST_REGISTERS or max_simdgroups < TEAM
    return TEAM if not fits and may_share(template, dim, dim_v, TEAM) else 1


def run_on_pays(problem: Problem, template: Template) -> bool:
    """Whether the rule lets bricks run on. The key walk has two sums and two addresses for each column in registers: in
    float32 it spilled and was slower with fewer bricks, and so were split operations (benchmarks/gpu).
    """
    return not template.transposed or (problem.op == FUSED.name and problem.dtype != "float32")


def _running_on(problem: Problem, transposed: bool, in_rows: bool) -> list[Shape]:
    """The patches whose bricks may run on, best first."""
    shapes = _patches(problem, transposed, in_rows, flat=True) if problem.rank > 1 else []
    return [shape for shape in shapes if fits(problem, shape[1], transposed)]


def may_stage(template: Template, chunk: int) -> bool:
    """Whether a kernel has threadgroup memory for columns: not where tables of sums take it, or where not even one
    brick fits ``chunk`` columns.
    """
    return template.walks and chunk >= COLUMNS


def candidates(
    problem: Problem, template: Template, dim: int, dim_v: int, max_simdgroups: int, in_rows: bool
) -> list[Candidate]:
    """All tilings worth counting, each once; the rule's own is the first."""
    transposed, chunk = template.transposed, chunk_size(problem.dtype, dim, dim_v)
    rule, run = (by_rule(problem, template, dim, dim_v, max_simdgroups, in_rows, way) for way in (True, False))
    axis, found, teams = problem.axes[-1], [rule, run], {rule.team} - {1}
    length = group_length(axis.keys if transposed else axis.queries, 0, axis.dilation)

    def counts(patch: tuple[int, int, int], numbers: tuple[int, ...]) -> list[int]:
        some = sorted({*numbers, rule.simdgroups, run.simdgroups})
        return [n for n in some if n <= max_simdgroups and not half_idle(-(-length // patch[-1]), n)]

    for _, patch, heads in _near(_patches(problem, transposed, in_rows)):
        found += [Candidate(patch, heads, count, False) for count in counts(patch, DIRECT_NUMBERS)]
        found += [Candidate(patch, heads, 1, False, team=team) for team in teams]
        if may_stage(template, chunk):
            # A copy that no other simdgroup shares costs more than it saves, unless there can be no other.
            staged = [n for n in counts(patch, STAGED_NUMBERS) if n > 1 or run.simdgroups == 1]
            found += [Candidate(patch, heads, count, True) for count in staged]
    for _, patch, heads in _near(_running_on(problem, transposed, in_rows)):
        found += [Candidate(patch, heads, count, False, flat=True) for count in counts(patch, DIRECT_NUMBERS)]
        found += [Candidate(patch, heads, 1, False, flat=True, team=team) for team in teams]
    return list(dict.fromkeys(found))


def half_idle(side_by_side: int, simdgroups: int) -> bool:
    """Whether half as many simdgroups would cover so many patches of an axis with as many threadgroups."""
    return simdgroups > 1 and -(-side_by_side // simdgroups) == -(-side_by_side // (simdgroups // 2))


def _near(shapes: list[S]) -> list[S]:
    """Those that waste little beside the first, which is the best, if there is one."""
    return [shape for shape in shapes if shape[0] <= WASTE * shapes[0][0]]


def predicted(
    problem: Problem, template: Template, dims: tuple[int, int], candidate: Candidate, costs: UnitCosts
) -> float:
    """Microseconds of a walk, predicted. dims: the padded head dims of what it reads."""
    instance = candidate_instance(problem, template, dims, candidate)
    return microseconds(instance, walked(problem, instance), costs)


def candidate_instance(problem: Problem, template: Template, dims: tuple[int, int], candidate: Candidate) -> Instance:
    """The kernel of a candidate, as far as its work is concerned."""
    additional = problem.additional > 0 and not template.transposed
    return kernel_of(problem, template, dims, candidate, additional=additional)


def kernel_of(
    problem: Problem, template: Template, dims: tuple[int, int], chosen: Candidate, **options: object
) -> Instance:
    """The kernel of a walk of ``template`` with a tiling; on matrix units, the one that computes the same there."""
    chunk, record = max(chunk_size(problem.dtype, *dims), COLUMNS), template
    if chosen.mpp:  # it has neither bias nor mask, and stages nothing
        record = ON_MATRIX_UNITS[template.name]
        dims = mpp.dims_of(record, *dims)
    return Instance(
        record.name,
        problem.dtype,
        problem.rank,
        *dims,
        chosen.patch,
        chosen.heads,
        chosen.simdgroups,
        chunk,
        SOFTMAX_BRICKS,
        chosen.stage,
        flat=chosen.flat,
        team=chosen.team,
        **options,  # type: ignore[arg-type]
    )


def _simdgroups(length: int, extent: int, room: int, max_simdgroups: int) -> int:
    """How many patches lie side by side: as few idle rows as possible, at most ``room`` rows unless more of them save a
    fifth, and, if all else is equal, many patches.
    """
    whole = math.lcm(*range(1, max_simdgroups + 1))  # so that the costs, which are divided by the count, stay integers

    def cost(count: int) -> tuple[int, int]:
        covered = -(-length // (count * extent)) * count * extent
        crowded = 5 if count * extent <= room else 6
        # Each threadgroup reads its box once, so more patches share it: a slight preference for many.
        return covered * crowded * (2 * count + 1) * (whole // count), -count

    return min(range(1, max_simdgroups + 1), key=cost)
