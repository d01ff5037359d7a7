"""What the custom ops compute: the kernels that a plan names, and shapes alone for fake tensors."""

from typing import Any

import torch
from torch import Tensor

from ._call import Call, named, plan_for
from ._launch import metal as _launch
from ._launch import native as _launch_native
from ._metal.plan import backends
from ._metal.plan.plan import Plan
from ._plain import pure as _pure
from ._plain import pure_split as _pure_split


def _fall_back(call: Call, failure: backends.KernelFailure, inputs: list[Any]) -> Plan:
    """The pure plan in place of a Metal plan whose kernel failed; an error if Metal was asked for."""
    backends.accept_failure("natten-mps", call.name, call.backend, failure)
    return plan_for(call, inputs, "pure")


def run_forward(call: Call, tensors: list[Any], into: list[Tensor] | None = None) -> list[Tensor]:
    """The op's outputs; in ``into`` itself where the path can write there."""
    planned = plan_for(call, tensors)
    if planned.failed is not None:
        backends.accept_failure("natten-mps", call.name, call.backend, planned.failed)
    if planned.path == "native":  # torch computes nothing there
        return _launch_native.forward(planned, named(call, tensors), into)
    with torch.autocast(tensors[1].device.type, enabled=False):
        if planned.path == "metal":
            try:
                if planned.problem.batch:
                    return _launch.forward(planned, named(call, tensors))
                planned = plan_for(call, tensors, "pure")  # nothing to launch
            except backends.KernelFailure as failure:
                planned = _fall_back(call, failure, tensors)
        on_cpu = tensors[1].device.type == "cpu"
        if call.backend == "auto" and on_cpu and (reason := _launch_native.missing(tensors[1].device)):
            backends.warn_of_missing_kernels("natten-mps", call.name, reason)
        if call.op == "qk":
            return [_pure_split.qk(planned, *tensors)]
        if call.op == "av":
            return [_pure_split.av(planned, *tensors)]
        return list(_pure.forward(planned, *tensors))


def run_backward(
    call: Call, grads: list[Any], inputs: list[Any], outputs: list[Any], into: list[Tensor] | None = None
) -> list[Tensor]:
    """Gradients of the inputs that are given; the first in ``into`` itself where the path can write there."""
    planned = plan_for(call, inputs)
    # Autograd lets sparse gradients of dense outputs through.
    grads = [grad if grad is None or grad.layout == torch.strided else grad.to_dense() for grad in grads]
    if planned.path == "native":
        return _launch_native.backward(planned, grads, named(call, inputs), outputs, into)
    with torch.autocast(inputs[1].device.type, enabled=False):
        if planned.path == "metal":
            try:
                if planned.problem.batch:
                    return _launch.backward(planned, grads, named(call, inputs), outputs)
                planned = plan_for(call, inputs, "pure")  # nothing to launch
            except backends.KernelFailure as failure:
                planned = _fall_back(call, failure, inputs)
        found: tuple[Any, ...]
        if call.op == "qk":
            found = _pure_split.qk_backward(planned, grads[0], *inputs)
        elif call.op == "av":
            found = _pure_split.av_backward(planned, grads[0], *inputs)
        else:
            d_out = torch.zeros_like(outputs[0]) if grads[0] is None else grads[0]
            padded = [*inputs, *[None] * (6 - len(inputs))]
            found = _pure.backward(planned, d_out, grads[1], *padded, *outputs)
    return [gradient for gradient in found if gradient is not None]


def fake_forward(call: Call, tensors: list[Any]) -> list[Tensor]:
    first, last = tensors[0], tensors[1]
    if call.op == "qk":
        slots = 1
        for w in call.kernel_size:
            slots = slots * w
        return [first.new_empty((*first.shape[:-1], slots))]
    if call.op == "av":
        return [last.new_empty((*first.shape[:-1], last.shape[-1]))]
    lse_dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    out = first.new_empty((*first.shape[:-1], tensors[2].shape[-1]))
    return [out, first.new_empty(first.shape[:-1], dtype=lse_dtype)]


def fake_backward(call: Call, grads: list[Any], inputs: list[Any], outputs: list[Any]) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in inputs if tensor is not None]
