"""Pieces of a larger problem under the frameworks' transforms: compile, export, vmap, derivatives of any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from frameworks import MLX, MPS
from torch import Tensor

BACKENDS = ("pure", "dense")
# Of 9 x 11 tokens: the queries 2..6 of axis 0 and 4..8 of axis 1, and more keys than they need.
CUT: dict[str, Any] = {"full_shape": (9, 11), "query_start": (2, 4), "key_start": (0, 1)}
WINDOW: dict[str, Any] = {"kernel_size": (3, 4), "dilation": (2, 1), "is_causal": (False, True)}
SHAPES = {"query": (2, 5, 5, 2, 3), "key": (2, 9, 8, 1, 3), "value": (2, 9, 8, 1, 3)}
Call = Callable[..., Any]


def arrays(*shapes: tuple[int, ...]) -> list[Any]:
    random = np.random.default_rng(4)
    return [random.standard_normal(shape) for shape in shapes]


def fused(framework: Any, backend: str) -> Call:
    na2d = framework.face("na2d")
    return lambda q, k, v: na2d(q, k, v, **WINDOW, **CUT, backend=backend)


def split(framework: Any, backend: str) -> Call:
    """Both split ops, without a softmax between them: causal slots of -inf are set to 0."""
    qk, av = framework.face("na2d_qk"), framework.face("na2d_av")
    where = torch.where if framework is MPS else mx.where

    def call(q: Any, k: Any, v: Any) -> Any:
        logits = qk(q, k, **WINDOW, **CUT, backend=backend)
        return av(where(logits == -np.inf, 0.0 * logits[..., :1], logits), v, **WINDOW, **CUT, backend=backend)

    return call


MAKE = {"fused": fused, "split": split}
# Compilers are slow: by default only the dense backend, whose graph contains the piece's arithmetic.
COMPILED = pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param(name, backend, marks=[] if (name, backend) == ("fused", "dense") else pytest.mark.all)
        for name in MAKE
        for backend in BACKENDS
    ],
)


def tensors(learn: bool = True) -> list[Tensor]:
    return [MPS.tensor(array).requires_grad_(learn) for array in arrays(*SHAPES.values())]


def gradients(call: Call, given: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad((call(*given) ** 2).sum(), given))


def close(found: Any, wanted: Any) -> None:
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(one.tolist()), np.asarray(other.tolist()), rtol=1e-9, atol=1e-11)


@COMPILED
def test_torch_compiles(name: str, backend: str) -> None:
    """As one graph that serves every batch size; results and gradients are eager's."""
    call = MAKE[name](MPS, backend)
    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=None)
    for batch in (2, 3):
        given = [torch.cat([t, t, t])[:batch].detach().requires_grad_() for t in tensors()]
        with MPS.watch() as ran:
            close([compiled(*given)], [call(*given)])
            close(gradients(compiled, given), gradients(call, given))
        assert ran == {backend}


@pytest.mark.parametrize("name", MAKE)
def test_torch_exports(name: str) -> None:
    """The custom op's node has the piece among its arguments."""
    call = MAKE[name](MPS, "pure")

    class Model(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out: Tensor = call(q, k, v)
            return out

    given = tensors(learn=False)
    program = torch.export.export(Model(), tuple(given))
    nodes = [node for node in program.graph.nodes if "natten_mps" in str(node.target)]
    assert len(nodes) == {"fused": 1, "split": 2}[name]
    assert all(list(node.args[-1]) == [9, 11, 2, 4, 0, 1] for node in nodes)
    close([program.module()(*given)], [call(*given)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MAKE)
def test_torch_maps(name: str, backend: str) -> None:
    """vmap over calls and over gradients equals one call after another."""
    call, given = MAKE[name](MPS, backend), tensors(learn=False)
    mapped = [torch.stack([t, -0.5 * t, 2 * t], 1) for t in given]
    found = torch.func.vmap(call, in_dims=1)(*mapped)
    close([found], [torch.stack([call(*(t[:, i] for t in mapped)) for i in range(3)])])
    grad = torch.func.grad(lambda *t: (call(*t) ** 2).sum(), argnums=(0, 1, 2))
    found = torch.func.vmap(grad, in_dims=1)(*mapped)
    close(
        found, [torch.stack(each) for each in zip(*(grad(*(t[:, i] for t in mapped)) for i in range(3)), strict=True)]
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MAKE)
def test_derivatives_of_torch(name: str, backend: str) -> None:
    """Against finite differences; the second ones too, where the backend has them."""
    call, given = MAKE[name](MPS, backend), tensors()
    assert torch.autograd.gradcheck(call, given, fast_mode=True)
    if name == "fused" and backend == "pure":
        with pytest.raises(NotImplementedError, match='use backend="dense"'):
            torch.autograd.gradgradcheck(call, given, fast_mode=True)
    else:
        assert torch.autograd.gradgradcheck(call, given, fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MAKE)
def test_mlx_transforms(name: str, backend: str) -> None:
    """vmap, gradients and, where the backend has them, their gradients: those of torch."""
    call, eager = MAKE[name](MLX, backend), MAKE[name](MPS, backend)
    given, wanted = [MLX.tensor(array) for array in arrays(*SHAPES.values())], tensors()

    def loss(*t: Any) -> Any:
        return (call(*t) ** 2).sum()

    grad = mx.grad(loss, argnums=(0, 1, 2))
    with MLX.watch() as ran:
        close([call(*given)], [eager(*wanted)])
        close(grad(*given), gradients(eager, wanted))
    assert ran == {backend}
    mapped = [mx.stack([t, -0.5 * t, 2 * t], axis=1) for t in given]
    one_by_one = [call(*(t[:, i] for t in mapped)) for i in range(3)]
    close([mx.vmap(call, in_axes=1)(*mapped)], [mx.stack(one_by_one)])
    if name == "fused" and backend == "pure":
        return
    second = mx.grad(lambda *t: sum((g**2).sum() for g in grad(*t)), argnums=(0, 1, 2))
    of_torch = torch.autograd.grad((eager(*wanted) ** 2).sum(), wanted, create_graph=True)
    close(second(*given), torch.autograd.grad(sum((g**2).sum() for g in of_torch), wanted))


@COMPILED
def test_mlx_compiles(name: str, backend: str) -> None:
    """Results and gradients, and again with other values."""
    call = MAKE[name](MLX, backend)
    grad = mx.grad(lambda *t: (call(*t) ** 2).sum(), argnums=(0, 1, 2))
    compiled, compiled_grad = mx.compile(call), mx.compile(grad)
    for factor in (1.0, -0.5):
        given = [MLX.tensor(factor * array) for array in arrays(*SHAPES.values())]
        with MLX.watch() as ran:
            close([compiled(*given)], [call(*given)])
            close(compiled_grad(*given), grad(*given))
        assert ran == {backend}
