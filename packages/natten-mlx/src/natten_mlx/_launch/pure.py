"""Runs the pure path on MLX arrays: blocks of queries, in MLX's own operations."""

from collections.abc import Mapping

import mlx.core as mx

from .._metal.plan.programs import Walks
from .._plain import pure, pure_split


def run(program: Walks, tensors: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The results of the program's function by name."""
    function = getattr(pure_split if program.problem.record.bilinear else pure, program.function)
    found = function(program, **tensors)
    results = (array for array in (found if isinstance(found, tuple) else (found,)) if array is not None)
    return {output.name: result for output, result in zip(program.outputs, results, strict=True)}
