"""Models of ``mlx.nn`` with neighborhood attention: training steps, weights, quantisation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from frameworks import MLX
from mlx.optimizers import SGD, Adam
from mlx.utils import tree_flatten, tree_map

DIM, HEADS = 32, 4
SHAPES = {1: (17,), 2: (7, 6), 3: (4, 3, 5)}
RANKS = (1, 2, 3)
WINDOWS: dict[int, dict[str, Any]] = {
    1: {"kernel_size": 5, "is_causal": True, "num_kv_heads": 2},
    2: {"kernel_size": (3, 4), "stride": (1, 2), "dilation": (2, 1)},
    3: {"kernel_size": (2, 3, 3), "rel_pos_bias": True},
}
# Parameters of the attention module of each rank; a Block has them under `attend`.
NAMES = {
    1: {"q_proj.weight", "q_proj.bias", "kv_proj.weight", "kv_proj.bias", "proj.weight", "proj.bias"},
    2: {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias"},
    3: {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias", "rpb"},
}
LAYERS = {1: ("q_proj", "kv_proj", "proj"), 2: ("qkv", "proj"), 3: ("qkv", "proj")}


@pytest.fixture(autouse=True, params=["pure", "nanobind"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each test of this module runs one backend, and no other except the dense one that it compares with."""
    MLX.package.set_backend(request.param)
    mx.random.seed(0)
    with MLX.watch() as ran:
        yield request.param
    assert ran - {"dense"} == {request.param}


class Block(nn.Module):
    """Attention with the usual layers of a transformer block around it."""

    def __init__(self, rank: int, dim: int = DIM) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attend = MLX.face(f"NeighborhoodAttention{rank}D")(dim, HEADS, **WINDOWS[rank])
        self.head = nn.Linear(dim, 3)

    def __call__(self, x: mx.array) -> mx.array:
        return self.head(nn.gelu(x + self.attend(self.norm(x))))


def example(rank: int, dim: int = DIM) -> mx.array:
    return mx.random.normal((2, *SHAPES[rank], dim), stream=mx.cpu)


def named(tree: Any) -> dict[str, mx.array]:
    return dict(tree_flatten(tree))


def loss_of(model: nn.Module, x: mx.array, wanted: mx.array) -> mx.array:
    return nn.losses.mse_loss(model(x), wanted)


def close(found: dict[str, mx.array], wanted: dict[str, mx.array], limit: float) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype), name
        np.testing.assert_allclose(MLX.numpy(found[name]), MLX.numpy(array), rtol=0, atol=limit, err_msg=name)


def with_dense(function: Callable[..., Any], *given: Any) -> Any:
    """``function(*given)`` on the dense backend."""
    with MLX.package.use_backend("dense"):
        found = function(*given)
        mx.eval(found)
        return found


# --- training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", RANKS)
def test_value_and_grad_of_a_model(rank: int) -> None:
    """``nn.value_and_grad`` gives each trainable parameter its gradient, ``mx.value_and_grad`` the same."""
    model, x, wanted = Block(rank), example(rank), mx.ones((2, *SHAPES[rank], 3))
    value, gradients = nn.value_and_grad(model, loss_of)(model, x, wanted)
    assert named(gradients).keys() == named(model.trainable_parameters()).keys()

    def loss(parameters: Any, x: mx.array) -> mx.array:
        model.update(parameters)
        return loss_of(model, x, wanted)

    again, (of_parameters, of_x) = mx.value_and_grad(loss, argnums=(0, 1))(model.trainable_parameters(), x)
    assert value.item() == again.item()
    close(named(of_parameters), named(gradients), 0)
    assert of_x.shape == x.shape
    dense_value, dense = with_dense(mx.value_and_grad(loss, argnums=(0, 1)), model.trainable_parameters(), x)
    assert abs(value.item() - dense_value.item()) < 1e-5
    close(named([of_parameters, of_x]), named(list(dense)), 1e-5)
    assert all(mx.abs(gradient).max().item() > 1e-4 for gradient in named(gradients).values() if gradient.size > 3)


