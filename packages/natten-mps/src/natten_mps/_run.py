"""One op on tensors, from its problem on: through the custom ops, or in the dense backend's plain operations."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from . import _operations, _ops
from ._device import machine
from ._metal.api import dense
from ._metal.plan.backend import DENSE
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
    if not traced():  # a tracer cannot follow the planner
        with suppress(TypeError):  # a tracer's symbolic sizes have no hash, which a plan needs
            machine().plan_on(tensors[0].device, problem, backend)
    device = tensors[0].device.type
    with torch.autocast("cpu" if device == "meta" else device, enabled=False):  # autocast does not know meta
        return dense.run(_operations, problem, tensors)
