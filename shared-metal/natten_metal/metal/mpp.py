"""The walk on matrix units (kernels/mpp_walk.h): which problems it takes, its patches, and its exact bricks.

Patches have 16 rows and bricks 16 columns.
"""

import itertools
import math
from collections import Counter
from typing import NamedTuple

from ..caches import cached
from ..problem.interval import at_hand, positions
from ..problem.problem import Axis, Problem
from ..problem.window import group_length
from .flat import fits
from .sizes import WIDE_DTYPES as DTYPES
from .sizes import WIDE_SIDE as SIDE
from .source import THREADGROUP_BYTES, Instance
from .templates import FORWARD, ON_MATRIX_UNITS, Template
from .tiles import Bricks, patch_spans, patches, terms

# Kernels are built for head dims up to the largest whose sums fit the registers.
MAX_DIM = 128
# Sums are not taken in parts (kernels/sums.h), so they may have at most so many terms.
MAX_TERMS = 65_536
# The longest step in memory from one column to the next, where they are read where they lie.
MAX_STEP = 2**31 - 1
# Simdgroups of a threadgroup, which share nothing.
MAX_SIMDGROUPS = 4


class Shape(NamedTuple):
    """A patch with so many heads, and the bricks that it executes."""

    executed: int
    patch: tuple[int, int, int]
    heads: int


def why_not(problem: Problem) -> str | None:
    """Why no walk of ``problem`` can run on matrix units, in one sentence; None if one can."""
    p = problem
    if p.record.bilinear:
        return "matrix units have kernels for fused attention alone"
    if p.dtype not in DTYPES:
        return f"matrix units multiply {' and '.join(DTYPES)}, not {p.dtype}"
    if p.has_rpb or p.has_key_mask:
        return f"the kernels on matrix units take no {'rpb' if p.has_rpb else 'key_mask'}"
    widest = max(p.head_dim, p.head_dim_v)
    if widest > MAX_DIM:
        return f"the kernels on matrix units take head dims up to {MAX_DIM}, not {widest}"
    fewest = min(terms(p, transposed) for transposed in (False, True))
    if fewest > MAX_TERMS:
        return f"the kernels on matrix units add up to {MAX_TERMS} terms, not {fewest}"
    return None


def takes(problem: Problem, transposed: bool) -> bool:
    """Whether the walk over queries, or over keys, can run on matrix units."""
    return why_not(problem) is None and terms(problem, transposed) <= MAX_TERMS


def lie_in_rows(problem: Problem, transposed: bool) -> bool:
    """Whether bricks can be read where they lie: a product reads 16 columns in a row, which each dilation group must
    have at hand. So must the additional keys, if there are any. And in a contiguous tensor the step from one to the
    next must fit 32 bits.
    """
    axis, p = problem.axes[-1], problem
    if max(p.heads, p.kv_heads) * max(p.head_dim, p.head_dim_v) * axis.dilation > MAX_STEP:
        return False
    _, columns = at_hand(axis, transposed)
    held = (positions(*columns, group, axis.dilation) for group in range(axis.dilation))
    additional = 0 if transposed else problem.additional
    return min(last - first for first, last in held) >= SIDE and not 0 < additional < SIDE


def can_run_on(problem: Problem, patch: tuple[int, int, int], transposed: bool) -> bool:
    """Whether bricks can be gathered row after row. In rank 1 they are gathered in their only row."""
    return problem.rank == 1 or fits(problem, patch, transposed)


@cached("lengths of wide boxes", 4096)
def _spans(axis: Axis, transposed: bool, extent: int) -> tuple[tuple[int, int, int, int], ...]:
    """(columns, first and last that all rows see, how many) of the boxes of all patches of ``extent`` rows on an axis.

    Both are counted from the box's first column.
    """
    found = Counter(
        (high - low, common_low - low, max(common_high, common_low) - low)
        for low, common_low, common_high, high in itertools.chain.from_iterable(patch_spans(axis, transposed, extent))
    )
    return tuple((*key, times) for key, times in found.items())