# MLX's CPU backend compiles each fused kernel with a C++ compiler, so only one of them runs by default.
STEPS = [pytest.param(backend, rank, marks=pytest.mark.all) for backend in ("pure", "nanobind") for rank in RANKS]
STEPS[-1] = pytest.param("nanobind", 3)


@pytest.mark.parametrize(("backend", "rank"), STEPS, indirect=["backend"])
def test_a_compiled_training_step(rank: int) -> None:
    """With state captured as MLX recommends: the same loss as without compiling at every step, and the same dropout."""

    def trained(compiled: bool) -> tuple[list[float], dict[str, mx.array]]:
        mx.random.seed(3)
        model, optimizer = Block(rank).attend, SGD(0.1, momentum=0.9)
        model.proj_drop = nn.Dropout(0.2)
        wanted, data = mx.ones((2, *SHAPES[rank], DIM)), [example(rank) for _ in range(3)]
        optimizer.init(model.trainable_parameters())
        state = [model.state, optimizer.state, mx.random.state]
        gradient = nn.value_and_grad(model, loss_of)

        def step(x: mx.array) -> mx.array:
            value, gradients = gradient(model, x, wanted)
            optimizer.update(model, gradients)
            return value

        run, losses = mx.compile(step, inputs=state, outputs=state) if compiled else step, []
        for x in data:
            losses.append(run(x))
            mx.eval(losses, state)
        return [loss.item() for loss in losses], named(model.parameters())

    (losses, found), (eager_losses, wanted) = trained(True), trained(False)
    np.testing.assert_allclose(losses, eager_losses, rtol=1e-5)
    assert len(set(losses)) == 3
    close(found, wanted, 1e-5)


# --- parameters and weights --------------------------------------------------------------------------


@pytest.mark.parametrize("rank", RANKS)
def test_names_freeze_and_update(rank: int) -> None:
    model, x = Block(rank).attend, example(rank)
    assert named(model.parameters()).keys() == named(model.trainable_parameters()).keys() == NAMES[rank]
    assert [name for name, _ in model.named_modules() if name and "drop" not in name] == list(LAYERS[rank])[::-1]
    before = model(x)
    model.freeze(keys=["bias", "rpb"])
    trainable = {name for name in NAMES[rank] if name.endswith("weight")}
    assert named(model.trainable_parameters()).keys() == trainable
    _, gradients = nn.value_and_grad(model, lambda x: (model(x) ** 2).sum())(x)
    assert named(gradients).keys() == trainable
    model.freeze()
    assert not named(model.trainable_parameters())
    model.unfreeze()
    assert named(model.trainable_parameters()).keys() == NAMES[rank]
    model.update(tree_map(lambda parameter: parameter * 0.5, model.parameters()))
    other = model(x)
    assert mx.abs(other - before).max().item() > 1e-2
    close({"out": other}, {"out": with_dense(model, x)}, 1e-5)


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
@pytest.mark.parametrize("rank", RANKS)
def test_weights_through_a_file(tmp_path: Path, rank: int, ending: str) -> None:
    """By ``nn.Module``'s own methods."""
    file, x = str(tmp_path / f"weights.{ending}"), example(rank)
    one, other = Block(rank), Block(rank)
    one.save_weights(file)
    assert mx.abs(one(x) - other(x)).max().item() > 1e-2
    other.load_weights(file)
    close(named(other.parameters()), named(one.parameters()), 0)
    close({"out": other(x)}, {"out": one(x)}, 0)
    weights = list(mx.load(file).items())
    for wrong, words in (
        ([(name.replace("attend.proj.", "attend.out."), array) for name, array in weights], "attend.out"),
        ([(name, array) for name, array in weights if name != "attend.proj.weight"], "attend.proj.weight"),
        ([(name, array.T if name == "attend.proj.bias" else array[:1]) for name, array in weights], "shape"),
    ):
        with pytest.raises(ValueError, match=words):
            other.load_weights(wrong, strict=True)
    other.load_weights(weights[:-1], strict=False)
    close({"out": other(x)}, {"out": one(x)}, 0)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("rank", RANKS)
