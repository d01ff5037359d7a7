"""How many bricks a walk takes if they run on from one row of a box into the next (kernels/flat.h).

The columns of a patch's box are numbered row by row, and 8 of them make a brick, so only the last brick has columns to
spare. Such columns are read directly: staged, they were slower on the GPU that ran both (benchmarks/gpu).
"""

import itertools

from ..problem.problem import Problem
from .tiles import COLUMNS, Bricks, axis_boxes, count_bricks

# The longest box on an axis, by rank: a position takes one word, with a field for each axis.
LONGEST_BOX = {2: 2**15 - 1, 3: 2**9 - 1}


def count_flat(problem: Problem, patch: tuple[int, int, int], heads: int, transposed: bool) -> int:
    """The exact bricks of one batch item and key/value head (all its query heads).

    A box of n columns takes (n + -n % 8) / 8 bricks, and n is a product: sums of lengths and counts of remainders are
    enough, axis by axis.
    """
    columns, remainders = 1, [0, 1, *[0] * (COLUMNS - 2)]
    for axis, extent in zip(problem.axes, patch[3 - problem.rank :], strict=True):
        boxes, before, remainders = axis_boxes(axis, transposed, extent), remainders, [0] * COLUMNS
        columns *= sum(length * often for length, often in boxes)
        for (i, times), (length, often) in itertools.product(enumerate(before), boxes):
            remainders[i * length % COLUMNS] += times * often
    spare = sum(-i % COLUMNS * times for i, times in enumerate(remainders))
    return (columns + spare) // COLUMNS * (problem.group_heads // heads)


def fits(problem: Problem, patch: tuple[int, int, int], transposed: bool) -> bool:
    """Whether every position in a box fits its word. In rank 1 a box has one row: nothing could run on."""
    if problem.rank == 1:
        return False
    extents = zip(problem.axes, patch[3 - problem.rank :], strict=True)
    lengths = (length for axis, extent in extents for length, _ in axis_boxes(axis, transposed, extent))
    return all(length <= LONGEST_BOX[problem.rank] for length in lengths)


def bricks_of(problem: Problem, patch: tuple[int, int, int], heads: int, transposed: bool, flat: bool) -> Bricks:
    """The exact bricks of one batch item and key/value head: in rows of their own, or flat; then all have a mask."""
    if flat:
        return Bricks(count_flat(problem, patch, heads, transposed), 0)
    return count_bricks(problem, patch, heads, transposed)
