"""The kernels' place in torch: custom ops, and the autograd functions over them.

Each op of a :class:`Problem` ('na', 'attention', 'qk', 'av') has two custom ops,
``natten_mps::<op>_forward`` and ``natten_mps::<op>_backward``, with a fake each. Two ``autograd.Function`` s
carry derivatives and vmap for all of them: :class:`Forward`, and :class:`Backward`, which has no derivative
(the dense path has). Eager calls go through them to the ops; torch.compile and torch.export record the ops,
whose own autograd and vmap lead to the same two functions.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function

from . import _launch, _launch_native, _pure, _pure_split
from ._arrays import device_of
from ._config import TIERS
from ._metal import backends, checks
from ._metal.plan import Plan, plan
from ._metal.problem import INPUTS, OUTPUTS, Problem


class Call(NamedTuple):
    """What a custom op is told besides its tensors."""

    op: str
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    is_causal: tuple[bool, ...]
    scale: float
    backend: str

    @property
    def name(self) -> str:
        """The op's public name, for messages."""
        suffix = "" if self.op == "na" else f"_{self.op}"
        return "attention" if self.op == "attention" else f"na{len(self.kernel_size)}d{suffix}"


def call_of(problem: Problem, backend: str) -> Call:
    """The static arguments of a problem's custom op: none that follow from the tensors' sizes."""
    p = problem
    kernel_size = () if p.op == "attention" else p.kernel_size
    return Call(p.op, kernel_size, p.stride, p.dilation, p.is_causal, p.scale, backend)


@lru_cache(maxsize=1024)
def _problem(call: Call, shapes: tuple[tuple[int, ...] | None, ...], dtype: torch.dtype) -> Problem:
    given = dict(zip(INPUTS[call.op], shapes, strict=True))
    first, key = shapes[0], given.get("key") or given["value"]
    assert first is not None and key is not None
    value, extra = given.get("value"), given.get("additional_keys")
    kernel_size = (max(first[1], key[1]),) if call.op == "attention" else call.kernel_size
    return Problem(
        call.op, first[0], first[1:-2], key[1:-2], first[-2], key[-2],
        0 if call.op == "av" else first[-1], value[-1] if value is not None else 0,
        kernel_size, call.stride, call.dilation, call.is_causal, call.scale,
        str(dtype).removeprefix("torch."), extra[1] if extra is not None else 0, given.get("rpb") is not None,
    )  # fmt: skip


def _plan_for(call: Call, tensors: list[Tensor | None], backend: str | None = None) -> Plan:
    value = tensors[1]
    assert value is not None
    shapes = tuple(None if tensor is None else tuple(tensor.shape) for tensor in tensors)
    return plan(_problem(call, shapes, value.dtype), device_of(value.device), backend or call.backend, TIERS)


def _named(call: Call, tensors: list[Any]) -> dict[str, Tensor]:
    return {name: t for name, t in zip(INPUTS[call.op], tensors, strict=True) if t is not None}


def _fall_back(call: Call, failure: backends.KernelFailure, inputs: list[Any]) -> Plan:
    """The pure plan in place of a Metal plan whose kernel failed; an error if Metal was asked for."""
    backends.accept_failure("natten-mps", call.name, call.backend, failure)
    return _plan_for(call, inputs, "pure")


def _run_forward(call: Call, tensors: list[Any]) -> list[Tensor]:
    planned = _plan_for(call, tensors)
    with torch.autocast(tensors[1].device.type, enabled=False):
        if planned.path == "native":
            return _launch_native.forward(planned, _named(call, tensors))
        if planned.path == "metal":
            try:
                if planned.problem.batch:
                    return _launch.forward(planned, _named(call, tensors))
                planned = _plan_for(call, tensors, "pure")  # nothing to launch
            except backends.KernelFailure as failure:
                planned = _fall_back(call, failure, tensors)
        if call.op == "qk":
            return [_pure_split.qk(planned, *tensors)]
        if call.op == "av":
            return [_pure_split.av(planned, *tensors)]
        return list(_pure.forward(planned, *tensors))


def _run_backward(call: Call, grads: list[Any], inputs: list[Any], outputs: list[Any]) -> list[Tensor]:
    planned = _plan_for(call, inputs)
    with torch.autocast(inputs[1].device.type, enabled=False):
        if planned.path == "native":
            return _launch_native.backward(planned, grads, _named(call, inputs), outputs)
        if planned.path == "metal":
            try:
                if planned.problem.batch:
                    return _launch.backward(planned, grads, _named(call, inputs), outputs)
                planned = _plan_for(call, inputs, "pure")  # nothing to launch
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


def _fake_forward(call: Call, tensors: list[Any]) -> list[Tensor]:
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


def _fake_backward(call: Call, grads: list[Any], inputs: list[Any], outputs: list[Any]) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in inputs if tensor is not None]


_LIBRARY = torch.library.Library("natten_mps", "DEF")
_STATIC = "int[] kernel_size, int[] stride, int[] dilation, bool[] is_causal, float scale, str backend"


