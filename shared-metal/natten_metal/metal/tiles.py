"""Tiles of the Metal kernels: which patch, how many simdgroups, and exactly how much work they execute.

A patch is 8 rows of one simdgroup, a brick 8 adjacent columns (kernels/coord.h, kernels/walk.h). The executed work of a
patch shape is an exact sum: rows of the box and bricks along x are independent of each other, so each axis is counted
separately and the counts are multiplied. Nothing here is measured at run time; where a past measurement decides (which
staging is faster where), the comment names it.
"""

import itertools
import math
from typing import NamedTuple

from ..caches import cached
from ..problem.interval import at_hand, positions, row_interval
from ..problem.problem import Axis, Problem
from ..problem.window import group_length
from .sizes import DIMS
from .source import ITEM_SIZES, THREADGROUP_BYTES

ROWS, COLUMNS = 8, 8  # of a patch and of a brick: one 8x8 fragment
MAX_CHUNK = 128
# Bricks per softmax group. Two give independent chains of products, but twice the code and more registers: one was
# faster on a GPU that ran the same kernels (benchmarks/gpu).
SOFTMAX_BRICKS = 1
# Measured there as well, beyond rank 1: windows shorter than the first are read directly, because staged ones have few
# bricks between two barriers. Where a row has to be split, and in the key walk with its two sums in registers, staging
# is faster only if windows are at least as long as the second.
SHORT_WINDOW, LONG_WINDOW = 16, 56
# Simdgroups of a threadgroup that reads directly: they share nothing, and small threadgroups fill the GPU more evenly.
DIRECT_SIMDGROUPS = 4


class Bricks(NamedTuple):
    """Executed bricks of one (batch item, key/value head), and how many of them need no mask."""

    executed: int
    full: int


class Span(NamedTuple):
    """Columns on one axis: any row of a patch sees those in ``[low, high)``, all rows those between the other two."""

    low: int
    common_low: int
    common_high: int
    high: int


class Tiling(NamedTuple):
    """The compile-time shape of a walk. patch: rows along (z, y, x); times heads it is 8."""

    patch: tuple[int, int, int]
    heads: int
    simdgroups: int
    chunk: int
    stage: bool
    tiles: tuple[int, ...]
    bricks: Bricks


def padded_dim(dim: int) -> int:
    """The head dim that a kernel is built for: the smallest of ``DIMS`` that holds ``dim``."""
    return next(size for size in DIMS if size >= dim)


def span(axis: Axis, transposed: bool, rows: tuple[int, int], columns: tuple[int, int], n: int) -> Span:
    """What the rows ``[first, last)`` of a dilation group of ``n`` see of the columns at hand, in positions."""
    first, last = rows
    lowest, highest = columns
    low, common_high = row_interval(axis, transposed, first, n)
    common_low, high = row_interval(axis, transposed, last - 1, n)
    low, common_low = max(low, lowest), max(common_low, lowest)
    # Keys that no query at hand sees have an empty span.
    return Span(low, common_low, min(common_high, highest), max(min(high, highest), low))


