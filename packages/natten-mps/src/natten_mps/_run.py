"""One op on tensors, from its problem on: through the custom ops, or in the dense backend's plain operations."""

from typing import Any

import torch
from torch import Tensor

from . import _operations, _ops
from ._device import machine
from ._metal.api import dense
from ._metal.plan.backend import DENSE
from ._metal.plan.programs import DenseOperations
from ._metal.problem.problem import Problem


def traced() -> bool:
    """Whether torch.compile or torch.export follows the Python code of the call."""
    return torch.compiler.is_compiling() or torch.compiler.is_exporting()


def run(problem: Problem, backend: str, tensors: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Plan and launch; ``tensors`` in the order of ``problem.record.inputs``.

    The custom op plans when it runs, so that torch.compile need not see the planner; only the dense backend, which
    autograd itself differentiates, stays outside of it ('auto' never takes it).
    """
    if backend != DENSE.name:
        return _ops.run(problem, backend, *tensors)
    device = tensors[0].device
    program = _dense_program(problem, device)
    # Autocast does not know meta.
    with torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False):
        return dense.run(_operations, program, tensors)


def _dense_program(problem: Problem, device: torch.device) -> DenseOperations:
    """The program that the plan of the dense backend holds.

    Where torch traces, nothing can be planned: a tracer cannot follow the planner, and symbolic sizes have no hash,
    under which plans are kept. The program would be the same; only the planner's check that the device computes in
    float64 is missing, and a device that does not raises an error itself.
    """
    if traced() or not _hashable(problem):
        return DenseOperations(problem, DENSE.name, problem.record.forward, ())
    program = machine().plan_on(device, problem, DENSE.name).forward
    assert isinstance(program, DenseOperations), program
    return program


def _hashable(problem: Problem) -> bool:
    try:
        hash(problem)
    except TypeError:
        return False
    return True
