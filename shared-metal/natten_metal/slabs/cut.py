"""How a problem is cut into slabs that fit a memory budget, by exact arithmetic.

A slab is a range of batch items and of queries on each axis, with the keys that these queries attend to. Items are
divided first, then axis 0, and further axes where slabs would read more than twice as many keys as they have queries.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

from ..caches import cached
from ..plan.footprint import ITEM_BYTES, working_bytes
from ..plan.plan import Plan
from ..problem.checks import slabs as rules
from ..problem.interval import column_span
from ..problem.problem import Axis, Piece, Problem
from .adapter import Adapter

Range = tuple[int, int]
# Items, and tokens on each axis: the lengths of a slab; the last slabs may be shorter.
Lengths = tuple[int, ...]


def ranges(size: int, length: int) -> list[Range]:
    """``range(size)`` in parts of ``length``."""
    return [(low, min(low + length, size)) for low in range(0, size, length)]


def slabs(problem: Problem, lengths: Lengths) -> Iterator[tuple[Range, ...]]:
    """The slabs of a problem in their order: ranges of items and of queries on each axis."""
    return itertools.product(*map(ranges, (problem.batch, *problem.query_shape), lengths))


def number(problem: Problem, lengths: Lengths) -> int:
    """How many slabs there are."""
    sizes = problem.batch, *problem.query_shape
    return math.prod(-(-size // length) for size, length in zip(sizes, lengths, strict=True))


def keys_of(axis: Axis, queries: Range) -> Range:
    """The keys of a whole axis that a range of queries attends to."""
    low, high = queries
    return column_span(replace(axis, queries=high - low, query_start=low), False)


def piece(problem: Problem, slab: tuple[Range, ...]) -> tuple[Problem, tuple[Range, ...]]:
    """The problem of a slab, and the ranges of items and keys that it reads."""
    items, *queries = slab
    keys = [keys_of(axis, each) for axis, each in zip(problem.axes, queries, strict=True)]
    low, shapes = zip(*((each[0], each[1] - each[0]) for each in queries), strict=True)
    first, key_shape = zip(*((each[0], each[1] - each[0]) for each in keys), strict=True)
    whole = shapes == key_shape == problem.query_shape
    found = replace(
        problem,
        batch=items[1] - items[0],
        query_shape=shapes,
        key_shape=key_shape,
        piece=None if whole else Piece(problem.query_shape, low, first),
    )
    return found, (items, *keys)


@cached("widest slabs", 1024)
def widest(axis: Axis, length: int) -> Range:
    """Of the parts of an axis, one whose queries attend to the most keys.

    Away from the ends, that depends only on where a part begins within its stride and dilation group, so one part for
    each such offset is enough, and those near the ends.
    """
    parts = -(-axis.full // length)
    at_ends = axis.window * axis.dilation // length + 2
    inner = range(at_ends, at_ends + axis.stride * axis.dilation)
    outer = (*range(at_ends), *range(parts - at_ends, parts))
    starts = sorted({part * length for part in (*inner, *outer) if 0 <= part < parts})
    found = [(start, min(start + length, axis.full)) for start in starts]
    return max(found, key=lambda each: _count(keys_of(axis, each)))


def _count(each: Range) -> int:
    return each[1] - each[0]


def largest(problem: Problem, lengths: Lengths) -> Problem:
    """The problem of the largest slab."""
    pairs = zip(problem.axes, lengths[1:], strict=True)
    slab = (0, lengths[0]), *(widest(axis, length) for axis, length in pairs)
    return piece(problem, slab)[0]


def operand_bytes(problem: Problem, plan: Plan | None, adapter: Adapter) -> int:
    """Bytes that a slab holds at once; without a plan, all but the intermediate tensors."""
    inputs, outputs = (
        [math.prod(each.shape(problem)) * ITEM_BYTES[each.dtype(problem)] for each in operands if each.given(problem)]
        for operands in (problem.record.inputs, problem.record.outputs)
    )
    reading = 0 if adapter.reads_in_place else max(inputs)
    working = 0 if plan is None else working_bytes(plan.forward)
    return sum(inputs) + max(reading, working + sum(outputs) * (1 if adapter.writes_in_place else 2))


def slab_bytes(problem: Problem, lengths: Lengths, backend: str, adapter: Adapter) -> int:
    """Bytes that the largest slab holds at once."""
    slab = largest(problem, lengths)
    return operand_bytes(slab, adapter.plan(slab, backend), adapter)


def cut(face: str, problem: Problem, budget: int, backend: str, adapter: Adapter) -> Lengths:
    """The longest slabs that fit; ValueError if not even those of one query do."""

    def fits(lengths: Lengths) -> bool:
        if operand_bytes(largest(problem, lengths), None, adapter) > budget:
            return False
        return slab_bytes(problem, lengths, backend, adapter) <= budget

    sizes = max(1, problem.batch), *problem.query_shape
    lengths: Lengths = sizes
    while not fits(lengths):
        if max(lengths) == 1:
            rules.reject_memory(face, budget, slab_bytes(problem, lengths, backend, adapter))
        index = _next_to_halve(problem, lengths)
        lengths = _with(lengths, index, -(-lengths[index] // 2))
    for index in reversed(range(len(sizes))):  # halving may have gone too far: lengthen again, from the last axis on
        low, high = lengths[index], min(2 * lengths[index], sizes[index])
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(_with(lengths, index, middle)) else (low, middle - 1)
        parts = -(-sizes[index] // low)
        lengths = _with(lengths, index, -(-sizes[index] // parts))
    return lengths


def _with(lengths: Lengths, index: int, length: int) -> Lengths:
    return (*lengths[:index], length, *lengths[index + 1 :])


def _next_to_halve(problem: Problem, lengths: Lengths) -> int:
    """Which length to halve: items, then the first axis where halves read at most twice as many keys as they have
    queries, or else the one where they read the fewest keys per query.
    """
    if lengths[0] > 1:
        return 0
    shares = {}
    for index, axis in enumerate(problem.axes, 1):
        if lengths[index] > 1:
            half = -(-lengths[index] // 2)
            shares[index] = _count(keys_of(axis, widest(axis, half))) / half
            if shares[index] <= 2:
                return index
    return min(shares, key=lambda index: shares[index])
