"""How evenly the threadgroups of a launch can be dealt to the cores of a GPU: by their exact work, in their order."""

import heapq
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

from ..caches import cached
from ..problem.interval import at_hand, positions
from ..problem.problem import Axis, Problem
from ..problem.window import group_length
from .source import Instance
from .tiles import span

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

    @property
    def threadgroups(self) -> int:
        """How many have rows."""
        return math.prod(sum(map(len, groups)) for groups in self.axes) * self.times


@cached("lines of tiles", 4096)
def _lines(axis: Axis, transposed: bool, extent: int, side_by_side: int) -> tuple[Line, ...]:
    found = []
    for group in range(axis.dilation):
        (begin, end), columns = (positions(*side, group, axis.dilation) for side in at_hand(axis, transposed))
        n = group_length(axis.full, group, axis.dilation)
        line = []
        for first in range(begin, end, extent * side_by_side):
            last = min(first + extent * side_by_side, end)
            spans = [span(axis, transposed, (a, min(a + extent, last)), columns, n) for a in range(first, last, extent)]
            line.append(tuple(each.high - each.low for each in spans))
        found.append(tuple(line))
    return tuple(found)


def pattern_of(problem: Problem, instance: Instance, times: int) -> Pattern:
    """The pattern of a walk. times: batch items times blocks of heads that have threadgroups of their own."""
    i, transposed = instance, instance.record.transposed
    extents, last = i.patch[3 - problem.rank :], problem.rank - 1
    axes = tuple(
        _lines(axis, transposed, extent, i.simdgroups if number == last else 1)
        for number, (axis, extent) in enumerate(zip(problem.axes, extents, strict=True))
    )
    return Pattern(axes, i.record.side, i.flat and problem.rank > 1, transposed, times)


def bricks_in_order(pattern: Pattern) -> Iterator[int]:
    """The bricks of each threadgroup of one batch item and block of heads."""
    *outer, along_x = pattern.axes
    for groups in itertools.product(*outer):
        rows = [math.prod(lengths) for lengths in itertools.product(*(_boxes(line) for line in groups))]
        for tiles in along_x:
            lines = {number: [_bricks(pattern, number, tile) for tile in tiles] for number in set(rows)}
            # Tiles at both ends of each line, then what is between them.
            split = pattern.ends_first and len(tiles) > 2
            parts = [(slice(0, None, len(tiles) - 1), slice(1, -1))] if split else [(slice(None),)]
            for part in parts[0]:
                for number in rows:
                    yield from lines[number][part]


def _boxes(line: Line) -> list[int]:
    return [length for tile in line for length in tile]


def _bricks(pattern: Pattern, rows: int, tile: tuple[int, ...]) -> int:
    side = pattern.side
    if pattern.run_on:
        return sum(-(-rows * length // side) for length in tile)
    return rows * sum(-(-length // side) for length in tile)


@cached("threadgroups dealt", 4096)
def busiest(pattern: Pattern, cores: int, held: int) -> float:
    """What the core with the most work has, over the average, if each takes the next threadgroup when it is free.

    At first every core takes ``held`` threadgroups, one after another in turns; from then on the next one goes to the
    core that has had the least work.
    """
    order = list(bricks_in_order(pattern)) * pattern.times
    at_once = cores * held
    work = [sum(order[core:at_once:cores]) for core in range(min(cores, len(order)))]
    if len(order) > at_once:
        free = [(done, core) for core, done in enumerate(work)]
        heapq.heapify(free)
        for more in order[at_once:]:
            done, core = free[0]
            heapq.heapreplace(free, (done + more, core))
            work[core] = done + more
    return max(work) * cores / sum(order)
