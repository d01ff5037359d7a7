"""Graphs of plain operations in the tools that need them: ONNX by both of torch's exporters, run in onnxruntime and
compared with the op; and operation counts by fvcore.

`./dev.sh test --all` installs the tools. Without them these tests fail; they do not skip.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks import MPS
from test_plain_export import CALLS, MORE, Module, X, close
from torch import Tensor, nn
from torch.export import Dim

pytestmark = pytest.mark.all
SIZES = {"module": (2, 6, 7, 8), **dict.fromkeys(CALLS | MORE, X)}


def module(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MPS.package.NeighborhoodAttention2D(8, 2, 3, rel_pos_bias=True) if name == "module" else Module(name)


def run(file: Path, x: Tensor) -> tuple[Tensor, ...]:
    """The results of onnxruntime for a file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (first,) = session.get_inputs()
    return tuple(map(torch.from_numpy, session.run(None, {first.name: x.numpy()})))


def operators(file: Path) -> set[str]:
    """The domains of a file's nodes, "" for ONNX's own."""
    import onnx

    return {node.domain for node in onnx.load(file).graph.node}


def export(function: nn.Module, x: Tensor, file: Path, dynamo: bool) -> None:
    """To a file that accepts batches of any size."""
    if dynamo:
        torch.onnx.export(function, (x,), file, dynamo=True, dynamic_shapes=({0: Dim("batch")},), verbose=False)
    else:
        torch.onnx.export(function, (x,), file, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}})


@pytest.mark.parametrize("dynamo", [False, True], ids=["traced", "exported"])
@pytest.mark.parametrize("name", SIZES)
def test_onnx(name: str, dynamo: bool, tmp_path: Path) -> None:
    """Every rank, causal axes, stride, dilation, grouped heads, rpb, additional keys, the log-sum-exp, a module."""
    function, size = module(name), SIZES[name]
    with MPS.package.export_mode(), MPS.watch() as ran:
        export(function, torch.randn(size), tmp_path / "model.onnx", dynamo)
    assert ran == {"dense"} and operators(tmp_path / "model.onnx") == {""}
    other = torch.randn(5, *size[1:])
    with MPS.watch() as ran, torch.no_grad():
        wanted = function(other)
    assert ran == {"native"}
    close(run(tmp_path / "model.onnx", other), wanted if isinstance(wanted, tuple) else (wanted,))


@pytest.mark.parametrize("dynamo", [False, True], ids=["traced", "exported"])
def test_onnx_outside_of_the_mode(dynamo: bool, tmp_path: Path) -> None:
    """The error says what to do; the exporter of exported programs, which tries several strategies, quotes it in its
    own.
    """
    with pytest.raises(Exception, match=r"na2d: .*torch\.onnx\.export .* natten_mps\.export_mode\(\)") as caught:
        export(Module("fused"), torch.randn(X), tmp_path / "model.onnx", dynamo)
    assert isinstance(caught.value.__cause__ if dynamo else caught.value, NotImplementedError)


def test_fvcore_counts_operations() -> None:
    """Every query against every key, as on the dense backend; outside of the mode, the error names the mode."""
    from fvcore.nn import FlopCountAnalysis

    batch, *shape, heads, dim = X
    tokens = shape[0] * shape[1]
    with MPS.package.export_mode():
        counts: Any = FlopCountAnalysis(Module("fused"), torch.randn(X)).by_operator()
    assert counts["matmul"] == 2 * batch * heads * tokens**2 * dim
    with pytest.raises(NotImplementedError, match=r"natten_mps\.export_mode\(\)"):
        FlopCountAnalysis(Module("fused"), torch.randn(X)).total()