@cached("bricks of axes", 4096)
def axis_bricks(axis: Axis, transposed: bool, extent: int, along_x: bool) -> tuple[tuple[int, int], ...]:
    """Per dilation group (steps, full steps) of all patches of ``extent`` rows on one axis.

    A step is a brick along x, and one row of the box on the other axes.
    """
    counts = []
    for group in range(axis.dilation):
        sides = at_hand(axis, transposed)
        (begin, end), columns = (positions(*side, group, axis.dilation) for side in sides)
        n = group_length(axis.full, group, axis.dilation)
        steps = full = 0
        for first in range(begin, end, extent):
            low, common_low, common_high, high = span(axis, transposed, (first, min(first + extent, end)), columns, n)
            if not along_x:
                steps += high - low
                full += max(0, common_high - common_low)
                continue
            steps += -(-(high - low) // COLUMNS)
            first_full = low + max(0, -(-(common_low - low) // COLUMNS)) * COLUMNS
            full += max(0, (common_high - first_full) // COLUMNS)
        counts.append((steps, full))
    return tuple(counts)


def count_bricks(problem: Problem, patch: tuple[int, int, int], heads: int, transposed: bool) -> Bricks:
    """The exact bricks of one batch item and key/value head (all its query heads)."""
    extents = patch[3 - problem.rank :]
    axes = [
        axis_bricks(axis, transposed, extent, index == problem.rank - 1)
        for index, (axis, extent) in enumerate(zip(problem.axes, extents, strict=True))
    ]
    # Sums over the groups of each axis factorise: every combination of groups is an independent problem.
    executed = math.prod(sum(steps for steps, _ in axis) for axis in axes)
    full = math.prod(sum(inner for _, inner in axis) for axis in axes)
    # Query heads share the rows of a patch, or are walked one after another against the same keys.
    repeat = problem.group_heads // heads
    return Bricks(executed * repeat, full * repeat)


def patch_count(problem: Problem, patch: tuple[int, int, int]) -> int:
    """Patches of query rows with at least one row, for one batch item and block of heads."""
    count = 1
    for axis, extent in zip(problem.axes, patch[3 - problem.rank :], strict=True):
        groups = (positions(axis.query_start, axis.queries, group, axis.dilation) for group in range(axis.dilation))
        count *= sum(-(-(last - first) // extent) for first, last in groups)
    return count


def patches(rank: int, heads: int) -> list[tuple[int, int, int]]:
    """Shapes (z, y, x) of ``8 / heads`` rows; missing leading axes are 1."""
    rows = ROWS // heads
    sides = [side for side in (1, 2, 4, 8) if side <= rows]
    shapes = itertools.product(sides, repeat=rank)
    wanted = [shape for shape in shapes if math.prod(shape) == rows]
    return [_three(shape) for shape in wanted]


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    z, y, x = (1,) * (3 - len(shape)) + shape
    return z, y, x


def chunk_size(dtype: str, dim: int, dim_v: int) -> int:
    """Columns of both staged tensors that fit threadgroup memory, a multiple of 8 (0: not even one brick)."""
    per_column = (dim + dim_v) * ITEM_SIZES[dtype] + 32
    return min(MAX_CHUNK, (THREADGROUP_BYTES // per_column - COLUMNS) // COLUMNS * COLUMNS)


@cached("tilings", 1024)
def tiling(
    problem: Problem, transposed: bool, dim: int, dim_v: int, max_simdgroups: int, in_rows: bool = True
) -> Tiling:
    """The tiling of a walk: fewest executed bricks, then the widest patch; simdgroups that divide the axis.

    in_rows: whether query heads of one key/value head may share a patch.
    """
    choices = [h for h in (1, 2, 4, 8) if problem.group_heads % h == 0] if in_rows and not transposed else [1]
    shapes = [(patch, h) for h in choices for patch in patches(problem.rank, h)]
    best = min(shapes, key=lambda s: (count_bricks(problem, s[0], s[1], transposed).executed, -s[0][-1], s[1]))
    patch, heads = best
    axis = problem.axes[-1]
    length = group_length(axis.keys if transposed else axis.queries, 0, axis.dilation)
    chunk = chunk_size(problem.dtype, dim, dim_v)
    simdgroups = _simdgroups(length, patch[-1], chunk + 2 - axis.window, max_simdgroups)
    cut = simdgroups * patch[-1] + axis.window - 1 > chunk + 1
    short = LONG_WINDOW if transposed or cut else SHORT_WINDOW
    direct = problem.rank > 1 and axis.window < short
    stage = chunk >= COLUMNS and not direct
    if not stage:
        simdgroups = _simdgroups(length, patch[-1], DIRECT_SIMDGROUPS * ROWS, min(max_simdgroups, DIRECT_SIMDGROUPS))
    extents = [*patch[3 - problem.rank : -1], patch[-1] * simdgroups]
    tiles = tuple(
        -(-group_length(a.keys if transposed else a.queries, 0, a.dilation) // extent)
        for a, extent in zip(problem.axes, extents, strict=True)
    )
    bricks = count_bricks(problem, patch, heads, transposed)
    return Tiling(patch, heads, simdgroups, max(chunk, COLUMNS), stage, tiles, bricks)


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
