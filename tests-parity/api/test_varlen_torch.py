"""Items of different sizes under torch's transforms: compile with sizes known only at run time, vmap, torch.func."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from frameworks import MPS
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

VARLEN = MPS.module("varlen")  # here, because torch.compile cannot trace the import
pytestmark = pytest.mark.usefixtures("torch_path")


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def three(*shape: int) -> list[Tensor]:
    return [normal(*shape) for _ in range(3)]


def padded(q: Tensor, k: Tensor, v: Tensor, sizes: Any) -> Tensor:
    out, lse = MPS.face("na1d_varlen")(q, k, v, sizes, 3, return_lse=True)
    return out * torch.where(lse > -torch.inf, lse, 0.0)[..., None]


def packed(q: Tensor, k: Tensor, v: Tensor, lengths: Any) -> Tensor:
    return MPS.face("attention")(q, k, v, seqlens_Q=lengths, seqlens_KV=lengths)


def cumulative(q: Tensor, k: Tensor, v: Tensor, made: Any) -> Tensor:
    return MPS.face("attention")(q, k, v, True, None, None, None, *made)


def layouts(q: Tensor, k: Tensor, v: Tensor, metadata: Any) -> Tensor:
    return VARLEN.neighborhood_attention_varlen(q, k, v, metadata)


def made(q: Tensor, lengths: list[int]) -> Any:
    return MPS.face("generate_varlen_parameters")(q, q, q, lengths, lengths)


def configured(q: Tensor, lengths: list[int]) -> Any:
    shapes = [(length, 3) for length in lengths]
    windows = [max(1, min(length, 3)) for length in lengths]
    return VARLEN.configure_varlen(shapes, kernel_size_list=windows)


# The call, the shape of its tensors, and its sizes in a form that torch.compile supports: lists, tensors, metadata.
FORMS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], Callable[[Tensor, list[int]], Any]]] = {
    "padded list": (padded, (3, 9, 2, 4), lambda q, n: n),
    "padded tensor": (padded, (3, 9, 2, 4), lambda q, n: torch.tensor(n)),
    "lengths": (packed, (1, 20, 2, 4), lambda q, n: n),
    "tensor of lengths": (packed, (1, 20, 2, 4), lambda q, n: torch.tensor(n, dtype=torch.int32)),
    "cumulative": (cumulative, (1, 20, 2, 4), made),
    "layouts": (layouts, (1, 60, 2, 4), configured),
}
SIZES = ([9, 4, 5], [3, 0, 8], [5, 5, 5])


@pytest.mark.parametrize("name", FORMS)
def test_compiles_fullgraph(name: str) -> None:
    """Results and gradients equal those of eager mode, for several sizes in one compiled function."""
    call, shape, form = FORMS[name]
    counter = CompileCounterWithBackend("aot_eager")
    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend=counter)
    for sizes in SIZES[: 2 if "list" in name else None]:
        given, cotangent = [t.requires_grad_() for t in three(*shape)], normal(*shape)
        eager = [t.detach().clone().requires_grad_() for t in given]
        found, wanted = compiled(*given, form(given[0], sizes)), call(*eager, form(eager[0], sizes))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
        pairs = (torch.autograd.grad(out, own, cotangent) for out, own in ((found, given), (wanted, eager)))
        torch.testing.assert_close(*pairs, rtol=0, atol=1e-12)
    # Tensors of sizes are inputs of the graph; a list of ints or a maximum length may cause a recompilation.
    assert 1 <= counter.frame_count <= (1 if name in ("padded tensor", "tensor of lengths", "layouts") else 3)


def test_errors_of_a_compiled_call() -> None:
    """The rules are checked when the compiled call reads the numbers; the error names the item."""
    torch.compiler.reset()
    compiled = torch.compile(padded, fullgraph=True, backend="aot_eager")
    given = three(3, 9, 2, 4)
    compiled(*given, torch.tensor([9, 4, 5]))
    with pytest.raises(
        ValueError, match=r"^na1d_varlen: seq_lens must lie .* item 2, axis 0 has 10, padded to 9($|\n)"
    ):
        compiled(*given, torch.tensor([9, 4, 10]))
    with pytest.raises(
        ValueError, match=r"^na1d_varlen: kernel_size \* dilation .* item 1, axis 0 has 3 \* 1 = 3 > 2($|\n)"
    ):
        compiled(*given, torch.tensor([9, 2, 5]))


def test_sizes_without_values() -> None:
    """The error for sizes that cannot be read says how to pass them."""
    given = three(2, 9, 2, 4)
    wanted = r"must be known when the call is made.*give a list of ints$"
    with pytest.raises(ValueError, match=f"^na1d_varlen: seq_lens {wanted}"):
        MPS.face("na1d_varlen")(*given, torch.empty(2, dtype=torch.int64, device="meta"), 3)
    with pytest.raises(ValueError, match=f"^na1d_varlen: seq_lens {wanted}"):
        torch.vmap(lambda n: MPS.face("na1d_varlen")(*given, n, 3))(torch.tensor([[9, 4], [3, 3]]))
    with pytest.raises(ValueError, match=f"^na1d_varlen: sizes {wanted}"), FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in given]
        MPS.face("na1d_varlen")(*fakes, mode.from_tensor(torch.tensor([9, 4])), 3, backend="dense")
    padded(*given, torch.tensor([9, 4]))  # the requested backend runs


def test_fake_tensors() -> None:
    """Shapes and dtypes without values, including the sizes."""
    with FakeTensorMode() as mode:
        given = [mode.from_tensor(t) for t in three(2, 9, 2, 4)]
        for sizes in ([9, 4], mode.from_tensor(torch.tensor([9, 4]))):
            out, lse = MPS.face("na1d_varlen")(*given, sizes, 3, return_lse=True)
            assert out.shape == (2, 9, 2, 4) and lse.shape == (2, 9, 2) and out.dtype == lse.dtype == torch.float64
    padded(*three(2, 9, 2, 4), [9, 4])


@pytest.mark.parametrize("name", ["padded list", "lengths", "layouts"])
def test_functional_transforms(name: str) -> None:
    """torch.func.grad, vmap of it, and vmap over some of the tensors."""
    call, shape, form = FORMS[name]
    many = three(2, *shape)
    sizes = form(many[0][0], SIZES[0])
    every = (0, 1, 2)
    grad = torch.func.grad(lambda q, k, v: call(q, k, v, sizes).sin().sum(), argnums=every)
    found = torch.vmap(grad)(*many)
    wanted = [grad(*(t[i] for t in many)) for i in range(2)]
    for number in every:
        torch.testing.assert_close(found[number], torch.stack([each[number] for each in wanted]), rtol=0, atol=1e-12)
    leaves = [t[0].clone().requires_grad_() for t in many]
    eager = torch.autograd.grad(call(*leaves, sizes).sin().sum(), leaves)
    torch.testing.assert_close(wanted[0], eager, rtol=0, atol=1e-12)
    mapped = torch.vmap(lambda k: call(many[0][0], k, many[2][0], sizes), in_dims=1)(many[1].movedim(0, 1))
    each = [call(many[0][0], many[1][i], many[2][0], sizes) for i in range(2)]
    torch.testing.assert_close(mapped, torch.stack(each), rtol=0, atol=1e-12)


def test_gradients_of_rpb() -> None:
    """The gradient is the sum of those of separate calls for each item; here mapped over two rpb."""
    given, sizes = three(3, 9, 2, 4), [9, 0, 5]
    biases = normal(2, 2, 5)

    def call(rpb: Tensor) -> Tensor:
        window = (3, 1, 1, False)
        body, fw = MPS.module("_metal.api.varlen").padded_items, MPS.module("_framework")
        return body(fw, "na1d_varlen", "seq_lens", tuple(given), sizes, window, None, False, None, rpb)

    def alone(rpb: Tensor) -> Tensor:
        items = [(i, n) for i, n in enumerate(sizes) if n]
        parts = [MPS.face("na1d")(*(t[i : i + 1, :n] for t in given), 3, rpb=rpb) for i, n in items]
        return torch.stack([part.sin().sum() for part in parts]).sum()

    wanted = torch.stack([torch.func.grad(alone)(rpb) for rpb in biases])
    found = torch.vmap(torch.func.grad(lambda rpb: call(rpb).sin().sum()))(biases)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_no_second_derivative() -> None:
    given = [t.requires_grad_() for t in three(2, 6, 1, 2)]
    out = padded(*given, [6, 4])
    (first,) = torch.autograd.grad(out.sum(), given[0], create_graph=True)
    with pytest.raises(NotImplementedError, match=r'^na1d_varlen: second derivatives .* use backend="dense"$'):
        torch.autograd.grad(first.sum(), given[1])


def test_gradients_of_lists() -> None:
    """Of an empty item too, of one tensor in several positions, and of items with another number of heads."""
    x, empty, wide = (
        normal(6, 2, 4).requires_grad_(),
        normal(0, 2, 4).requires_grad_(),
        normal(5, 3, 4).requires_grad_(),
    )
    items = [x, empty, wide, x]
    outs, lses = MPS.face("na1d_varlen")(items, items, items, None, 3, return_lse=True)
    assert [tuple(out.shape) for out in outs] == [tuple(item.shape) for item in items]
    assert outs[1].requires_grad and lses[1].shape == (0, 2)
    total = sum(out.sum() for out in outs) + sum(lse.sin().sum() for lse in lses)
    found = torch.autograd.grad(total, (x, empty, wide))
    assert found[1].shape == (0, 2, 4)
    for item, gradient, times in ((x, found[0], 2), (wide, found[2], 1)):
        out, lse = MPS.face("na1d")(*[item[None]] * 3, 3, return_lse=True)
        (wanted,) = torch.autograd.grad(times * (out.sum() + lse.sin().sum()), item)
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)
    assert MPS.face("na1d_varlen")([], [], [], None, 3) == []


def test_autocast_reaches_lists() -> None:
    items = [torch.randn(n, 2, 4) for n in (6, 0, 5)]
    with torch.autocast("cpu", torch.bfloat16):
        outs = MPS.face("na1d_varlen")(items, items, items, [6, 0, 5], 3)
    assert {out.dtype for out in outs} == {torch.bfloat16}
