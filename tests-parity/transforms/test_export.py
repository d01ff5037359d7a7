"""torch.export: the program contains the custom op, is dynamic in its sizes, can be saved and loaded, and can be
trained.
"""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from frameworks import MPS
from torch import Tensor, nn
from torch.export import Dim

pytestmark = pytest.mark.usefixtures("torch_path")
SIZES, OTHERS = (6, 7, 5), (4, 9, 6)


class Attend(nn.Module):
    """A face as a module."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Any:
        causal = [True] + [False] * (self.rank - 1)
        return MPS.face(f"na{self.rank}d")(query, key, value, 3, is_causal=causal, return_lse=True)


def dynamic(rank: int) -> dict[int, Any]:
    """Dynamic batch and axes; an axis is no shorter than the window."""
    return {0: Dim("batch")} | {axis + 1: Dim("xyz"[axis], min=3) for axis in range(rank)}


def saved_and_loaded(program: Any) -> Any:
    """The program, saved and loaded."""
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


def ops_of(program: Any) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if "natten_mps" in str(node.target)]


@pytest.mark.parametrize("follows", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
@pytest.mark.parametrize("rank", [pytest.param(1, marks=pytest.mark.all), 2, pytest.param(3, marks=pytest.mark.all)])
def test_faces(rank: int, strict: bool, follows: bool) -> None:
    module, shape = Attend(rank), (2, *SIZES[:rank], 2, 4)
    given = torch.randn(3, *shape).unbind()
    shapes = dict.fromkeys(("query", "key", "value"), dynamic(rank)) if follows else None
    program = torch.export.export(module, tuple(given), strict=strict, dynamic_shapes=shapes)
    assert ops_of(program) == ["natten_mps.na_forward.default"]
    loaded = saved_and_loaded(program)
    for run in [shape, (3, *OTHERS[:rank], 2, 4)] if follows else [shape]:
        tensors = torch.randn(3, *run).unbind()
        for found, wanted in zip(loaded(*tensors), module(*tensors), strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 1, "rel_pos_bias": True}], ids=["qkv", "gqa-rpb"])
def test_modules_can_be_trained_after_export(options: dict[str, Any], strict: bool) -> None:
    """One op in the graph, the same outputs for other sizes, and the same gradients of all weights."""
    torch.manual_seed(0)
    module = MPS.package.NeighborhoodAttention2D(8, 2, 3, **options)
    program = torch.export.export(module, (torch.randn(2, 6, 7, 8),), strict=strict, dynamic_shapes={"x": dynamic(2)})
    assert ops_of(program) == ["natten_mps.na_forward.default"]
    loaded, x = saved_and_loaded(program), torch.randn(3, 9, 4, 8)
    out = loaded(x)
    assert torch.equal(out, module(x))
    out.sin().sum().backward()
    module(x).sin().sum().backward()
    learned = dict(loaded.named_parameters())
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.any()
        torch.testing.assert_close(learned[name].grad, parameter.grad, rtol=0, atol=1e-6)


def test_an_axis_that_may_be_too_short_is_named() -> None:
    """The rule w * d <= L is kept: export asks for the bound instead of dropping it."""
    given, dims = torch.randn(3, 2, 6, 2, 4).unbind(), {0: Dim("batch"), 1: Dim("length")}
    shapes = dict.fromkeys(("query", "key", "value"), dims)
    with pytest.raises(torch._dynamo.exc.UserError, match=r"length = Dim\('length', min=3\)"):
        torch.export.export(Attend(1), tuple(given), dynamic_shapes=shapes)
    Attend(1)(*given)
