"""torch's transforms of the Metal backend: export, compile, torch.func, deterministic mode, views without copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from determinism import deterministic
from layouts import LAYOUTS, SIDE_BY_SIDE, Where, where
from lazy_tensors import CALLS, KINDS, check_gradients, check_inputs
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

import natten_mps
from natten_mps._launch import metal as _launch

from .host import EmulatedHost


@pytest.fixture(autouse=True)
def on_metal(metal: EmulatedHost) -> EmulatedHost:
    """Makes Metal the default of each test; ``launches`` has the kernels that it launched."""
    natten_mps.set_backend("metal")
    return metal


class Attend(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return natten_mps.na2d(x, x * 2, x.sin(), 3)


def test_export(on_metal: EmulatedHost) -> None:
    shapes = {"x": {0: Dim("batch"), 1: Dim("x", min=3), 2: Dim("y", min=3)}}
    program = torch.export.export(Attend(), (torch.randn(2, 5, 6, 2, 8),), dynamic_shapes=shapes)
    assert "natten_mps.na_forward.default" in [str(node.target) for node in program.graph.nodes]
    assert not on_metal.launches
    x = torch.randn(3, 4, 7, 2, 8)
    assert torch.equal(program.module()(x), Attend()(x))
    assert len(on_metal.launches) == 2


def test_one_compilation_for_all_sizes(on_metal: EmulatedHost) -> None:
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(Attend(), fullgraph=True, dynamic=True, backend=counter)
    for size in ((3, 5, 6), (4, 7, 5), (2, 4, 9)):
        x = torch.randn(*size, 2, 8, requires_grad=True)
        (found,) = torch.autograd.grad(compiled(x).sin().sum(), x)
        torch.testing.assert_close(found, torch.autograd.grad(Attend()(x).sin().sum(), x)[0], rtol=0, atol=1e-5)
    assert counter.frame_count == 1 and on_metal.launches


def test_functional_derivatives(on_metal: EmulatedHost) -> None:
    key = torch.randn(1, 5, 1, 8)

    def call(query: Tensor) -> Tensor:
        out: Tensor = natten_mps.na1d(query, key, key, 3)
        return out

    query = torch.randn(1, 5, 1, 8)
    jacobian = torch.func.jacrev(call)(query)
    assert on_metal.launches
    with natten_mps.use_backend("pure"):
        torch.testing.assert_close(jacobian, torch.func.jacrev(call)(query), rtol=0, atol=1e-5)
    for refused in (torch.func.jacfwd(call), torch.func.hessian(lambda q: call(q).sum())):
        with pytest.raises(NotImplementedError, match=r"^na1d: forward-mode derivatives are not implemented"):
            refused(query)


def test_deterministic_mode(on_metal: EmulatedHost) -> None:
    x = torch.randn(2, 5, 6, 2, 8, requires_grad=True)
    found = []
    with deterministic():
        for _ in range(2):
            out = Attend()(x)
            found.append((out, *torch.autograd.grad(out.sin().sum(), x)))
    assert on_metal.launches
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_views_are_read_in_place(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor is copied only if a token's channels are not contiguous, and then in both directions."""
    launch, seen = _launch._launch, []

    def recording(host: Any, kernel: Any, planned: Any, known: dict[str, Tensor]) -> None:
        seen.append({name: where(known[name]) for _, name in planned.inputs})
        launch(host, kernel, planned, known)

    monkeypatch.setattr(_launch, "_launch", recording)
    views = dict(zip(("query", "key", "value"), LAYOUTS[layout](), strict=True))
    leaves = [view.detach().requires_grad_() for view in views.values()]
    out = natten_mps.na2d(*leaves, 3)
    gradients = torch.autograd.grad(out, leaves, torch.randn_like(out))
    read: dict[str, set[Where]] = {name: {planned[name] for planned in seen if name in planned} for name in views}
    for name, view in views.items():
        if layout in SIDE_BY_SIDE:
            assert read[name] == {where(view)}
        else:
            assert all(strides == view.contiguous().stride() for _, strides in read[name])
    packed = [view.contiguous().requires_grad_() for view in views.values()]
    assert torch.equal(natten_mps.na2d(*packed, 3), out)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op", CALLS)
def test_lazy_tensors(op: str, kind: str, on_metal: EmulatedHost) -> None:
    """The binding passes memory on unchanged, so negative bits and zeros without memory must be resolved before."""
    check_inputs(op, kind)
    check_gradients(op, kind)
    assert on_metal.launches
