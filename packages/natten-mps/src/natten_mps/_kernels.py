"""What an op and its gradient compute: the programs of a plan are launched, on the current machine."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._device import Machine, machine
from ._launch import native, pure
from ._metal.plan.plan import Plan
from ._metal.plan.programs import Blank, CpuCall, MetalLaunches, Program, Walks, gradient_tensors
from ._metal.problem.ops import LOGITS, LSE, OPS, VALUE
from ._private import below_autograd

Tensors = dict[str, Tensor]


def run_forward(plan: Plan, inputs: Sequence[Tensor | None], into: list[Tensor] | None = None) -> list[Tensor]:
    """The op's outputs; in ``into`` itself where the backend can write there."""
    here, given = machine(), _named(plan, inputs)
    made = here.run(plan, lambda plan: _launch(here, plan.forward, given, into))
    return [made[name] for name in plan.record.output_names]


def run_backward(
    plan: Plan,
    grads: Sequence[Tensor | None],
    inputs: Sequence[Tensor | None],
    outputs: Sequence[Tensor],
    into: list[Tensor] | None = None,
) -> list[Tensor]:
    """Gradients of the inputs that are given; the first in ``into`` itself where the backend can write there."""
    here, record, given = machine(), plan.record, _named(plan, inputs)
    # Autograd lets sparse gradients of dense outputs through.
    dense = [g if g is None or g.layout is torch.strided else g.to_dense() for g in grads]
    if dense[0] is None:
        dense[0] = torch.zeros_like(outputs[0])
    tensors = gradient_tensors(record, dense, given, outputs)
    has_lse_grad = len(dense) > 1 and dense[1] is not None
    made = here.run(plan, lambda plan: _launch(here, plan.gradient(has_lse_grad), tensors, into))
    found = []
    for operand, tensor in zip(record.inputs, inputs, strict=False):
        if tensor is not None and operand.differentiable:
            # Where there are no additional keys, no gradient is computed.
            gradient = made[operand.gradient] if operand.name in given else torch.zeros_like(tensor)
            found.append(gradient if gradient.dtype is tensor.dtype else gradient.to(tensor.dtype))
    return found


def _named(plan: Plan, inputs: Sequence[Tensor | None]) -> Tensors:
    """The inputs that the problem has, by name."""
    problem = plan.problem
    named = zip(problem.record.inputs, inputs, strict=False)
    return {o.name: tensor for o, tensor in named if tensor is not None and o.given(problem)}


def _launch(here: Machine, program: Program, tensors: Tensors, into: list[Tensor] | None) -> Tensors:
    """The results of a program by name."""
    here.announce(program)
    if isinstance(program, CpuCall):  # torch computes nothing there
        return native.run(program, tensors, here.native, into)
    device = next(iter(tensors.values())).device
    if isinstance(program, Blank):
        return {o.name: torch.zeros(o.shape, dtype=native.DTYPES[o.dtype], device=device) for o in program.outputs}
    with torch.autocast(device.type, enabled=False):
        if isinstance(program, MetalLaunches):
            # Imported here, because it imports what describes the Metal kernels, which a CPU never needs.
            from ._launch import metal

            return below_autograd(metal.run, program, tensors, here.metal)
        assert isinstance(program, Walks), program
        return below_autograd(pure.run, program, tensors)


def fake_forward(call: Any, tensors: list[Any]) -> list[Tensor]:
    """Outputs of the right shapes and dtypes, for a tracer's symbolic sizes."""
    record, like = OPS[call.op], tensors[1]
    given = dict(zip(record.input_names, tensors, strict=False))
    sums = torch.float64 if like.dtype == torch.float64 else torch.float32
    channels = {LSE: (), LOGITS: (math.prod(call.kernel_size),)}
    found = []
    for operand in record.outputs:
        last = channels[operand] if operand in channels else given[VALUE.name].shape[-1:]
        shape = (*tensors[0].shape[:-1], *last)
        found.append(like.new_empty(shape, dtype=sums if operand.accumulated else like.dtype))
    return found


def fake_backward(call: Any, inputs: list[Any]) -> list[Tensor]:
    """Gradients of the inputs that are given, as shapes and dtypes."""
    named = zip(OPS[call.op].inputs, inputs, strict=False)
    return [t.new_empty(t.shape) for operand, t in named if t is not None and operand.differentiable]
