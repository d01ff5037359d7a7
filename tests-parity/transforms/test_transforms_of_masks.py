"""Key masks under the frameworks' transforms: compile, export, vmap, derivatives, autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from frameworks import MLX, MPS, Framework
from torch import Tensor

BACKENDS, MLX_BACKENDS = ((framework.compiled, "pure", "dense") for framework in (MPS, MLX))
SHAPES = {"query": (2, 5, 6, 2, 3), "key": (2, 5, 6, 1, 3), "value": (2, 5, 6, 1, 3), "rpb": (2, 5, 7)}
WINDOW: dict[str, Any] = {"kernel_size": (3, 4), "is_causal": (False, True)}
Call = Callable[..., Any]


def arrays(count: int = 3) -> tuple[list[np.ndarray], np.ndarray]:
    """The first tensors of SHAPES, masked keys and values NaN, and the mask, which leaves some queries no key."""
    random = np.random.default_rng(4)
    mask = random.random((2, 5, 6)) < 0.5
    mask[0, :4, :3] = False
    given = [random.standard_normal(shape) for shape in list(SHAPES.values())[:count]]
    given[1:3] = [np.where(mask[..., None, None], array, np.nan) for array in given[1:3]]
    return given, mask


def fused(framework: Framework, backend: str) -> Call:
    na2d = framework.face("na2d")
    return lambda q, k, v, mask, rpb=None: na2d(q, k, v, **WINDOW, key_mask=mask, rpb=rpb, backend=backend)


def tensors(learn: bool = True, count: int = 3) -> tuple[list[Tensor], Tensor]:
    given, mask = arrays(count)
    return [MPS.tensor(array).requires_grad_(learn) for array in given], torch.tensor(mask)


def gradients(call: Call, given: list[Tensor], mask: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad((call(*given, mask) ** 2).sum(), given))


def close(found: Any, wanted: Any) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert np.isfinite(np.asarray(one.tolist())).all()
        np.testing.assert_allclose(np.asarray(one.tolist()), np.asarray(other.tolist()), rtol=1e-9, atol=1e-11)


# Compilers are slow: by default only the dense backend, whose operations they see in full.
@pytest.mark.parametrize("backend", ["dense", pytest.param("pure", marks=pytest.mark.all)])
def test_torch_compiles(backend: str) -> None:
    """As one graph; results and gradients are eager's, with other masks too."""
    call, (given, mask) = fused(MPS, backend), tensors()
    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for own in (mask, mask & (torch.arange(6) > 1)):
        close([compiled(*given, own)], [call(*given, own)])
        close(gradients(compiled, given, own), gradients(call, given, own))


