"""Modules changed after construction: heads pruned and sharded, dropout replaced; ``backend`` and ``stream``."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn
import numpy as np
import pytest
import torch
from frameworks import FRAMEWORKS, MLX, MPS, Framework
from mlx.nn.layers.distributed import shard_inplace
from module_weights import Array, build, example, forward, load, random_weights, state

D = 3  # out of 12 channels and 4 heads


def linear(framework: Framework, inputs: int, outputs: int) -> Any:
    return mlx.nn.Linear(inputs, outputs) if framework is MLX else torch.nn.Linear(inputs, outputs)


def of_heads(array: Array, heads: list[int], parts: int, axis: int = 0) -> Array:
    """The channels of ``heads`` in each of ``parts`` parts that are concatenated along ``axis``."""
    by_head = np.moveaxis(array, axis, 0)
    by_head = by_head.reshape(parts, -1, D, *by_head.shape[1:])[:, heads]
    return np.moveaxis(by_head.reshape(-1, *by_head.shape[3:]), 0, axis)


def pruned(
    framework: Framework, weights: dict[str, Array], heads: list[int], kv_heads: list[int], **arguments: Any
) -> Any:
    """A module of 4 heads of which some were removed, as code that prunes heads removes them."""
    module, kept = build(framework, 2, **arguments), dict(weights)
    layers = {"qkv": (heads, 3), "q_proj": (heads, 1), "kv_proj": (kv_heads, 2)}
    for layer, (left, parts) in layers.items():
        if f"{layer}.weight" in weights:
            kept |= {
                f"{layer}.{kind}": of_heads(weights[f"{layer}.{kind}"], left, parts) for kind in ("weight", "bias")
            }
            setattr(module, layer, linear(framework, 12, parts * len(left) * D))
    kept["proj.weight"] = of_heads(weights["proj.weight"], heads, 1, axis=1)
    module.proj = linear(framework, len(heads) * D, 12)
    if "rpb" in weights:
        kept["rpb"] = weights["rpb"][heads]
        rpb = framework.tensor(kept["rpb"], "float32")
        module.rpb = torch.nn.Parameter(rpb) if framework is MPS else rpb
    module.num_heads = len(heads)
    if kv_heads != heads:
        module.num_kv_heads = len(kv_heads)
    load(module, kept)
    module.eval()
    return module


PRUNED: dict[str, tuple[list[int], list[int], dict[str, Any]]] = {
    "two of four": ([0, 3], [0, 3], {"kernel_size": 3}),
    "one": ([2], [2], {"kernel_size": (3, 4), "rel_pos_bias": True}),
    # Heads 0 and 1 read one kv head, 2 and 3 the other.
    "grouped": ([2, 3], [1], {"kernel_size": 3, "num_kv_heads": 2}),
    "one of each group": ([0, 2], [0, 1], {"kernel_size": 3, "num_kv_heads": 2}),
}


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("name", PRUNED)
def test_pruned_heads(name: str, framework: Framework) -> None:
    """Results and gradients of the pruned module equal those of the whole module with an output projection that ignores
    the removed heads.
    """
    heads, kv_heads, arguments = PRUNED[name]
    whole, x = build(framework, 2, **arguments), example(2)
    weights = random_weights(whole)
    module = pruned(framework, weights, heads, kv_heads, **arguments)
    ignoring = np.zeros_like(weights["proj.weight"])
    for head in heads:
        ignoring[:, head * D : head * D + D] = weights["proj.weight"][:, head * D : head * D + D]
    load(whole, weights | {"proj.weight": ignoring})
    np.testing.assert_allclose(forward(framework, module, x), forward(framework, whole, x), rtol=0, atol=1e-5)
    cotangents = [framework.tensor(np.ones_like(x), "float32")]
    found, wanted = (
        framework.vjp(lambda x, own=own: (own(x),), [framework.tensor(x, "float32")], cotangents)[1]
        for own in (module, whole)
    )
    np.testing.assert_allclose(framework.numpy(found[0]), framework.numpy(wanted[0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_heads_that_do_not_fit_the_projection(framework: Framework) -> None:
    module, x = build(framework, 1, kernel_size=3), framework.tensor(example(1), "float32")
    module.num_heads = 2
    with pytest.raises(ValueError) as caught:
        module(x)
    assert str(caught.value) == (
        "NeighborhoodAttention1D: qkv gives 36 channels, but num_heads=2 with head_dim 3 needs 3 * 2 * 3; "
        "after heads are pruned or sharded, set num_heads to the number that is left"
    )


class Pair:
    """The part of a two-process group that sharding needs."""

    def __init__(self, rank: int) -> None:
        self.own = rank

    def rank(self) -> int:
        return self.own

    def size(self) -> int:
        return 2


@pytest.mark.parametrize("arguments", [{}, {"num_kv_heads": 2}], ids=["qkv", "grouped"])
def test_heads_sharded_by_mlx(arguments: dict[str, Any]) -> None:
    """The shards of two processes, as ``shard_inplace`` and the code around it make them, add up to the whole."""
    whole, x = build(MLX, 1, kernel_size=3, **arguments), example(1)
    weights = random_weights(whole)
    load(whole, weights)
    parts = []
    for rank in range(2):
        module, group = build(MLX, 1, kernel_size=3, **arguments), Pair(rank)
        load(module, weights)
        for layer, segments in (("qkv", 3), ("q_proj", 1), ("kv_proj", 2)):
            if hasattr(module, layer):
                shard_inplace(module[layer], "all-to-sharded", segments=segments, group=group)  # type: ignore[arg-type]
        shard_inplace(module.proj, "sharded-to-all", group=group)  # type: ignore[arg-type]  # its bias stays whole
        module.num_heads //= 2
        module.num_kv_heads //= 2
        parts.append(forward(MLX, module, x))
    summed = sum(parts) - weights["proj.bias"]
    np.testing.assert_allclose(summed, forward(MLX, whole, x), rtol=0, atol=1e-5)


class Twice:
    """A replacement for a dropout layer: it doubles every weight, and has no probability."""

    def __new__(cls, framework: Framework) -> Any:
        base: Any = mlx.nn.Module if framework is MLX else torch.nn.Module

        class Layer(base):
            def __call__(self, x: Any) -> Any:
                return 2 * x

        return Layer()


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_a_layer_that_replaces_attn_drop_is_used(framework: Framework) -> None:
    """In training, whatever the constructor was given; and a layer that drops nothing changes nothing."""
    x, layers = example(1), mlx.nn if framework is MLX else torch.nn
    for drop in (0.0, 0.5):
        module = build(framework, 1, kernel_size=3, attn_drop=drop)
        weights = random_weights(module)
        load(module, weights)
        wanted = forward(framework, module, x)
        module.train()
        for nothing in (layers.Identity(), layers.Dropout(0.0)):
            module.attn_drop = nothing
            assert np.array_equal(forward(framework, module, x), wanted)
        module.attn_drop = Twice(framework)
        bias = weights["proj.bias"]
        np.testing.assert_allclose(forward(framework, module, x) - bias, 2 * (wanted - bias), rtol=0, atol=1e-5)
        module.attn_drop = layers.Dropout(0.5)
        assert not np.allclose(forward(framework, module, x), wanted, atol=0.01)
        module.eval()
        assert np.array_equal(forward(framework, module, x), wanted)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_the_backend_of_a_module(framework: Framework) -> None:
    """The constructor's setting holds however the module is called; an argument of the call takes precedence."""
    x = framework.tensor(example(1), "float32")
    module = build(framework, 1, kernel_size=3, attn_drop=0.1, backend="pure")
    training = build(framework, 1, kernel_size=3, attn_drop=0.1, backend="pure")
    training.train()

    def ran(module: Any, *arguments: Any, **more: Any) -> set[str]:
        with framework.watch() as found:
            framework.evaluate(module(x, *arguments, **more))
        return found

    framework.package.set_backend(framework.compiled)
    assert ran(build(framework, 1, kernel_size=3)) == {framework.compiled}
    assert ran(module) == ran(module, [9, 5]) == ran(training) == {"pure"}
    assert ran(module, backend="dense") == ran(module, [9, 5], backend="dense") == {"dense"}
    assert ran(training, backend=framework.compiled) == {framework.compiled}
    with pytest.raises(ValueError, match="NeighborhoodAttention1D: unknown backend 'fast'"):
        build(framework, 1, kernel_size=3, backend="fast")
    with pytest.raises(ValueError, match="unknown backend 'fast'"):
        module(x, backend="fast")
    with pytest.raises(TypeError, match="NeighborhoodAttention1D: backend must be a string"):
        build(framework, 1, kernel_size=3, backend=3)


def test_state_dicts_are_the_same_with_a_backend() -> None:
    for framework in FRAMEWORKS:
        assert set(state(build(framework, 1, kernel_size=3, backend="pure"))) == {
            "qkv.weight",
            "qkv.bias",
            "proj.weight",
            "proj.bias",
        }


def test_a_whole_module_runs_on_its_stream() -> None:
    """Called in another thread, whose default streams the main thread does not have."""
    from threading import Thread

    module, x = build(MLX, 2, kernel_size=3, proj_drop=0.5), MLX.tensor(example(2), "float32")
    mx.eval(module.parameters(), x)
    stream, made = mx.new_stream(mx.cpu), []
    thread = Thread(target=lambda: made.append(module(x, stream=stream)))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(MLX.numpy(made[0]), MLX.numpy(module(x)))