def test_set_dtype(rank: int, dtype: mx.Dtype) -> None:
    model, x = Block(rank), example(rank)
    wanted = model(x)
    model.set_dtype(dtype)
    assert {parameter.dtype for parameter in named(model.parameters()).values()} == {dtype}
    found = model(x.astype(dtype))
    assert found.dtype == dtype
    close({"out": found.astype(mx.float32)}, {"out": wanted}, 0.01 if dtype == mx.float16 else 0.06)
    _, gradients = nn.value_and_grad(model, lambda x: (model(x).astype(mx.float32) ** 2).sum())(x.astype(dtype))
    assert all(mx.isfinite(g).all().item() and g.dtype == dtype for g in named(gradients).values())
    assert model(x).dtype == mx.float32  # MLX's layers promote, and rpb may have any dtype


# --- other layers in place of ours --------------------------------------------------------------------


@pytest.mark.parametrize("rank", RANKS)
def test_a_quantised_model(rank: int) -> None:
    dim = 64  # MLX quantises groups of 64
    model, x = Block(rank, dim), example(rank, dim)
    wanted, before = model(x), named(model.parameters())
    nn.quantize(model, group_size=64, bits=8)
    for name in LAYERS[rank]:
        assert isinstance(model.attend[name], nn.QuantizedLinear), name
    after = named(model.attend.parameters())
    assert after.keys() == NAMES[rank] | {f"{name}.{kind}" for name in LAYERS[rank] for kind in ("scales", "biases")}
    if "rpb" in NAMES[rank]:
        close({"rpb": after["rpb"]}, {"rpb": before["attend.rpb"]}, 0)
    found = model(x)
    assert 1e-5 < mx.abs(found - wanted).max().item() < 0.03 * mx.abs(wanted).max().item()
    close({"out": found}, {"out": with_dense(model, x)}, 1e-5)
    # What remains trainable: norms, biases and rpb.
    _, gradients = nn.value_and_grad(model, lambda x: (model(x) ** 2).sum())(x)
    assert ("attend.rpb" in named(gradients)) == ("rpb" in NAMES[rank])
    assert "attend.proj.weight" not in named(gradients) and "norm.weight" in named(gradients)


class LowRank(nn.Module):
    """A frozen layer plus a product of two small matrices, as fine-tuning adds them."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.layer.freeze()
        outputs, inputs = layer.weight.shape
        self.down, self.up = mx.random.normal((inputs, 2)), mx.zeros((2, outputs))

    def __call__(self, x: mx.array) -> mx.array:
        return self.layer(x) + x @ self.down @ self.up


@pytest.mark.parametrize("rank", RANKS)
def test_fine_tuning_by_other_layers(rank: int) -> None:
    model, x, wanted = Block(rank), example(rank), mx.ones((2, *SHAPES[rank], 3))
    before = model(x)
    model.freeze()
    model.attend.update_modules({name: LowRank(model.attend[name]) for name in LAYERS[rank]})
    names = {f"attend.{name}.{part}" for name in LAYERS[rank] for part in ("down", "up")}
    assert named(model.trainable_parameters()).keys() == names
    close({"out": model(x)}, {"out": before}, 0)
    gradient, optimizer, losses = nn.value_and_grad(model, loss_of), Adam(0.01), []
    for _ in range(4):
        value, gradients = gradient(model, x, wanted)
        assert named(gradients).keys() == names
        optimizer.update(model, gradients)
        losses.append(value.item())
    assert losses[-1] < losses[0]
