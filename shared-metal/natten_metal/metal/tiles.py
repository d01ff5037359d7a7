"""Tiles of the Metal kernels: which patch, how many simdgroups, and exactly how much work they execute.

A patch is 8 rows of one simdgroup, a brick 8 adjacent columns (kernels/coord.h, kernels/walk.h). The executed work of a
patch shape is an exact sum: rows of the box and bricks along x are independent of each other, so each axis is counted
separately and the counts are multiplied. Nothing here is measured at run time; where a past measurement decides (which
staging is faster where), the comment names it.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from ..caches import cached
from ..problem.interval import at_hand, positions, row_interval
from ..problem.problem import Axis, Problem
from ..problem.window import group_length
from .sizes import DIMS
from .source import ITEM_SIZES, THREADGROUP_BYTES

ROWS, COLUMNS = 8, 8  # of a patch and of a brick: one 8x8 fragment
MAX_CHUNK = 128


class Bricks(NamedTuple):
    """Executed bricks of one (batch item, key/value head), and how many of them need no mask."""

    executed: int
    full: int


class Candidate(NamedTuple):
    """What a tiling is chosen by: everything that one problem leaves open. mpp: whether it is on matrix units."""

    patch: tuple[int, int, int]
    heads: int
    simdgroups: int
    stage: bool
    flat: bool = False
    team: int = 1
    mpp: bool = False


class Span(NamedTuple):
    """Columns on one axis: any row of a patch sees those in ``[low, high)``, all rows those between the other two."""

    low: int
    common_low: int
    common_high: int
    high: int


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


def patch_spans(axis: Axis, transposed: bool, extent: int) -> Iterator[list[Span]]:
    """For each dilation group of an axis what its patches of ``extent`` rows see, in order."""
    sides = at_hand(axis, transposed)
    for group in range(axis.dilation):
        (begin, end), columns = (positions(*side, group, axis.dilation) for side in sides)
        n = group_length(axis.full, group, axis.dilation)
        firsts = range(begin, end, extent)
        yield [span(axis, transposed, (first, min(first + extent, end)), columns, n) for first in firsts]


def side_by_side(spans: list[Span], simdgroups: int) -> list[list[Span]]:
    """Those of the patches of each tile."""
    return [spans[first : first + simdgroups] for first in range(0, len(spans), simdgroups)]


@cached("boxes of axes", 4096)
def axis_boxes(axis: Axis, transposed: bool, extent: int) -> tuple[tuple[int, int], ...]:
    """(columns, times) pairs: how often a box of so many columns occurs among those of ``extent`` rows of an axis.

    Dilation groups are counted together.
    """
    spans = itertools.chain.from_iterable(patch_spans(axis, transposed, extent))
    return tuple(Counter(high - low for low, _, _, high in spans).items())


@cached("bricks of axes", 4096)
def axis_bricks(axis: Axis, transposed: bool, extent: int, along_x: bool) -> tuple[tuple[int, int], ...]:
    """Per dilation group (steps, full steps) of all patches of ``extent`` rows on one axis.

    A step is a brick along x, and one row of the box on the other axes.
    """
    counts = []
    for spans in patch_spans(axis, transposed, extent):
        steps = full = 0
        for low, common_low, common_high, high in spans:
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


def patch_count(problem: Problem, patch: tuple[int, int, int], transposed: bool = False) -> int:
    """Patches with at least one row, for one batch item and block of heads."""
    count = 1
    for axis, extent in zip(problem.axes, patch[3 - problem.rank :], strict=True):
        rows = at_hand(axis, transposed)[0]
        groups = (positions(*rows, group, axis.dilation) for group in range(axis.dilation))
        count *= sum(-(-(last - first) // extent) for first, last in groups)
    return count


def patches(rank: int, heads: int, rows: int = ROWS) -> list[tuple[int, int, int]]:
    """Shapes (z, y, x) of ``rows / heads`` positions; missing leading axes are 1."""
    positions_ = rows // heads
    sides = [side for side in (1, 2, 4, 8, 16) if side <= positions_]
    shapes = itertools.product(sides, repeat=rank)
    wanted = [shape for shape in shapes if math.prod(shape) == positions_]
    return [_three(shape) for shape in wanted]


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    z, y, x = (1,) * (3 - len(shape)) + shape
    return z, y, x


def chunk_size(dtype: str, dim: int, dim_v: int) -> int:
    """Columns of both staged tensors that fit threadgroup memory, a multiple of 8 (0: not even one brick)."""
    per_column = (dim + dim_v) * ITEM_SIZES[dtype] + 32
    return min(MAX_CHUNK, (THREADGROUP_BYTES // per_column - COLUMNS) // COLUMNS * COLUMNS)


def terms(problem: Problem, transposed: bool) -> int:
    """The most terms that a row's sums have: keys of a query, or queries of a key with all their heads (most, where
    windows shift at borders).
    """
    count = math.prod(min(axis.window, axis.queries if transposed else axis.keys) for axis in problem.axes)
    return count * problem.group_heads if transposed else count + problem.additional
