"""Which calls go directly to the kernels, and which through the custom op, because something may intercept the op."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from frameworks import MPS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

X = torch.randn(1, 9, 2, 4, generator=torch.Generator().manual_seed(0))


class Listing(TorchDispatchMode):
    """The ops that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def ways(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Whether each forward or backward went directly."""
    module, seen = MPS.module("_autodiff"), []
    original = module.goes_directly

    def recorded(tensors: Any) -> bool:
        seen.append(original(tensors))
        return bool(seen[-1])

    monkeypatch.setattr(module, "goes_directly", recorded)
    yield seen


def attend(x: Tensor) -> Tensor:
    found: Tensor = MPS.face("na1d")(x, x, x, 3)
    return found


def learn(x: Tensor) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    return torch.autograd.grad(attend(leaf).square().sum(), leaf)[0]


def inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return attend(x.clone())


def autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return attend(x)


def not_yet_negated(x: Tensor) -> Tensor:
    """The numbers of ``x``, as a view of their negatives."""
    return torch.complex(x, -x).conj().imag


PLAIN: dict[str, tuple[Callable[[Tensor], Tensor], list[bool]]] = {
    "call": (attend, [True]),
    "gradient": (learn, [True, True]),
    "inference mode": (inference, [True]),
    "no_grad": (torch.no_grad()(attend), [True]),
    "a parameter": (lambda x: attend(torch.nn.Parameter(x)), [True]),
    "a view": (lambda x: attend(x.expand(3, -1, -1, -1)[::2])[:1], [True]),
    "autocast": (autocast, [True]),
}
OTHER: dict[str, Callable[[Tensor], Tensor]] = {
    "vmap": lambda x: torch.vmap(attend)(x[None])[0],
    "grad": lambda x: torch.func.grad(lambda t: attend(t).square().sum())(x),
    "negative": lambda x: attend(not_yet_negated(x)),
}


@pytest.mark.parametrize(("function", "wanted"), PLAIN.values(), ids=PLAIN)
def test_plain_calls(function: Any, wanted: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """They go directly, with the same results as the op."""
    with ways(monkeypatch) as seen:
        found = function(X)
    assert seen == wanted
    monkeypatch.setattr(MPS.module("_autodiff"), "goes_directly", lambda tensors: False)
    assert torch.equal(found, function(X))


@pytest.mark.parametrize("name", OTHER)
def test_other_calls(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch does more than differentiate, the op is dispatched."""
    with ways(monkeypatch) as seen:
        found = OTHER[name](X)
    assert seen and not seen[0]
    torch.testing.assert_close(found, learn(X) if name == "grad" else attend(X), rtol=0, atol=1e-6)


def test_what_hooks_return_for_saved_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward looks at it: here the same numbers, not yet negated."""
    wanted = learn(X)
    with ways(monkeypatch) as seen, torch.autograd.graph.saved_tensors_hooks(lambda t: t, not_yet_negated):
        found = learn(X)
    assert seen == [True, False]
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_dispatch_modes_and_profilers_see_the_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the forward and in the backward."""
    with Listing() as listing:
        learn(X)
    assert [name for name in listing.names if name.startswith("natten_mps")] == [
        "natten_mps.na_forward.default",
        "natten_mps.na_backward.default",
    ]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        learn(X)
    names = {event.key for event in profile.key_averages()}
    assert {"natten_mps::na_forward", "natten_mps::na_backward"} <= names
    with ways(monkeypatch) as seen:
        learn(X)
    assert seen == [True, True]


def test_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode() as mode:
        found = attend(mode.from_tensor(X))
    assert isinstance(found, FakeTensor) and found.shape == X.shape
