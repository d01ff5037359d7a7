"""torch.compile: one compilation for all sizes, and torch.func's transforms inside of it.

Results of compiled functions are compared with eager ones in test_transforms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from frameworks import MPS
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

pytestmark = pytest.mark.usefixtures("torch_path")
# Batch and axes; in the first shape they differ from each other and from heads and head_dim, which torch would unify.
SIZES = ((3, 6, 7), (5, 9, 8), (4, 11, 6), (7, 5, 13), (2, 9, 9))
HEADS, DIM = 2, 4
RELEASE = tuple(int(part) for part in torch.__version__.split(".")[:2])


def fused(x: Tensor) -> Tensor:
    out, lse = MPS.face("na2d")(
        x,
        x * 2,
        x.sin(),
        3,
        is_causal=(True, False),
        additional_keys=x[:, 0],
        additional_values=x[:, 1],
        return_lse=True,
    )
    return out * lse[..., None]


def split(x: Tensor) -> Tensor:
    return MPS.face("na2d_av")(MPS.face("na2d_qk")(x, x * 2, 3, (1, 2)).softmax(-1), x, 3, (1, 2))


def full(x: Tensor) -> Tensor:
    tokens = x.flatten(1, 2)
    return MPS.face("attention")(tokens, tokens * 2, tokens.sin(), True)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"fused": fused, "split": split, "full": full}


def compilations(function: Any, channels: tuple[int, ...], learns: bool, mark: bool = False, **options: Any) -> int:
    """How often ``function`` is compiled after the first size; results and gradients are eager's."""
    torch.compiler.reset()
    counter, first = CompileCounterWithBackend("aot_eager"), 0
    compiled = torch.compile(function, fullgraph=True, backend=counter, **options)
    for size in SIZES:
        given = torch.randn(*size, *channels)
        leaves = [given.clone().requires_grad_(learns) for _ in range(2)]
        if mark:
            for axis in range(3):
                torch._dynamo.mark_dynamic(leaves[0], axis)
        found, wanted = compiled(leaves[0]), function(leaves[1])
        first = first or counter.frame_count
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        if learns:
            torch.testing.assert_close(
                torch.autograd.grad(found.sin().sum(), leaves[0]),
                torch.autograd.grad(wanted.sin().sum(), leaves[1]),
                rtol=0,
                atol=1e-5,
            )
    assert first > 0
    return int(counter.frame_count - first)


@pytest.mark.parametrize("learns", [pytest.param(False, marks=pytest.mark.all), True], ids=["inference", "training"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_compilation_for_all_sizes(name: str, learns: bool) -> None:
    assert compilations(FUNCTIONS[name], (HEADS, DIM), learns, dynamic=True) == 0


@pytest.mark.parametrize(
    "options",
    [pytest.param({}, marks=pytest.mark.all), {"num_kv_heads": 1, "rel_pos_bias": True}],
    ids=["qkv", "gqa-rpb"],
)
def test_one_compilation_of_a_module(options: dict[str, Any]) -> None:
    module = MPS.package.NeighborhoodAttention2D(8, 2, 3, **options)
    assert compilations(module, (8,), True, dynamic=True) == 0


def test_sizes_that_are_marked_or_seen_to_change() -> None:
    """torch's default compiles for the first size, and once more for all others."""
    assert compilations(fused, (HEADS, DIM), True, mark=True) == 0
    assert compilations(fused, (HEADS, DIM), True) == 1


# --- torch.func inside -------------------------------------------------------------------------------


KEY = torch.linspace(-1, 1, 10, dtype=torch.float64).view(1, 5, 1, 2)


def attend(op: str, backend: str | None) -> Callable[[Tensor], Tensor]:
    if op == "na1d":
        return lambda query: MPS.face("na1d")(query, KEY, KEY.cos(), 3, backend=backend) ** 2
    return lambda query: MPS.face("na1d_qk")(query, KEY, 3, backend=backend) ** 2


def written_out(query: Tensor) -> Tensor:
    """``attend("na1d_qk", ...)`` in plain operations."""
    keys = KEY[:, (torch.arange(5) - 1).clamp(0, 2)[:, None] + torch.arange(3)]
    return (torch.einsum("bihc,bijhc->bihj", query, keys) / 2**0.5) ** 2


def summed(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda query: function(query).sum()


def grad_of(function: Any) -> Any:
    return torch.func.grad(summed(function))


FIRST = {
    "grad": grad_of,
    "jacrev": torch.func.jacrev,
    "vmap": torch.vmap,
    "vmap of grad": lambda f: torch.vmap(grad_of(f)),
}
SECOND = {
    "hessian": lambda f: torch.func.hessian(summed(f)),
    "jacrev of grad": lambda f: torch.func.jacrev(grad_of(f)),
    "jacfwd": torch.func.jacfwd,
}


@pytest.mark.parametrize("op", ["na1d", pytest.param("na1d_qk", marks=pytest.mark.all)])
@pytest.mark.parametrize("name", FIRST)
def test_derivatives_inside_the_graph(name: str, op: str, torch_path: str) -> None:
    """Compiled, not bypassed: the graph contains the kernels' derivatives."""
    torch.compiler.reset()
    given = torch.randn(1, 5, 1, 2, dtype=torch.float64)
    if "vmap" in name:
        given = torch.stack([given, given.sin(), -given])
    wanted = FIRST[name](attend(op, torch_path))(given)
    assert wanted.any()
    compiled = torch.compile(FIRST[name](attend(op, torch_path)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(given), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SECOND)
def test_no_derivative_is_made_up(name: str, torch_path: str) -> None:
    """Second derivatives and forward mode of the fused op raise our error, eager and compiled."""
    torch.compiler.reset()
    given = torch.randn(1, 5, 1, 2, dtype=torch.float64)
    kind = "second" if name == "jacrev of grad" else "forward-mode"
    words = f'na1d: {kind} derivatives are not implemented; use backend="dense", or na1d_qk, a softmax and na1d_av'
    eager = SECOND[name](attend("na1d", torch_path))
    with pytest.raises(NotImplementedError) as caught:
        eager(given)
    assert str(caught.value) == words
    with pytest.raises(RuntimeError) as caught:
        torch.compile(eager, backend="aot_eager")(given)
    if RELEASE >= (2, 13):
        assert type(caught.value) is NotImplementedError and str(caught.value) == words
    else:  # torch's own error, which stops it from continuing
        assert words in str(caught.value)


@pytest.mark.parametrize("name", [*(pytest.param(n, marks=pytest.mark.all) for n in SECOND), "jacfwd of jacfwd"])
def test_split_ops_have_every_derivative(name: str, torch_path: str) -> None:
    """In full, eager and compiled, the same as torch's derivatives of the function written out."""
    torch.compiler.reset()
    given = torch.randn(1, 5, 1, 2, dtype=torch.float64)
    kind = SECOND.get(name, lambda f: torch.func.jacfwd(torch.func.jacfwd(summed(f))))
    eager = kind(attend("na1d_qk", torch_path))
    found = eager(given), torch.compile(eager, fullgraph=True, backend="aot_eager")(given)
    wanted = kind(written_out)(given)
    assert wanted.any()
    torch.testing.assert_close(found, (wanted, wanted), rtol=0, atol=1e-12)


def test_forward_mode_through_vmap_is_refused() -> None:
    given = torch.randn(2, 1, 5, 1, 2, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match=r"^na1d: forward-mode derivatives are not implemented"):
        torch.func.jvp(torch.vmap(attend("na1d", None)), (given,), (given,))
