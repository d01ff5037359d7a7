"""``mx.vmap`` of every op on every backend that supports it, and of both frameworks over empty axes.

Each call in MLX is mapped over two problems, whose results are those of two plain calls, and over none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from frameworks import MLX, MPS

package = MLX.package
X = (1, 9, 2, 4)
BIAS = (2, 5)
Call = Callable[..., Any]


def attend(x: mx.array, **more: Any) -> Any:
    return package.na1d(x, x, 0.5 * x, 3, **more)


def loss(x: mx.array, **more: Any) -> mx.array:
    return (attend(x, **more) ** 2).sum()


def biased(x: mx.array, rpb: mx.array) -> Any:
    return attend(x, rpb=rpb)


biased_gradients = mx.grad(lambda x, rpb: loss(x, rpb=rpb), argnums=(0, 1))

# The function, the shapes of its arguments, and which axis of each is mapped (of the argument with that axis added).
CALLS: dict[str, tuple[Call, tuple[tuple[int, ...], ...], tuple[int | None, ...]]] = {
    "fused": (attend, (X,), (0,)),
    "another axis": (attend, (X,), (3,)),
    "with lse": (lambda x: attend(x, return_lse=True), (X,), (0,)),
    "gradient": (mx.grad(loss), (X,), (0,)),
    "bias alone": (biased, (X, BIAS), (None, 0)),
    "bias too": (biased, (X, BIAS), (0, 1)),
    "bias shared": (biased, (X, BIAS), (0, None)),
    "gradients, bias too": (biased_gradients, (X, BIAS), (0, 0)),
    "gradients, bias shared": (biased_gradients, (X, BIAS), (0, None)),
    "additional": (lambda x, a: attend(x, additional_keys=a, additional_values=a), (X, (1, 3, 2, 4)), (None, 0)),
    "strided and causal": (lambda x: package.na1d(x, x, x, 4, 2, 2, True), (X,), (2,)),
    "nested": (lambda x: mx.vmap(attend, out_axes=1)(mx.stack([x, -x])), (X,), (0,)),
    "logits": (lambda x, rpb: package.na1d_qk(x, x, 3, rpb=rpb), (X, BIAS), (0, 0)),
    "weights": (lambda attn, x: package.na1d_av(attn, x, 3), ((1, 9, 2, 3), X), (0, None)),
    "attention": (lambda x: package.attention(x, x[:, :5], x[:, :5]), (X,), (0,)),
    "varlen": (lambda x: package.na1d_varlen(x, x, x, [5], 3), (X,), (0,)),
    "merged": (lambda x: package.merge_attentions([x, 2 * x], [x[..., 0], x[..., 1]]), (X,), (0,)),
}


def listed(found: Any) -> list[mx.array]:
    return [found] if isinstance(found, mx.array) else list(found)


@pytest.mark.parametrize("backend", ["pure", "nanobind", "dense"])
@pytest.mark.parametrize("name", CALLS)
def test_vmap_of_two_and_of_none(name: str, backend: str) -> None:
    call, shapes, axes = CALLS[name]
    numbers = np.random.default_rng(0)
    with package.use_backend(backend):
        each = [[mx.array(numbers.standard_normal(shape)) for shape in shapes] for _ in range(2)]
        given = [
            each[0][i] if axis is None else mx.stack([own[i] for own in each], axis) for i, axis in enumerate(axes)
        ]
        own = [[each[0][i] if axis is None else one[i] for i, axis in enumerate(axes)] for one in each]
        with MLX.watch() as ran:
            mapped = listed(mx.vmap(call, in_axes=axes)(*given))
            mx.eval(mapped)
        assert ran == ({backend} if name != "merged" else set())
        wanted = [mx.stack(list(parts)) for parts in zip(*(listed(call(*one)) for one in own), strict=True)]
        for found, want in zip(mapped, wanted, strict=True):
            assert (found.shape, found.dtype) == (want.shape, want.dtype)
            np.testing.assert_allclose(MLX.numpy(found), MLX.numpy(want), rtol=0, atol=2e-5)
        empty = [a if axis is None else mx.split(a, [0], axis)[0] for a, axis in zip(given, axes, strict=True)]
        nothing = listed(mx.vmap(call, in_axes=axes)(*empty))
        mx.eval(nothing)
        assert [(each.shape, each.dtype) for each in nothing] == [((0, *w.shape[1:]), w.dtype) for w in wanted]


@pytest.mark.parametrize("backend", ["pure", "nanobind", "dense"])
def test_gradient_through_vmap_of_none(backend: str) -> None:
    with package.use_backend(backend):
        empty, bias = mx.zeros((0, *X)), mx.ones(BIAS)
        x, rpb = mx.grad(lambda x, rpb: mx.vmap(biased, (0, None))(x, rpb).sum(), argnums=(0, 1))(empty, bias)
    assert (x.shape, rpb.tolist()) == (empty.shape, mx.zeros(BIAS).tolist())


@pytest.mark.parametrize("op", ["na1d", "na1d_varlen", "na1d_qk"])
@pytest.mark.parametrize("backend", ["native", "pure", "dense"])
def test_torch_maps_none(backend: str, op: str) -> None:
    """With an rpb for each problem, where the op takes one; and the gradients."""
    x, rpb = torch.zeros(0, *X), torch.zeros(0, *BIAS)
    last = 3 if op == "na1d_qk" else X[-1]

    def call(x: torch.Tensor, rpb: torch.Tensor) -> Any:
        if op == "na1d_varlen":
            window = (3, 1, 1, False)
            body, fw = MPS.module("_metal.api.varlen").padded_items, MPS.module("_framework")
            return body(fw, op, "seq_lens", (x, x, x), [5], window, None, False, backend, rpb)
        return MPS.face(op)(*[x] * (2 if op == "na1d_qk" else 3), 3, rpb=rpb, backend=backend)

    assert torch.vmap(call)(x, rpb).shape == (0, *X[:-1], last)
    gradients = torch.vmap(torch.func.grad(lambda *given: call(*given).sum(), argnums=(0, 1)))(x, rpb)
    assert [each.shape for each in gradients] == [x.shape, rpb.shape]
