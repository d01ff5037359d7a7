"""The work of launches whose bricks run on from one row of a box into the next, counted from the definition.

Patch by patch, from the masks of the axes; it shares nothing with the planner's count.
"""

from __future__ import annotations

import math

import numpy as np

from natten_mps._metal.metal.source import Instance
from natten_mps._metal.problem.problem import Problem

from .patch_boxes import Array, boxes


def flat_bricks(problem: Problem, instance: Instance) -> int:
    """Bricks of one batch item and block of heads: the columns of each box in eights."""
    return sum(-(-math.prod(len(axis.columns) for axis in box) // 8) for box in boxes(problem, instance))


def flat_reads(problem: Problem, instance: Instance) -> Array:
    """``[tokens..]``: how often a product reads each column of one head: once for each patch that sees it; the first
    column stands in for those that the last brick lacks.
    """
    counts = np.zeros(problem.query_shape if instance.record.transposed else problem.key_shape, int)
    for box in boxes(problem, instance):
        total = math.prod(len(axis.columns) for axis in box)
        if total:
            counts[np.ix_(*(axis.columns for axis in box))] += 1
            counts[tuple(axis.columns[0] for axis in box)] += -total % 8
    return counts
