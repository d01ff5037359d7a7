"""Runs the pure path on torch tensors: blocks of queries, in torch's own operations."""

from torch import Tensor

from .._metal.plan.programs import Walks
from .._plain import pure, pure_split


def run(program: Walks, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The results of the program's function by name."""
    function = getattr(pure_split if program.problem.record.bilinear else pure, program.function)
    found = function(program, **tensors)
    results = (tensor for tensor in (found if isinstance(found, tuple) else (found,)) if tensor is not None)
    return {output.name: result for output, result in zip(program.outputs, results, strict=True)}
