"""Derivatives and vmap of all ops: two ``autograd.Function`` s.

:class:`Forward` is differentiable once, in reverse; :class:`Backward` has no derivative (the dense path has). Both
run the custom ops, which under autograd and torch.func lead back to them.
"""

from typing import Any

import torch
from torch import Tensor

from ._call import Call, backward_op, below_autograd, forward_op, split
from ._metal import checks
from ._metal.problem import INPUTS

# Where a call is met: by plain autograd, and by torch.func, before it has taken the first of its levels apart. There
# an autograd.Function still finds all of them, as if it had been called in the op's place.
DIFFERENTIATED = ("Autograd", "FuncTorchDynamicLayerFrontMode")


class Forward(torch.autograd.Function):
    """``Forward.apply(call, *inputs)`` -> the op's outputs; differentiable once, in reverse."""

    @staticmethod
    def forward(call: Call, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(below_autograd(forward_op, call, inputs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call = inputs[0]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[1:], *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        count = len(INPUTS[ctx.call.op])
        # Once: under activation checkpointing each reading unpacks anew.
        saved = ctx.saved_tensors
        inputs = saved[:count]
        if all(grad is None for grad in grads):
            return (None,) * (count + 1)
        found = iter(Backward.apply(ctx.call, *grads, *saved))
        return (None, *(None if tensor is None else next(found) for tensor in inputs))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: Call, *inputs: Tensor | None) -> Any:
        mapped_bias = call.op in ("na", "qk") and in_dims[-1] is not None
        return _vmap(forward_op, info.batch_size, in_dims[1:], call, inputs, one_by_one=mapped_bias)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        checks.reject_forward_mode(ctx.call.name)


class Backward(torch.autograd.Function):
    """``Backward.apply(call, *grads, *inputs, *outputs)`` -> gradients of the inputs that are given."""

    @staticmethod
    def forward(call: Call, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(below_autograd(backward_op, call, tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        checks.reject_second_derivative(ctx.call.name)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: Call, *tensors: Tensor | None) -> Any:
        # The bias's gradient sums over the batch, so mapped problems with a bias cannot share one.
        has_bias = call.op in ("na", "qk") and split(call, tensors)[1][-1] is not None
        return _vmap(backward_op, info.batch_size, in_dims[1:], call, tensors, one_by_one=has_bias)


def _vmap(launch: Any, size: int, dims: Any, call: Call, tensors: Any, one_by_one: bool) -> tuple[Any, Any]:
    """Fold the mapped axis into the batch; with a bias per mapped problem, one problem after another."""
    if size == 0:  # of no problem, the shapes of one
        zeros = [t if d is None else t.new_zeros(t.movedim(d, 0).shape[1:]) for t, d in zip(tensors, dims, strict=True)]
        none = tuple(result.new_empty(0, *result.shape) for result in launch(call, zeros))
        return none, (0,) * len(none)
    if one_by_one:
        parts = [
            launch(call, [t if d is None else t.select(d, i) for t, d in zip(tensors, dims, strict=True)])
            for i in range(size)
        ]
        stacked = tuple(torch.stack(part) for part in zip(*parts, strict=True))
        return stacked, (0,) * len(stacked)
    has_bias = call.op in ("na", "qk") and launch is forward_op
    folded = []
    for place, (tensor, dim) in enumerate(zip(tensors, dims, strict=True)):
        if tensor is None or (has_bias and place == len(tensors) - 1):
            folded.append(tensor)
            continue
        mapped = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        folded.append(mapped.flatten(0, 1))
    results = tuple(r.unflatten(0, (size, r.shape[0] // size)) for r in launch(call, folded))
    return results, (0,) * len(results)
