"""Graphs of plain torch operations: traced under ``export_mode``, and the dense backend wherever torch traces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from frameworks import MPS
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.export import Dim

X = (2, 6, 7, 2, 4)


def fused(x: Tensor) -> Any:
    return MPS.face("na2d")(x, x * 2, x.sin(), (3, 4), dilation=(2, 1), is_causal=(False, True), return_lse=True)


def biased(x: Tensor) -> Any:
    rpb, more = (
        torch.linspace(-1, 1, 50, device=x.device).view(2, 5, 5),
        {"additional_keys": x[:, 0], "additional_values": x[:, 1]},
    )
    return MPS.face("na2d")(x, x * 2, x.sin(), 3, rpb=rpb, **more)


def split(x: Tensor) -> Any:
    return MPS.face("na2d_av")(MPS.face("na2d_qk")(x, x * 2, 3, is_causal=True).softmax(-1), x, 3, is_causal=True)


def full(x: Tensor) -> Any:
    tokens = x.flatten(1, 2)
    return MPS.face("attention")(tokens, tokens * 2, tokens.sin(), True, return_lse=True)


CALLS: dict[str, Callable[[Tensor], Any]] = {"fused": fused, "biased": biased, "split": split, "full": full}


def sequence(x: Tensor) -> Any:
    tokens = x.flatten(1, 2)[:, :11]
    return MPS.face("na1d")(tokens, tokens[..., :1, :] * 2, tokens[..., :1, :].sin(), 4, stride=2, dilation=2)


def volume(x: Tensor) -> Any:
    tokens = x.unflatten(1, (2, 3))
    return MPS.face("na3d")(tokens, tokens * 2, tokens.sin(), (2, 3, 3), stride=(2, 1, 3))


def padded(x: Tensor) -> Any:
    tokens = x.flatten(1, 2)
    return MPS.face("na1d_varlen")(tokens, tokens, tokens, [30, 7], 3)


def packed(x: Tensor) -> Any:
    tokens, lengths = x.flatten(1, 2)[:1], torch.tensor([30, 12])
    return MPS.face("attention")(tokens, tokens, tokens, seqlens_Q=lengths, seqlens_KV=lengths)


MORE: dict[str, Callable[[Tensor], Any]] = {"sequence": sequence, "volume": volume}
# For items whose sizes are read on the host, the batch size is fixed by the trace.
ITEMS: dict[str, Callable[[Tensor], Any]] = {"padded": padded, "packed": packed}


class Module(nn.Module):
    """A call as a module."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.call = (CALLS | MORE | ITEMS)[name]

    def forward(self, x: Tensor) -> Any:
        return self.call(x)


def close(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def operations(graph: Any) -> set[str]:
    """The kinds of a graph's nodes, including nested blocks."""
    nodes = list(graph.nodes())
    inner = [operations(block) for node in nodes for block in node.blocks()]
    return {node.kind() for node in nodes}.union(*inner)


@pytest.mark.parametrize("name", CALLS | MORE | ITEMS)
def test_jit_trace(name: str) -> None:
    """A trace contains only torch's operations, which converters understand, and is right for other values and
    batches; outside the mode, the error names the mode.
    """
    x, module = torch.randn(X), Module(name)
    other = torch.randn(X if name in ITEMS else (5, *X[1:]))
    with pytest.raises(NotImplementedError, match=r"torch\.jit\.trace .* natten_mps\.export_mode\(\)"):
        torch.jit.trace(module, x)
    with MPS.package.export_mode(), MPS.watch() as ran:
        traced = torch.jit.trace(module, x)
    assert ran == {"dense"}
    found = operations(traced.inlined_graph)
    assert "aten::matmul" in found and {kind.partition("::")[0] for kind in found} == {"aten", "prim"}
    assert not found & {"prim::PythonOp", "prim::CallFunction", "prim::CallMethod"}
    with MPS.watch() as ran:
        close(traced(other), module(other))
    assert ran == {"native"}


def test_jit_trace_of_a_module() -> None:
    torch.manual_seed(0)
    module = MPS.package.NeighborhoodAttention2D(8, 2, 3, rel_pos_bias=True)
    x, other = torch.randn(2, 2, 6, 7, 8)
    with MPS.package.export_mode():
        traced = torch.jit.trace(module, x)
    close(traced(other), module(other))


def test_onnx_s_exporter_of_exported_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks find an unknown op, and the error of torch.export names the alternative."""
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    with pytest.raises(NotImplementedError, match=r"torch\.onnx\.export .* natten_mps\.export_mode\(\)"):
        torch.export.export(Module("fused"), (torch.randn(X),))


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.all)], ids=["traced", "strict"])
@pytest.mark.parametrize("name", ["biased", *(pytest.param(n, marks=pytest.mark.all) for n in CALLS if n != "biased")])
def test_torch_export(name: str, strict: bool) -> None:
    x = torch.randn(X)
    with MPS.package.export_mode():
        program = torch.export.export(Module(name), (x,), strict=strict)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets and not [target for target in targets if "natten_mps" in target]
    close(program.module()(-x), CALLS[name](-x))


@pytest.mark.parametrize("name", CALLS)
def test_dense_on_tensors_without_data(name: str) -> None:
    """On meta and fake tensors: the shapes, dtypes and strides of the other backends."""
    wanted = CALLS[name](torch.randn(X))
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    with MPS.package.use_backend("dense"), FakeTensorMode() as mode:
        fake = CALLS[name](mode.from_tensor(torch.randn(X)))
    with MPS.package.use_backend("dense"):
        real, meta = CALLS[name](torch.randn(X)), CALLS[name](torch.randn(X, device="meta"))
    for results in (real, fake, meta):
        for found, one in zip(results if isinstance(results, tuple) else (results,), wanted, strict=True):
            assert (found.shape, found.dtype, found.stride()) == (one.shape, one.dtype, one.stride())


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.all)], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", CALLS)
def test_dense_compiles_in_full(name: str, dynamic: bool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(CALLS[name], fullgraph=True, dynamic=dynamic, backend="aot_eager")
    with MPS.package.use_backend("dense"):
        for size in (X, (3, 8, 9, 2, 4)):
            x = torch.randn(size)
            close(compiled(x), CALLS[name](x))


def test_dense_exports_with_dynamic_sizes() -> None:
    shapes = {"x": {0: Dim("batch"), 1: Dim("x", min=3), 2: Dim("y", min=3)}}
    with MPS.package.export_mode():
        program = torch.export.export(Module("split"), (torch.randn(X),), dynamic_shapes=shapes)
    other = torch.randn(3, 9, 5, 2, 4)
    close(program.module()(other), split(other))
