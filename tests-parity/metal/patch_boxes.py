"""The boxes of patches: what each patch of a launch sees along each axis, from the masks of the axes alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from natten_mps._metal.metal.source import Instance
from natten_mps._metal.problem.mask import NumpyTables, axis_mask
from natten_mps._metal.problem.problem import Problem

Array = Any


class Box(NamedTuple):
    """What a patch sees along one axis. columns: token numbers, from the first that any row sees to the last. seen: by
    which row, [rows, columns]. held: all tokens of the dilation group at hand; first: where the columns begin in it.
    """

    columns: Array
    seen: Array
    held: Array
    first: int


def axis_boxes(problem: Problem, instance: Instance, number: int) -> list[Box]:
    axis, transposed = problem.axes[number], instance.record.transposed
    seen = axis_mask(axis, NumpyTables())
    seen = seen.T if transposed else seen
    starts = (axis.key_start, axis.query_start) if transposed else (axis.query_start, axis.key_start)
    extent, found = instance.patch[3 - problem.rank + number], []
    for group in range(axis.dilation):
        rows, columns = (
            np.arange((group - start) % axis.dilation, n, axis.dilation)
            for start, n in zip(starts, seen.shape, strict=True)
        )
        for corner in range(0, len(rows), extent):
            own = seen[np.ix_(rows[corner : corner + extent], columns)]
            held = np.flatnonzero(own.any(0))
            low, high = (held[0], held[-1] + 1) if held.size else (0, 0)
            found.append(Box(columns[low:high], own[:, low:high], columns, int(low)))
    return found


def boxes(problem: Problem, instance: Instance) -> Iterator[tuple[Box, ...]]:
    """The box of every patch, axis by axis."""
    return itertools.product(*(axis_boxes(problem, instance, number) for number in range(problem.rank)))
