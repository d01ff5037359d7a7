"""The kernels as torch sees them: custom ops, each with a fake and derivatives.

Each op of a :class:`Problem` ('na', 'attention', 'qk', 'av') has two custom ops, ``natten_mps::<op>_forward`` and
``natten_mps::<op>_backward``. Eager calls go through the functions of :mod:`._autodiff` to the ops; torch.compile and
torch.export record the ops, which under autograd and torch.func lead to the same functions.
"""

from functools import partial

import torch
from torch import Tensor

from ._autodiff import BATCHED, DIFFERENTIATED, Backward, Forward, planned_forward
from ._call import STATIC, Call, call_of, forward_op, plan_of
from ._kernels import fake_backward, fake_forward, run_backward, run_forward
from ._lazy_bits import DISPATCH_KEYS, resolving
from ._metal.problem.checks import reject_batched
from ._metal.problem.ops import OPS
from ._metal.problem.problem import Problem
from ._private import speed_up_registration
from ._recording import recording

_LIBRARY = torch.library.Library("natten_mps", "DEF")


def _register(op: str) -> None:
    """Define ``<op>_forward`` and ``<op>_backward``: what runs, what is faked, what differentiates and maps."""

    call = partial(Call.of_static, op)
    forward, backward = f"{op}_forward", f"{op}_backward"
    _LIBRARY.define(f"{forward}(Tensor?[] inputs, {STATIC}) -> Tensor[]")
    _LIBRARY.define(f"{backward}(Tensor?[] grads, Tensor?[] inputs, Tensor[] outputs, {STATIC}) -> Tensor[]")
    eager = "CompositeExplicitAutograd"
    _LIBRARY.impl(forward, lambda i, *a: run_forward(plan_of(call(*a), i), i), eager)
    _LIBRARY.impl(backward, lambda g, i, o, *a: run_backward(plan_of(call(*a), i), g, i, o), eager)
    for key in DIFFERENTIATED:
        _LIBRARY.impl(forward, lambda i, *a: list(Forward.apply(call(*a), *i)), key)
        _LIBRARY.impl(backward, lambda g, i, o, *a: list(Backward.apply(call(*a), *g, *i, *o)), key)
    for name in (forward, backward):
        for key in DISPATCH_KEYS:
            _LIBRARY.impl(name, resolving(getattr(torch.ops.natten_mps, name).default), key)
    _LIBRARY.impl(forward, lambda i, *a: reject_batched(call(*a).name), BATCHED)
    _LIBRARY.impl(backward, lambda g, i, o, *a: reject_batched(call(*a).name), BATCHED)
    speed_up_registration(__name__)
    register_fake = torch.library.register_fake
    register_fake(f"natten_mps::{forward}", lambda i, *a: fake_forward(call(*a), i), lib=_LIBRARY)
    register_fake(f"natten_mps::{backward}", lambda g, i, o, *a: fake_backward(call(*a), i), lib=_LIBRARY)


def run(problem: Problem, backend: str, *inputs: Tensor | None) -> tuple[Tensor, ...]:
    """The op's outputs, differentiable once in reverse; inputs in the order of ``problem.record.inputs``."""
    if recording(problem.name):
        return tuple(forward_op(call_of(problem, backend), inputs))
    return planned_forward(problem, backend, inputs)


for _op in OPS:
    _register(_op)
