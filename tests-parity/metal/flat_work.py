"""The work of launches whose bricks run on from one row of a box into the next, counted from the definition.

Patch by patch, from the masks of the axes; it shares nothing with the planner's count.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from natten_mps._metal.metal.source import Instance
from natten_mps._metal.problem.mask import NumpyTables, axis_mask
from natten_mps._metal.problem.problem import Problem

Array = Any


def axis_boxes(problem: Problem, instance: Instance, number: int) -> list[Array]:
    """What each patch sees along axis ``number``: token numbers of the tensor at hand, from the first to the last."""
    axis, transposed = problem.axes[number], instance.record.transposed
    seen = axis_mask(axis, NumpyTables())
    seen = seen.T if transposed else seen
    starts = (axis.key_start, axis.query_start) if transposed else (axis.query_start, axis.key_start)
    extent, boxes = instance.patch[3 - problem.rank + number], []
    for group in range(axis.dilation):
        rows, columns = (
            np.arange((group - start) % axis.dilation, n, axis.dilation)
            for start, n in zip(starts, seen.shape, strict=True)
        )
        for first in range(0, len(rows), extent):
            found = np.flatnonzero(seen[np.ix_(rows[first : first + extent], columns)].any(0))
            boxes.append(columns[found[0] : found[-1] + 1] if found.size else columns[:0])
    return boxes


def boxes(problem: Problem, instance: Instance) -> Iterator[tuple[Array, ...]]:
    """The box of every patch: tokens on each axis."""
    return itertools.product(*(axis_boxes(problem, instance, number) for number in range(problem.rank)))


def flat_bricks(problem: Problem, instance: Instance) -> int:
    """Bricks of one batch item and block of heads: the columns of each box in eights."""
    return sum(-(-math.prod(map(len, box)) // 8) for box in boxes(problem, instance))


def flat_reads(problem: Problem, instance: Instance) -> Array:
    """``[tokens..]``: how often a product reads each column of one head: once for each patch that sees it; the first
    column stands in for those that the last brick lacks.
    """
    counts = np.zeros(problem.query_shape if instance.record.transposed else problem.key_shape, int)
    for box in boxes(problem, instance):
        total = math.prod(map(len, box))
        if total:
            counts[np.ix_(*box)] += 1
            counts[tuple(tokens[0] for tokens in box)] += -total % 8
    return counts