def bricks_in_rows(problem: Problem, patch: tuple[int, int, int], heads: int, transposed: bool) -> Bricks:
    """The exact bricks of one batch item and key/value head, in rows of their own.

    The last of a row is never full where it was moved back.
    """
    *lines, x = [
        _spans(axis, transposed, extent) for axis, extent in zip(problem.axes, patch[3 - problem.rank :], strict=True)
    ]
    executed = math.prod(sum(length * times for length, _, _, times in axis) for axis in lines)
    full = math.prod(sum((high - low) * times for _, low, high, times in axis) for axis in lines)
    executed *= sum(-(-length // SIDE) * times for length, _, _, times in x)
    full *= sum(max(0, high // SIDE - -(-low // SIDE)) * times for _, low, high, times in x)
    repeat = problem.group_heads // heads
    return Bricks(executed * repeat, full * repeat)


def bricks_that_run_on(problem: Problem, patch: tuple[int, int, int], heads: int, transposed: bool) -> Bricks:
    """The exact bricks where they run on from row to row."""
    axes = [
        _spans(axis, transposed, extent) for axis, extent in zip(problem.axes, patch[3 - problem.rank :], strict=True)
    ]
    executed = full = 0
    for boxes in itertools.product(*axes):
        times = math.prod(box[3] for box in boxes)
        executed += times * -(-math.prod(box[0] for box in boxes) // SIDE)
        full += times * _full_in_box(tuple(box[:3] for box in boxes))
    repeat = problem.group_heads // heads
    return Bricks(executed * repeat, full * repeat)


@cached("full bricks of wide boxes", 4096)
def _full_in_box(box: tuple[tuple[int, int, int], ...]) -> int:
    """Bricks of a box whose columns all rows see. box: columns, and the interval that all rows see, on each axis."""
    *lines, (size, low, high) = box
    runs = [(low, high)]  # of columns that all rows see, numbered row after row
    for length, first, last in reversed(lines):
        if runs == [(0, size)]:
            runs = [(first * size, last * size)]
        else:
            runs = [(p * size + low, p * size + high) for p in range(first, last) for low, high in runs]
        size *= length
    return sum(max(0, last // SIDE - -(-first // SIDE)) for first, last in runs)


def bricks_of(problem: Problem, patch: tuple[int, int, int], heads: int, transposed: bool, flat: bool) -> Bricks:
    """The exact bricks of one batch item and key/value head. In rank 1 nothing runs on."""
    if flat and problem.rank > 1:
        return bricks_that_run_on(problem, patch, heads, transposed)
    return bricks_in_rows(problem, patch, heads, transposed)


def shapes(problem: Problem, transposed: bool, flat: bool) -> list[Shape]:
    """The patches that this walk can have, best first: fewest bricks, then the widest. flat: bricks are gathered, and
    run on. None where such a walk is not possible.
    """
    if not flat and not lie_in_rows(problem, transposed):
        return []
    heads_in_rows = [h for h in (1, 2, 4, 8, 16) if problem.group_heads % h == 0 and (h == 1 or not transposed)]
    found = [(patch, heads) for heads in heads_in_rows for patch in patches(problem.rank, heads, SIDE)]
    if flat:
        found = [shape for shape in found if can_run_on(problem, shape[0], transposed)]
    counted = [Shape(bricks_of(problem, *shape, transposed, flat).executed, *shape) for shape in found]
    return sorted(counted, key=lambda shape: (shape.executed, -shape.patch[-1], shape.heads))


def dims_of(template: Template, dim: int, dim_v: int) -> tuple[int, int]:
    """The padded head dims of a kernel: those of the gradients' are equal."""
    return (dim, dim_v) if template is ON_MATRIX_UNITS[FORWARD.name] else (max(dim, dim_v),) * 2


def room(problem: Problem, instance: Instance) -> int:
    """As many simdgroups as threadgroup memory holds, if so many have rows."""
    axis, patch = problem.axes[-1], instance.patch
    rows = group_length(axis.keys if instance.record.transposed else axis.queries, 0, axis.dilation)
    return max(1, min(MAX_SIMDGROUPS, THREADGROUP_BYTES // instance.shared_bytes, -(-rows // patch[-1])))
