"""One op on arrays, from its problem on: through a node with derivatives of its own, or in plain operations."""

from typing import Any

import mlx.core as mx

from . import _autodiff, _operations
from ._device import machine
from ._metal.api import dense
from ._metal.api.recall import Signature
from ._metal.plan.programs import DenseOperations
from ._metal.problem.problem import Problem


def run(
    problem: Problem, backend: str, stream: mx.Stream, tensors: tuple[Any, ...], signature: Signature | None = None
) -> tuple[mx.array, ...]:
    """Plan and launch; ``tensors`` in the order of ``problem.record.inputs``.

    signature: the key under which the C++ extension's plan is kept for calls like this one.
    """
    planned = machine().plan_on(stream, problem, backend)
    if not isinstance(planned.forward, DenseOperations):
        return _autodiff.run(planned, stream, tensors, signature)
    with mx.stream(stream):
        return dense.run(_operations, planned.forward, tensors)
