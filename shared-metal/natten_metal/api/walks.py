"""Runs the programs of the pure backend."""

from collections.abc import Mapping

from ..plan.programs import Walks
from . import pure, pure_split
from .operations import Tensor
from .walk import Walk


def run(walk: Walk, program: Walks, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The results of the program's function by name."""
    function = getattr(pure_split if program.problem.record.bilinear else pure, program.function)
    found = function(walk, program, **tensors)
    results = (tensor for tensor in (found if isinstance(found, tuple) else (found,)) if tensor is not None)
    return {output.name: result for output, result in zip(program.outputs, results, strict=True)}
