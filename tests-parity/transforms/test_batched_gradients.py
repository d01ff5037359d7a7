"""Batched gradients by torch's older vmap, and FX graphs of operations, on every backend of a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from first_calls import CALLS
from frameworks import MPS
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

PATHS = ("native", "pure", "dense")
NAMES = ("na1d", "na1d_qk na1d_av", "attention", "attention by length", "na1d_varlen", "NeighborhoodAttention1D")
Function = Callable[[Tensor], Tensor]


@pytest.fixture(params=PATHS)
def backend(request: pytest.FixtureRequest) -> Any:
    """The backend under test: it runs, and no other."""
    with MPS.watch() as ran:
        yield request.param
    assert ran == {request.param}


def prepared(name: str, backend: str) -> tuple[Function, Tensor]:
    torch.manual_seed(0)
    shape, make = CALLS[name]
    function = make(MPS.package, backend)
    if isinstance(function, torch.nn.Module):
        function = function.double()
    return function, torch.randn(shape, dtype=torch.float64)


def rows_of(function: Function, x: Tensor, cotangents: Tensor) -> Tensor:
    """One plain gradient after another."""
    leaf = x.clone().requires_grad_()
    out = function(leaf)
    return torch.stack([torch.autograd.grad(out, leaf, each, retain_graph=True)[0] for each in cotangents])


def batched(out: Tensor, leaf: Tensor, cotangents: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(out, leaf, cotangents, is_grads_batched=True)
    return found


def refused(name: str, call: Callable[[], Tensor]) -> None:
    """An error that names two alternatives, instead of a result."""
    words = r"^\w+: .*is_grads_batched.*jacobian\(vectorize=True\).* use torch\.func\.jacrev, .* or backend=\"dense\"$"
    with pytest.raises(NotImplementedError, match=words) as caught:
        call()
    # For a module and a packed call the error names the op that they call last.
    last = {"na1d_qk na1d_av": "na1d_av", "attention by length": "attention", "NeighborhoodAttention1D": "na1d"}
    assert str(caught.value).startswith(f"{last.get(name, name)}: ")


@pytest.mark.parametrize("name", NAMES)
def test_batched_cotangents(name: str, backend: str) -> None:
    """``torch.autograd.grad(is_grads_batched=True)``, and the alternative that is named where it does not work."""
    function, x = prepared(name, backend)
    leaf = x.clone().requires_grad_()
    out = function(leaf)
    cotangents = torch.randn(3, *out.shape, dtype=torch.float64)
    wanted = rows_of(function, x, cotangents)
    assert wanted.abs().sum() > 0
    if backend == "dense":
        torch.testing.assert_close(batched(out, leaf, cotangents), wanted, rtol=0, atol=1e-12)
    else:
        refused(name, lambda: batched(out, leaf, cotangents))
    _, pull = torch.func.vjp(function, x)
    torch.testing.assert_close(torch.vmap(pull)(cotangents)[0], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_vectorized_jacobian(name: str, backend: str) -> None:
    """``torch.autograd.functional.jacobian(vectorize=True)``, and the alternative named where it does not work."""
    function, x = prepared(name, backend)
    wanted = torch.func.jacrev(function)(x)
    assert wanted.abs().sum() > 0
    torch.testing.assert_close(torch.autograd.functional.jacobian(function, x), wanted, rtol=0, atol=1e-12)
    if backend == "dense":
        found = torch.autograd.functional.jacobian(function, x, vectorize=True)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    else:
        refused(name, lambda: torch.autograd.functional.jacobian(function, x, vectorize=True))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_graph(name: str, mode: str, backend: str) -> None:
    """``make_fx`` of a call and of its gradient; a symbolic graph holds for other sizes."""
    function, x = prepared(name, backend)

    def with_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
        leaf = x.detach().requires_grad_()
        out = function(leaf)
        return out, torch.autograd.grad(out.sin().sum(), leaf)[0]

    graph = make_fx(with_gradient, tracing_mode=mode, _allow_non_fake_inputs=True)(x)
    named = {str(node.target) for node in graph.graph.nodes if "natten_mps" in str(node.target)}
    assert bool(named) == (backend != "dense"), named
    sizes = [x.shape]
    if mode == "symbolic" and "by length" not in name:
        sizes.append(torch.Size((x.shape[0], 9, *x.shape[2:])))
    for size in sizes:
        given = torch.randn(size, dtype=torch.float64)
        torch.testing.assert_close(graph(given), with_gradient(given), rtol=0, atol=1e-12)
