"""The CPU kernels read views in place; the pure backend copies what is not contiguous, once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from frameworks import MPS
from layouts import LAYOUTS, Where, fused_qkv, where
from torch import Tensor

NAMES = ("query", "key", "value")
Seen = list[tuple[str, dict[str, Where]]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Every call of the CPU library: the function, and the address and strides of each tensor passed to it."""
    library, calls = MPS.module("_metal.cpu.library").CpuLibrary, []
    original = library.call

    def recording(self: Any, function: str, problem: Any, tensors: dict[str, Any], threads: int) -> None:
        calls.append((function, {name: (address, tuple(strides)) for name, (address, strides) in tensors.items()}))
        original(self, function, problem, tensors, threads)

    monkeypatch.setattr(library, "call", recording)
    return calls


def attend(*tensors: Tensor) -> Tensor:
    out: Tensor = MPS.face("na2d")(*tensors, 3, is_causal=(True, False))
    return out


@pytest.mark.usefixtures("torch_path")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_and_gradients_do_not_depend_on_the_layout(layout: str) -> None:
    views = LAYOUTS[layout]()
    assert not all(view.is_contiguous() for view in views)
    leaves = [view.detach().requires_grad_() for view in views]
    packed = [view.contiguous().requires_grad_() for view in views]
    out, wanted = attend(*leaves), attend(*packed)
    assert torch.equal(out, wanted)
    cotangent = torch.randn(*out.shape[:1], *out.shape[:0:-1]).permute(0, 4, 3, 2, 1)
    found = torch.autograd.grad(out, leaves, cotangent)
    # Sums over channels may be in another order.
    wanted_gradients = torch.autograd.grad(wanted, packed, cotangent.contiguous())
    torch.testing.assert_close(found, wanted_gradients, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_cpu_kernels_read_views_in_place(layout: str, seen: Seen) -> None:
    views = LAYOUTS[layout]()
    leaves = [view.detach().requires_grad_() for view in views]
    with MPS.package.use_backend("native"):
        attend(*leaves).sum().backward()
    assert [function for function, _ in seen] == ["forward", "backward"]
    for _, tensors in seen:
        assert [tensors[name] for name in NAMES] == [where(view) for view in views]
    # The gradient of a sum is one number, broadcast.
    assert set(seen[1][1]["out_grad"][1]) == {0}


def test_the_cpu_split_ops_read_views_in_place(seen: Seen) -> None:
    query, key, value = fused_qkv()
    with MPS.package.use_backend("native"):
        weights = MPS.face("na2d_qk")(query, key, 3).softmax(-1)
        # The same values with another order of axes in memory.
        weights = weights.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
        MPS.face("na2d_av")(weights, value, 3)
    (_, logits), (_, out) = seen
    assert [logits["query"], logits["key"]] == [where(query), where(key)]
    assert [out["attn"], out["value"]] == [where(weights), where(value)]


def test_the_pure_backend_copies_what_is_not_contiguous(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gathers rows of one tensor: a view is copied once per walk, a contiguous tensor never."""
    walk, rows = MPS.module("_metal.api.walk").Rows, []
    original = walk.__init__

    def recording(self: Any, walk: Any, tensor: Tensor, groups: int = 1) -> None:
        original(self, walk, tensor, groups)
        rows.append((tensor.is_contiguous(), self.rows.data_ptr() == tensor.data_ptr()))

    monkeypatch.setattr(walk, "__init__", recording)
    views = fused_qkv()
    with MPS.package.use_backend("pure"):
        attend(*views)
        attend(*(view.contiguous() for view in views))
    assert rows == [(False, False)] * 3 + [(True, True)] * 3


@pytest.mark.usefixtures("torch_path")
def test_gradients_of_a_fused_projection() -> None:
    """The gradient of the single tensor from which query, key and value are sliced."""
    qkv = torch.randn(2, 6, 7, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(attend(*qkv.unbind(3)).sin().sum(), qkv)
    parts = [part.contiguous() for part in qkv.detach().unbind(3)]
    leaves = [part.requires_grad_() for part in parts]
    wanted = torch.autograd.grad(attend(*leaves).sin().sum(), leaves)
    assert torch.equal(found, torch.stack(wanted, 3))
