"""A query whose logits are all -inf: out 0, lse -inf and no gradient, on every backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from frameworks import MLX, MPS, PATHS, Path

Array = Any
PLAIN = tuple(path for path in PATHS if path.backend in ("pure", "dense"))


def problem(additional: bool) -> dict[str, Array]:
    random = np.random.default_rng(3)
    shapes = {"query": (2, 9, 4, 3), "key": (2, 9, 2, 3), "value": (2, 9, 2, 5), "rpb": (4, 5)}
    if additional:
        shapes |= {"additional_keys": (2, 2, 2, 3), "additional_values": (2, 2, 2, 5)}
    arrays = {name: random.standard_normal(shape) for name, shape in shapes.items()}
    # The first head sees nothing; the second does not see itself; the others see everything.
    arrays["rpb"][0] = -np.inf
    arrays["rpb"][1, 2] = -np.inf
    return arrays


def run(path: Path, arrays: dict[str, Array]) -> tuple[list[Array], dict[str, Array]]:
    framework, random = path.framework, np.random.default_rng(4)
    names = list(arrays)

    def call(*given: Any) -> Any:
        by_name = dict(zip(names, given, strict=True))
        return framework.face("na1d")(**by_name, kernel_size=3, return_lse=True, backend=path.backend)

    cotangents = [framework.tensor(random.standard_normal(shape)) for shape in ((2, 9, 4, 5), (2, 9, 4))]
    with framework.watch() as ran:
        results, gradients = framework.vjp(call, [framework.tensor(a) for a in arrays.values()], cotangents)
    assert ran == {path.backend}
    return [framework.numpy(t) for t in results], dict(zip(names, map(framework.numpy, gradients), strict=True))


@pytest.mark.parametrize("path", PLAIN, ids=str)
def test_a_head_whose_biases_are_minus_infinity(path: Path) -> None:
    (out, lse), gradients = run(path, problem(additional=False))
    assert (out[:, :, 0] == 0).all() and (lse[:, :, 0] == -np.inf).all()
    assert np.isfinite(out[:, :, 1:]).all() and np.isfinite(lse[:, :, 1:]).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    assert (gradients["query"][:, :, 0] == 0).all() and (gradients["rpb"][0] == 0).all()
    assert gradients["rpb"][1, 2] == 0 and (gradients["rpb"][2] != 0).any()
    assert (gradients["query"][:, :, 1:] != 0).all() and (gradients["value"] != 0).all()


@pytest.mark.parametrize("path", PLAIN, ids=str)
def test_only_additional_keys_are_seen(path: Path) -> None:
    """With additional keys, the first head sees only those: its results are those of full attention to them."""
    arrays = problem(additional=True)
    (out, lse), gradients = run(path, arrays)
    logits = np.einsum("bthd,bsd->bhts", arrays["query"][:, :, :1], arrays["additional_keys"][:, :, 0]) * 3**-0.5
    weights = np.exp(logits)
    total = weights.sum(-1, keepdims=True)
    wanted = np.einsum("bhts,bsd->bthd", weights / total, arrays["additional_values"][:, :, 0])
    assert np.allclose(out[:, :, :1], wanted) and np.allclose(lse[:, :, 0], np.log(total[:, 0, :, 0]))
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    assert (gradients["rpb"][0] == 0).all() and (gradients["query"][:, :, 0] != 0).all()


def test_second_derivatives_of_dense_are_finite() -> None:
    import mlx.core as mx
    import torch

    arrays = problem(additional=False)
    names = list(arrays)

    def loss(framework: Any, given: Any) -> Any:
        out, lse = framework.face("na1d")(
            **dict(zip(names, given, strict=True)), kernel_size=3, return_lse=True, backend="dense"
        )
        return (out * out).sum() + (lse[:, :, 1:] * lse[:, :, 1:]).sum()

    leaves = [torch.tensor(a, requires_grad=True) for a in arrays.values()]
    first = torch.autograd.grad(loss(MPS, leaves), leaves, create_graph=True)
    second = torch.autograd.grad(sum((g * g).sum() for g in first), leaves)
    every = tuple(range(len(leaves)))
    squares = lambda *given: sum((g * g).sum() for g in mx.grad(lambda *t: loss(MLX, t), every)(*given))  # noqa: E731
    found = mx.grad(squares, every)(*map(MLX.tensor, arrays.values()))
    for a, b in zip(second, found, strict=True):
        assert np.isfinite(a.numpy()).all() and (a != 0).any()
        assert np.allclose(a.numpy(), MLX.numpy(b), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("framework", [MPS, MLX], ids=str)
def test_dropped_weights_of_a_module(framework: Any) -> None:
    """The split ops with a softmax between them, as modules use them in training."""
    module = framework.package.NeighborhoodAttention1D(4, 2, 3, attn_drop=0.5, rel_pos_bias=True)
    module.train()
    bias = np.array(framework.numpy(module.rpb))
    bias[0] = -np.inf
    tensor = framework.tensor(bias, "float32")
    x = framework.tensor(np.random.default_rng(0).standard_normal((1, 7, 4)), "float32")
    if framework is MPS:
        module.rpb.data.copy_(tensor)
        out = module(x)
        out.sum().backward()
        found = [out, *(p.grad for p in module.parameters())]
    else:
        import mlx.core as mx
        import mlx.nn as nn

        module.rpb = tensor
        value, gradients = nn.value_and_grad(module, lambda x: module(x).sum())(x)
        found = [value, *(g for _, g in __import__("mlx.utils").utils.tree_flatten(gradients))]
        mx.eval(found)
    assert len(found) > 4 and all(np.isfinite(framework.numpy(t)).all() for t in found)
