"""How many bricks a walk takes if they run on from one row of a box into the next (kernels/flat.h).

The columns of a patch's box are numbered row by row, and 8 of them make a brick, so only the last brick has columns to
spare. Such columns are read directly: staged, they were slower on the GPU that ran both (benchmarks/gpu).
"""

import itertools

from ..caches import cached
from ..problem.interval import at_hand, positions
from ..problem.problem import Axis, Problem
from ..problem.window import group_length
from .tiles import COLUMNS, Bricks, count_bricks, span

# The longest box on an axis, by rank: a position takes one word, with a field for each axis.
LONGEST_BOX = {2: 2**15 - 1, 3: 2**9 - 1}


@cached("lengths of boxes", 4096)
def axis_lengths(axis: Axis, transposed: bool, extent: int) -> tuple[int, int, tuple[int, ...]]:
    """The lengths of the boxes of all patches of ``extent`` rows on an axis: the longest, their sum, and how many leave
    each remainder by 8.
    """
    remainders, total, longest = [0] * COLUMNS, 0, 0
    for group in range(axis.dilation):
        (begin, end), at = (positions(*side, group, axis.dilation) for side in at_hand(axis, transposed))
        n = group_length(axis.full, group, axis.dilation)
        for first in range(begin, end, extent):
            low, _, _, high = span(axis, transposed, (first, min(first + extent, end)), at, n)
            remainders[(high - low) % COLUMNS] += 1
            total += high - low
            longest = max(longest, high - low)
    return longest, total, tuple(remainders)


def count_flat(problem: Problem, patch: tuple[int, int, int], heads: int, transposed: bool) -> int:
    """The exact bricks of one batch item and key/value head (all its query heads).

    A box of n columns takes (n + -n % 8) / 8 bricks, and n is a product: sums of lengths and counts of remainders are
    enough, axis by axis.
    """
    columns, remainders = 1, [0, 1, *[0] * (COLUMNS - 2)]
    for axis, extent in zip(problem.axes, patch[3 - problem.rank :], strict=True):
        _, total, own = axis_lengths(axis, transposed, extent)
        columns, before, remainders = columns * total, remainders, [0] * COLUMNS
        for (i, times), (j, often) in itertools.product(enumerate(before), enumerate(own)):
            remainders[i * j % COLUMNS] += times * often
    spare = sum(-i % COLUMNS * times for i, times in enumerate(remainders))
    return (columns + spare) // COLUMNS * (problem.group_heads // heads)


def fits(problem: Problem, patch: tuple[int, int, int], transposed: bool) -> bool:
    """Whether every position in a box fits its word. In rank 1 a box has one row: nothing could run on."""
    if problem.rank == 1:
        return False
    extents = zip(problem.axes, patch[3 - problem.rank :], strict=True)
    return all(axis_lengths(axis, transposed, e)[0] <= LONGEST_BOX[problem.rank] for axis, e in extents)


def bricks_of(problem: Problem, patch: tuple[int, int, int], heads: int, transposed: bool, flat: bool) -> Bricks:
    """The exact bricks of one batch item and key/value head: in rows of their own, or flat; then all have a mask."""
    if flat:
        return Bricks(count_flat(problem, patch, heads, transposed), 0)
    return count_bricks(problem, patch, heads, transposed)
