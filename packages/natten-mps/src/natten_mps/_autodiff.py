"""Derivatives and vmap of all ops: two ``autograd.Function`` s.

:class:`Backward` is the reverse-mode derivative of :class:`Forward`. The fused ops have no other derivative here (the
dense backend has all). Those of the split ops, forward and reverse and of any order, are computed by these two classes
again (:mod:`natten_metal.problem.bilinear`). Both run the custom ops, which under autograd and torch.func lead back to
them.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from ._call import Call, backward_op, call_of, forward_op, primals, problem_of, split
from ._device import machine
from ._direct import differentiated, goes_directly
from ._kernels import run_backward, run_forward
from ._metal.plan.plan import Plan
from ._metal.problem import checks
from ._metal.problem.bilinear import Split
from ._metal.problem.mask import slot_keys
from ._metal.problem.ops import KEY, RPB
from ._metal.problem.problem import Problem
from ._private import apply_to_plain, below_autograd, forward_mode, is_wrapped_fake
from ._tensors import TorchTables

# Dispatch keys at which a call is intercepted: plain autograd, and torch.func before it unwraps its first level. There
# an autograd.Function still sees all levels, as if it had been called instead of the op.
DIFFERENTIATED = ("Autograd", "FuncTorchDynamicLayerFrontMode")

# The dispatch key of torch's older vmap.
BATCHED = "Batched"
# When torch.compile meets a NotImplementedError inside torch.func's transforms, it carries on, and in these releases
# its result is then wrong: zeros. Any other error stops it.
_CARRIES_ON = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 12)


class Forward(torch.autograd.Function):
    """``Forward.apply(call, *inputs)`` -> the op's outputs."""

    @staticmethod
    def forward(call: Call, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(below_autograd(forward_op, call, inputs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call = inputs[0]
        ctx.set_materialize_grads(False)
        if ctx.call.record.bilinear:  # whose gradients do not read the output
            ctx.save_for_backward(*inputs[1:])
            ctx.save_for_forward(*inputs[1:])
        else:
            ctx.save_for_backward(*inputs[1:], *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        # Read once: under activation checkpointing each access unpacks again.
        saved, record = ctx.saved_tensors, ctx.call.record
        inputs, outputs = (saved, grads) if record.bilinear else (saved[: -len(grads)], saved[-len(grads) :])
        if all(grad is None for grad in grads):
            return (None,) * (len(inputs) + 1)
        found = iter(differentiable_backward(ctx.call, *grads, *inputs, *outputs))
        named = zip(record.inputs, inputs, strict=False)
        return (None, *(None if t is None or not operand.differentiable else next(found) for operand, t in named))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: Call, *inputs: Tensor | None) -> Any:
        mapped_rpb = call.record.reads(RPB) and in_dims[1 + call.record.inputs.index(RPB)] is not None
        return _vmap(forward_op, info.batch_size, in_dims[1:], call, inputs, one_by_one=mapped_rpb)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        call = ctx.call
        if not call.record.bilinear:
            _refuse(checks.reject_forward_mode, call, tangents)
        inputs = primals(ctx.saved_tensors)
        with forward_mode():
            return (_split_op(call).tangent(inputs, tangents[1:]),)


class Backward(torch.autograd.Function):
    """``Backward.apply(call, *grads, *inputs, *outputs)`` -> gradients of the inputs that are given.

    A split op's output is not read: any tensor of its shape will do.
    """

    @staticmethod
    def forward(call: Call, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(below_autograd(backward_op, call, tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call = inputs[0]
        ctx.set_materialize_grads(False)
        if ctx.call.record.bilinear:
            grads, given, _ = split(ctx.call.record.name, inputs[1:])
            ctx.save_for_backward(*grads, *given)
            ctx.save_for_forward(*grads, *given)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        call = ctx.call
        if not call.record.bilinear:
            _refuse(checks.reject_second_derivative, call, cotangents)
        grad, *inputs = ctx.saved_tensors
        none = (None,) * (2 + len(inputs))
        if all(cotangent is None for cotangent in cotangents):
            return (None, *none)
        # Nothing depends on rpb, nor on the output, which is not read.
        return (None, *_split_op(call).gradients_of_gradients(grad, inputs, cotangents), *none[3:])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        call = ctx.call
        if not call.record.bilinear:
            _refuse(checks.reject_forward_mode, call, tangents)
        grad, *inputs = primals(ctx.saved_tensors)
        (of_grad,), of_inputs, _ = split(call.record.name, tangents[1:])
        with forward_mode():
            return tuple(_split_op(call).tangents_of_gradients(grad, inputs, of_grad, of_inputs))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: Call, *tensors: Tensor | None) -> Any:
        # The gradient of rpb sums over the batch, so mapped problems with an rpb cannot share one.
        has_rpb = call.record.reads(RPB) and split(call.op, tensors)[1][call.record.inputs.index(RPB)] is not None
        return _vmap(backward_op, info.batch_size, in_dims[1:], call, tensors, one_by_one=has_rpb)


class DirectForward(torch.autograd.Function):
    """``DirectForward.apply(plan, *inputs)``: :class:`Forward` without the custom op, its gradient by the same plan."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        outputs = tuple(run_forward(plan, inputs))
        Forward.setup_context(ctx, (plan, *inputs), outputs)
        return outputs

    backward, jvp = staticmethod(Forward.backward), staticmethod(Forward.jvp)


class DirectBackward(torch.autograd.Function):
    """``DirectBackward.apply(plan, *grads, *inputs, *outputs)``: :class:`Backward` without the custom op."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        gradients = tuple(_run_backward(plan, tensors))
        Backward.setup_context(ctx, (plan, *tensors), gradients)
        return gradients

    backward, jvp = staticmethod(Backward.backward), staticmethod(Backward.jvp)


def planned_forward(problem: Problem, backend: str, inputs: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """The op's outputs. A call that only autograd takes part in is planned here, once for forward and gradient; any
    other one is planned by the custom op.
    """
    if not goes_directly(inputs):
        return cast(tuple[Tensor, ...], Forward.apply(call_of(problem, backend), *inputs))
    while inputs[-1] is None:  # autograd would take them along
        inputs = inputs[:-1]
    second = inputs[1]
    assert second is not None
    return _directly(DirectForward, run_forward, machine().plan_on(second.device, problem, backend), inputs)


def _directly(
    function: type[torch.autograd.Function], run: Callable[..., list[Tensor]], planned: Plan, tensors: tuple[Any, ...]
) -> tuple[Tensor, ...]:
    """``function``, or, where nothing is differentiated, what it runs."""
    if differentiated(tensors):
        return apply_to_plain(function, planned, *tensors)
    return tuple(run(planned, tensors))


def differentiable_forward(call: Call | Plan, *inputs: Tensor | None) -> tuple[Tensor, ...]:
    """:class:`Forward`, directly where that is possible."""
    if isinstance(call, Plan):
        if goes_directly(inputs):
            return _directly(DirectForward, run_forward, call, inputs)
        call = call_of(call.problem, call.requested)
    return cast(tuple[Tensor, ...], Forward.apply(call, *inputs))


def differentiable_backward(call: Call | Plan, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """:class:`Backward`, directly where that is possible."""
    if isinstance(call, Plan):
        if goes_directly(tensors):
            return _directly(DirectBackward, _run_backward, call, tensors)
        call = call_of(call.problem, call.requested)
    return cast(tuple[Tensor, ...], Backward.apply(call, *tensors))


def _run_backward(planned: Plan, tensors: tuple[Any, ...]) -> list[Tensor]:
    return run_backward(planned, *split(planned.record.name, tensors))


def _split_op(call: Call | Plan) -> Split:
    """A split op's kernels, as functions that are differentiable in turn."""
    has_key = call.record.reads(KEY)

    def with_rpb(rpb: Tensor | None) -> Call | Plan:
        """The call with this rpb, or without one."""
        if isinstance(call, Call) or call.problem.has_rpb == (rpb is not None):
            return call
        return machine().plan(replace(call.problem, has_rpb=rpb is not None), call.device, call.requested)

    def op(x: Tensor, y: Tensor, rpb: Tensor | None) -> Tensor:
        given = (x, y, rpb) if has_key else (x, y)
        found = differentiable_forward(with_rpb(rpb), *given)[0]
        problem = problem_of(call, given) if isinstance(call, Call) else call.problem
        if not has_key or not any(problem.is_causal):
            return found
        held = slot_keys(problem, TorchTables(x.device))[1].unflatten(0, problem.query_shape).unsqueeze(-2)
        return found.masked_fill(~held, 0.0)

    def gradients(grad: Tensor, x: Tensor, y: Tensor, rpb: Tensor | None) -> Any:
        return differentiable_backward(with_rpb(rpb), grad, *((x, y, rpb) if has_key else (x, y)), grad)

    return Split(op, gradients, torch.zeros_like)


def _refuse(rule: Callable[[str], NoReturn], call: Call | Plan, given: tuple[Any, ...]) -> NoReturn:
    """``rule(call.name)``: a derivative that no kernel has. given: its tangents or cotangents."""
    try:
        rule(call.name)
    except NotImplementedError as error:
        if _CARRIES_ON and any(is_wrapped_fake(tensor) for tensor in given if isinstance(tensor, Tensor)):
            raise RuntimeError(str(error)) from error
        raise


def _vmap(launch: Any, size: int, dims: Any, call: Call, tensors: Any, one_by_one: bool) -> tuple[Any, Any]:
    """Fold the mapped axis into the batch; with an rpb per mapped problem, one problem after another."""
    if size == 0:  # no problem to run: take the shapes from one of zeros
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
    # Of the gradient's tensors none is an rpb here.
    rpb = call.record.inputs.index(RPB) if call.record.reads(RPB) and launch is forward_op else None
    folded = []
    for index, (tensor, dim) in enumerate(zip(tensors, dims, strict=True)):
        if tensor is None or index == rpb:
            folded.append(tensor)
            continue
        mapped = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        folded.append(mapped.flatten(0, 1))
    results = tuple(r.unflatten(0, (size, r.shape[0] // size)) for r in launch(call, folded))
    return results, (0,) * len(results)
