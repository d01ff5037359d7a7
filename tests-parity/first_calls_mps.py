"""torch's contexts in which the first call of a process may happen."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch._dynamo  # once for all processes that are forked from this one
from first_calls import CALLS, THREADS, Call, at_once
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

PACKAGE = "natten_mps"


class AsModule(nn.Module):
    def __init__(self, function: Call) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def compiled(**options: Any) -> Any:
    return lambda function, x: torch.compile(function, fullgraph=True, backend="aot_eager", **options)


def gradients(function: Call) -> Call:
    """x's gradient, by plain autograd."""

    def call(x: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        (found,) = torch.autograd.grad(function(leaf).sin().sum(), leaf)
        return found

    return call


def trained(function: Call, x: Tensor) -> Call:
    return gradients(torch.compile(function, fullgraph=True, backend="aot_eager"))


def exported(strict: bool) -> Any:
    return lambda function, x: torch.export.export(AsModule(function), (x,), strict=strict).module()


def recorded(tracing_mode: str) -> Any:
    # A module's parameters are real.
    return lambda function, x: make_fx(function, tracing_mode=tracing_mode, _allow_non_fake_inputs=True)(x)


def inference(function: Call, x: Tensor) -> Call:
    return torch.inference_mode()(lambda x: function(x))


def faked(function: Call, x: Tensor) -> Call:
    def call(x: Tensor) -> Tensor:
        # A module's parameters are real.
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            found = function(mode.from_tensor(x))
        return torch.empty(found.shape, dtype=found.dtype, device="meta")

    return call


def on_meta(function: Call, x: Tensor) -> Call:
    function = function.to("meta") if isinstance(function, nn.Module) else function
    return lambda x: function(x.to("meta"))


def mapped(function: Call, x: Tensor) -> Call:
    return lambda x: torch.vmap(function)(torch.stack([x, -x]))


def differentiated(function: Call, x: Tensor) -> Call:
    return torch.func.grad(lambda x: function(x).sin().sum())


def with_other_weights(function: Call, x: Tensor) -> Call:
    if not isinstance(function, nn.Module):
        function = AsModule(function)
    weights = {name: weight.detach() * 2 for name, weight in function.named_parameters()}
    return lambda x: torch.func.functional_call(function, weights, (x,))


def in_threads(function: Call, x: Tensor) -> Call:
    return lambda x: torch.stack(at_once(lambda: function(x)))


def after_fork(function: Call, x: Tensor) -> Call:
    """In a child process, and then in the process itself."""

    def call(x: Tensor) -> Tensor:
        shared = torch.zeros_like(x).share_memory_()
        child = os.fork()
        if not child:
            try:
                shared.copy_(function(x).detach())
            finally:
                os._exit(0)  # if the call failed, nothing was written, and the comparison in the parent fails
        os.waitpid(child, 0)
        return torch.stack([shared, function(x)])

    return call


# What runs in a context, built from (function, x), before the first call or with it.
CONTEXTS = {
    "compile": compiled(),
    "compile, dynamic": compiled(dynamic=True),
    "compile, training": trained,
    "export": exported(strict=False),
    "export, strict": exported(strict=True),
    "make_fx, real": recorded("real"),
    "make_fx, fake": recorded("fake"),
    "make_fx, symbolic": recorded("symbolic"),
    "inference_mode": inference,
    "fake tensors": faked,
    "meta tensors": on_meta,
    "vmap": mapped,
    "grad": differentiated,
    "functional_call": with_other_weights,
    "threads": in_threads,
    "fork": after_fork,
}
SHAPES_ONLY = ("fake tensors", "meta tensors")


def wanted(context: str, function: Call, x: Tensor) -> Tensor:
    """What plain eager calls give."""
    if context in ("grad", "compile, training"):
        return gradients(function)(x)
    if context == "vmap":
        return torch.stack([function(x), function(-x)])
    if context == "functional_call" and isinstance(function, nn.Module):
        weights = [weight.detach() for weight in function.parameters()]
        for weight in weights:
            weight *= 2
        found = function(x)
        for weight in weights:
            weight /= 2
        return found
    copies = {"threads": THREADS, "fork": 2}.get(context)
    return torch.stack([function(x)] * copies) if copies else function(x)


def attempt(context: str, call: str, backend: str) -> None:
    """The first call of this process, in a context; then which backend ran it, and whether eager calls agree."""
    import natten_mps

    torch.manual_seed(0)
    shape, make = CALLS[call]
    x, function = torch.randn(shape), make(natten_mps, backend)
    run = CONTEXTS[context](function, x)
    first = run(x)

    from frameworks import MPS

    with MPS.watch() as ran:
        again = run(x)
    # Where there are only shapes, no backend runs but dense, which is plain operations.
    assert ran == ({backend} & {"dense"} if context in SHAPES_ONLY else {backend}), ran
    reference = wanted(context, make_again(function, x), x)
    for found in (first, again):
        assert (found.shape, found.dtype) == (reference.shape, reference.dtype)
        if context not in SHAPES_ONLY:
            torch.testing.assert_close(found, reference, rtol=0, atol=1e-5)
            assert found.abs().sum() > 0


def make_again(function: Call, x: Tensor) -> Call:
    """A module that was moved to the meta device has lost its weights; new ones are created from its shapes."""
    if isinstance(function, nn.Module) and any(weight.is_meta for weight in function.parameters()):
        return function.to_empty(device="cpu")
    return function