def test_torch_exports() -> None:
    """The custom op has the mask as its last input."""
    call, (given, mask) = fused(MPS, "pure"), tensors(learn=False)

    class Model(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
            out: Tensor = call(q, k, v, mask)
            return out

    program = torch.export.export(Model(), (*given, mask))
    (node,) = (node for node in program.graph.nodes if "natten_mps" in str(node.target))
    assert len(node.args[0]) == 7 and node.args[0][-1].name == "mask"
    close([program.module()(*given, mask)], [call(*given, mask)])


@pytest.mark.parametrize("backend", ["native", "pure"])
def test_the_custom_ops_pass_torchs_checks(backend: str) -> None:
    """opcheck: fakes, autograd and tracing of both ops."""
    (query, key, value), mask = tensors()
    inputs = [query, key, value, None, None, None, mask]
    static = ([3, 4], [1, 1], [1, 1], [False, True], 0.5, backend)
    forward, backward = torch.ops.natten_mps.na_forward.default, torch.ops.natten_mps.na_backward.default
    assert set(torch.library.opcheck(forward, (inputs, *static)).values()) == {"SUCCESS"}
    outputs = [output.detach() for output in forward(inputs, *static)]
    saved = [None if tensor is None else tensor.detach() for tensor in inputs]
    grads = [torch.ones_like(outputs[0]), None]
    assert set(torch.library.opcheck(backward, (grads, saved, outputs, *static)).values()) == {"SUCCESS"}


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_torch_maps(backend: str, biased: bool) -> None:
    """vmap over calls and gradients: with a mask for each, one for all, and over masks alone."""
    call, (given, mask) = fused(MPS, backend), tensors(learn=False, count=3 + biased)
    grad = torch.func.grad(lambda *t: (call(*t) ** 2).sum(), argnums=(0, 1, 2))
    given, bias = given[:3], given[3:]
    mapped, masks = [torch.stack([t, -0.5 * t], 1) for t in given], torch.stack([mask, mask & (torch.arange(6) > 1)], 1)

    for dims in ((1, 1, 1, 1), (1, 1, 1, None), (None, None, None, 1)):
        own = [each if dim == 1 else one for each, one, dim in zip([*mapped, masks], [*given, mask], dims, strict=True)]
        every = [[t.select(d, i) if d else t for t, d in zip(own, dims, strict=True)] for i in range(2)]
        each_dim = (*dims, *[None] * len(bias))
        close([torch.func.vmap(call, each_dim)(*own, *bias)], [torch.stack([call(*t, *bias) for t in every])])
        found = torch.func.vmap(grad, each_dim)(*own, *bias)
        close(found, [torch.stack(each) for each in zip(*(grad(*t, *bias) for t in every), strict=True)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_of_torch(backend: str) -> None:
    """Against finite differences of numbers in place of the NaNs; the second ones too, where the backend has them."""
    call, (given, mask) = fused(MPS, backend), tensors(learn=False, count=4)
    query, key, value, rpb = (t.nan_to_num(0.5).requires_grad_() for t in given)

    def masked(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        out: Tensor = call(q, k, v, mask, bias)
        return out

    assert torch.autograd.gradcheck(masked, (query, key, value, rpb), fast_mode=True)
    if backend == "dense":
        assert torch.autograd.gradgradcheck(masked, (query, key, value, rpb), fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_leaves_the_mask_alone(backend: str) -> None:
    call, (given, mask) = fused(MPS, backend), tensors(learn=False)
    with torch.autocast("cpu", torch.bfloat16):
        out = call(*(t.float() for t in given), mask)
    assert out.dtype == torch.bfloat16 and torch.equal(out, call(*(t.bfloat16() for t in given), mask))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_query_does_not_affect_masked_keys(backend: str) -> None:
    """The gradients of masked keys and values are 0, not NaN."""
    call, (given, mask) = fused(MPS, backend), tensors(learn=False)
    given[0][:, 2, 3] = torch.nan
    given = [t.requires_grad_() for t in given]
    _, *of_keys = torch.autograd.grad(call(*given, mask).sum(), given)
    assert any(gradient.isnan().any() for gradient in of_keys) or backend == "dense"
    assert all((gradient[~mask] == 0).all() for gradient in of_keys)


@pytest.mark.parametrize("backend", MLX_BACKENDS)
def test_mlx_transforms(backend: str) -> None:
    """vmap over calls and gradients, with a mask for each and one for all; gradients are torch's."""
    other = MPS.compiled if backend == MLX.compiled else backend
    call, eager, (wanted, torch_mask) = fused(MLX, backend), fused(MPS, other), tensors()
    given, mask = [MLX.tensor(array) for array in arrays()[0]], mx.array(arrays()[1])
    grad = mx.grad(lambda *t: (call(*t) ** 2).sum(), argnums=(0, 1, 2))
    with MLX.watch() as ran:
        close([call(*given, mask)], [eager(*wanted, torch_mask)])
        close(grad(*given, mask), gradients(eager, wanted, torch_mask))
    assert ran == {backend}
    mapped = [mx.stack([t, -0.5 * t], axis=1) for t in given]
    masks = mx.stack([mask, mx.logical_and(mask, mx.arange(6) > 1)], axis=1)
    for own, axes in (((*mapped, masks), (1, 1, 1, 1)), ((*mapped, mask), (1, 1, 1, None))):
        every = [[t[:, i] if axis else t for t, axis in zip(own, axes, strict=True)] for i in range(2)]
        close([mx.vmap(call, axes)(*own)], [mx.stack([call(*t) for t in every])])
        found = mx.vmap(grad, axes)(*own)
        close(found, [mx.stack(list(each)) for each in zip(*(grad(*t) for t in every), strict=True)])


@pytest.mark.parametrize("backend", MLX_BACKENDS)
def test_mlx_compiles(backend: str) -> None:
    """Results and gradients, and again with another mask."""
    call, given = fused(MLX, backend), [MLX.tensor(array) for array in arrays()[0]]

    def both(*t: Any) -> tuple[Any, Any]:
        return mx.value_and_grad(lambda *t: (call(*t) ** 2).sum(), argnums=(0, 1, 2))(*t)

    compiled, mask = mx.compile(both), mx.array(arrays()[1])
    for own in (mask, mx.logical_and(mask, mx.arange(6) > 1)):
        (found, gradients), (wanted, expected) = compiled(*given, own), both(*given, own)
        close([found, *gradients], [wanted, *expected])