def _register(op: str) -> None:
    """Define ``<op>_forward`` and ``<op>_backward``: what runs, what is faked, what is differentiated and mapped."""

    def call(ks: Any, s: Any, d: Any, c: Any, scale: float, backend: str) -> Call:
        return Call(op, tuple(ks), tuple(s), tuple(d), tuple(c), scale, backend)

    forward, backward = f"{op}_forward", f"{op}_backward"
    _LIBRARY.define(f"{forward}(Tensor?[] inputs, {_STATIC}) -> Tensor[]")
    _LIBRARY.define(f"{backward}(Tensor?[] grads, Tensor?[] inputs, Tensor[] outputs, {_STATIC}) -> Tensor[]")
    _LIBRARY.impl(forward, lambda i, *a: _run_forward(call(*a), i), "CompositeExplicitAutograd")
    _LIBRARY.impl(backward, lambda g, i, o, *a: _run_backward(call(*a), g, i, o), "CompositeExplicitAutograd")
    _LIBRARY.impl(forward, lambda i, *a: _differentiated(Forward, call(*a), *i), "Autograd")
    _LIBRARY.impl(backward, lambda g, i, o, *a: _differentiated(Backward, call(*a), *g, *i, *o), "Autograd")
    register_fake, register_vmap = torch.library.register_fake, torch.library.register_vmap
    register_fake(f"natten_mps::{forward}", lambda i, *a: _fake_forward(call(*a), i), lib=_LIBRARY)
    register_fake(f"natten_mps::{backward}", lambda g, i, o, *a: _fake_backward(call(*a), g, i, o), lib=_LIBRARY)

    def mapped(function: Any) -> Any:
        def rule(info: Any, dims: tuple[Any, ...], *arguments: Any) -> tuple[list[Tensor], list[int]]:
            """The tensors of all lists behind one another, as the function takes them."""
            lists = len(arguments) - len(Call._fields) + 1
            flat = [t for tensors in arguments[:lists] for t in tensors]
            flat_dims = [
                d for each, tensors in zip(dims, arguments[:lists], strict=False) for d in _listed(each, tensors)
            ]
            results, result_dims = function.vmap(info, (None, *flat_dims), call(*arguments[lists:]), *flat)
            return list(results), list(result_dims)

        return rule

    register_vmap(f"natten_mps::{forward}", mapped(Forward), lib=_LIBRARY)
    register_vmap(f"natten_mps::{backward}", mapped(Backward), lib=_LIBRARY)


def _custom_op(call: Call, direction: str) -> Any:
    return getattr(torch.ops.natten_mps, f"{call.op}_{direction}").default


def _differentiated(function: Any, *arguments: Any) -> list[Tensor]:
    """The autograd of an op: torch.func has unwrapped its own level already, so nothing but autograd is left."""
    with enable_single_level_autograd_function():
        return list(super(torch.autograd.Function, function).apply(*arguments))


def _listed(dims: Any, tensors: list[Any]) -> list[Any]:
    return [None] * len(tensors) if dims is None else list(dims)


class Forward(torch.autograd.Function):
    """``Forward.apply(call, *inputs)`` -> the op's outputs; differentiable once, in reverse."""

    @staticmethod
    def forward(call: Call, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():  # the op's autograd leads here
            return tuple(_forward_op(call, inputs))

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
        return _vmap(_forward_op, info.batch_size, in_dims[1:], call, inputs, one_by_one=mapped_bias)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        checks.reject_forward_mode(ctx.call.name)


def run(call: Call, *inputs: Tensor | None) -> tuple[Tensor, ...]:
    """The op's outputs, differentiable once in reverse; inputs in the order of ``INPUTS[call.op]``."""
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return tuple(_forward_op(call, inputs))
    results: tuple[Tensor, ...] = Forward.apply(call, *inputs)
    return results


class Backward(torch.autograd.Function):
    """``Backward.apply(call, *grads, *inputs, *outputs)`` -> gradients of the inputs that are given."""

    @staticmethod
    def forward(call: Call, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():  # the op's autograd leads here
            return tuple(_backward_op(call, tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        checks.reject_second_derivative(ctx.call.name)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: Call, *tensors: Tensor | None) -> Any:
        # The bias's gradient sums over the batch, so mapped problems with a bias cannot share one.
        has_bias = call.op in ("na", "qk") and _split(call, tensors)[1][-1] is not None
        return _vmap(_backward_op, info.batch_size, in_dims[1:], call, tensors, one_by_one=has_bias)


def _split(call: Call, tensors: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    """Gradients, inputs and outputs out of :class:`Backward`'s flat arguments."""
    grads, inputs = OUTPUTS[call.op], len(INPUTS[call.op])
    return tensors[:grads], tensors[grads : grads + inputs], tensors[grads + inputs :]


def _forward_op(call: Call, tensors: Any) -> list[Tensor]:
    found: list[Tensor] = _custom_op(call, "forward")(list(tensors), *call[1:])
    return found


def _backward_op(call: Call, tensors: Any) -> list[Tensor]:
    found: list[Tensor] = _custom_op(call, "backward")(*map(list, _split(call, tensors)), *call[1:])
    return found


def _vmap(launch: Any, size: int, dims: Any, call: Call, tensors: Any, one_by_one: bool) -> tuple[Any, Any]:
    """Fold the mapped axis into the batch; with a bias per mapped problem, one problem after another."""
    if one_by_one:
        parts = [
            launch(call, [t if d is None else t.select(d, i) for t, d in zip(tensors, dims, strict=True)])
            for i in range(size)
        ]
        stacked = tuple(torch.stack(part) for part in zip(*parts, strict=True))
        return stacked, (0,) * len(stacked)
    has_bias = call.op in ("na", "qk") and launch is _forward_op
    folded = []
    for place, (tensor, dim) in enumerate(zip(tensors, dims, strict=True)):
        if tensor is None or (has_bias and place == len(tensors) - 1):
            folded.append(tensor)
            continue
        mapped = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        folded.append(mapped.flatten(0, 1))
    results = tuple(r.unflatten(0, (size, r.shape[0] // size)) for r in launch(call, folded))
    return results, (0,) * len(results)


for _op in INPUTS:
    _register(_op)
