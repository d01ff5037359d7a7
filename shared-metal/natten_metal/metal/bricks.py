"""The exact bricks of any walk: of 8 columns (:mod:`.tiles`, :mod:`.flat`), or of matrix units' 16 (:mod:`.mpp`)."""

from ..problem.problem import Problem
from . import flat, mpp
from .templates import Template
from .tiles import Bricks


def bricks_of(problem: Problem, template: Template, patch: tuple[int, int, int], heads: int, run_on: bool) -> Bricks:
    """The bricks of one batch item and key/value head (all its query heads). run_on: from row to row of a box."""
    count = mpp.bricks_of if template.mpp else flat.bricks_of
    return count(problem, patch, heads, template.transposed, run_on)
