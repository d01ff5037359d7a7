"""How evenly the threadgroups of a launch can be dealt to the cores of a GPU: by their exact work, in their order."""

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..caches import cached
from ..problem.problem import Axis, Problem
from .source import Instance
from .tiles import patch_spans, side_by_side

# One axis in one dilation group: for each tile in order, the columns that each of its patches sees.
Line = tuple[tuple[int, ...], ...]


class Pattern(NamedTuple):
    """The work of a launch's threadgroups, in the order in which they are launched.

    axes: for each axis, outermost first, a line for each dilation group; patches are side by side on the last axis
    alone. side: columns of a brick. run_on: whether bricks run on from one row of a box into the next. ends_first:
    whether tiles at both ends of the last axis are launched first (``kernels/coord.h``). times: how often all of that
    is launched, for batch items and heads.
    """

    axes: tuple[tuple[Line, ...], ...]
    side: int
    run_on: bool
    ends_first: bool
    times: int


class Walk(NamedTuple):
    """What a pattern follows from, which takes time where axes are long. times: batch items times blocks of heads that
    have threadgroups of their own.
    """

    problem: Problem
    instance: Instance
    times: int

    @property
    def pattern(self) -> Pattern:
        """The pattern of the walk."""
        problem, i, transposed = self.problem, self.instance, self.instance.record.transposed
        extents, last = i.patch[3 - problem.rank :], problem.rank - 1
        axes = tuple(
            _lines(axis, transposed, extent, i.simdgroups if number == last else 1)
            for number, (axis, extent) in enumerate(zip(problem.axes, extents, strict=True))
        )
        return Pattern(axes, i.record.side, i.flat and problem.rank > 1, transposed, self.times)


# Tilings of one problem share lines; few are kept, because those of a long axis are large.
@cached("lines of tiles", 64)
def _lines(axis: Axis, transposed: bool, extent: int, simdgroups: int) -> tuple[Line, ...]:
    return tuple(
        tuple(tuple(each.high - each.low for each in tile) for tile in side_by_side(spans, simdgroups))
        for spans in patch_spans(axis, transposed, extent)
    )


def bricks_in_order(pattern: Pattern) -> Iterator[int]:
    """The bricks of each threadgroup of one batch item and block of heads."""
    *outer, along_x = pattern.axes
    for groups in itertools.product(*outer):
        rows = [math.prod(lengths) for lengths in itertools.product(*(_boxes(line) for line in groups))]
        for tiles in along_x:
            lines = {number: [_bricks(pattern, number, tile) for tile in tiles] for number in set(rows)}
            if pattern.ends_first and len(tiles) > 2:
                for number in rows:
                    yield from (lines[number][0], lines[number][-1])
                lines = {number: line[1:-1] for number, line in lines.items()}
            for number in rows:
                yield from lines[number]


def _boxes(line: Line) -> list[int]:
    return [length for tile in line for length in tile]


def _bricks(pattern: Pattern, rows: int, tile: tuple[int, ...]) -> int:
    side = pattern.side
    if pattern.run_on:
        return sum(-(-rows * length // side) for length in tile)
    return rows * sum(-(-length // side) for length in tile)


@cached("busiest cores", 4096)
def busiest(walk: Walk, cores: int, held: int) -> float:
    """What the core with the most work has, over the average, if each takes the next threadgroup when it is free.

    held: threadgroups that a core has at once.
    """
    pattern = walk.pattern
    work = list(bricks_in_order(pattern)) * pattern.times
    return dealt(work, cores, held) * cores / sum(work)


def dealt(work: Sequence[int], cores: int, held: int) -> int:
    """The most work that a core gets. At first every core takes ``held`` threadgroups, one after another in turns; from
    then on the next one goes to the core that has had the least work.
    """
    at_once = cores * held
    free = [sum(work[core:at_once:cores]) for core in range(min(cores, len(work)))]
    heapq.heapify(free)
    for more in work[at_once:]:
        heapq.heapreplace(free, free[0] + more)
    return max(free)
