"""The modules: upstream's state dict, weights that both packages share, and dropout that changes nothing else."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn
import mlx.utils
import numpy as np
import pytest
import torch
from frameworks import FRAMEWORKS, MLX, MPS, Framework
from module_weights import SHAPES, build, example, forward, load, random_weights, state

Array = Any
# name, rank, arguments besides embed_dim 12 and num_heads 4
MODULES = (
    ("plain", 1, {"kernel_size": 5}),
    ("image", 2, {"kernel_size": (3, 4), "dilation": (2, 1)}),
    ("volume", 3, {"kernel_size": 3}),
    ("grouped", 2, {"kernel_size": 3, "num_kv_heads": 2}),
    ("one kv head", 1, {"kernel_size": 4, "num_kv_heads": 1, "is_causal": True}),
    ("causal", 2, {"kernel_size": 3, "is_causal": (True, False)}),
    ("stride", 2, {"kernel_size": 4, "stride": (2, 3)}),
    ("rpb", 2, {"kernel_size": (3, 5), "rel_pos_bias": True}),
    (
        "everything",
        3,
        {
            "kernel_size": (2, 3, 2),
            "dilation": (2, 1, 1),
            "is_causal": (False, False, True),
            "num_kv_heads": 2,
            "rel_pos_bias": True,
            "qk_scale": 0.3,
        },
    ),
    ("no input bias", 1, {"kernel_size": 3, "qkv_bias": False}),
)
PLAIN = {"qkv.weight": (36, 12), "qkv.bias": (36,), "proj.weight": (12, 12), "proj.bias": (12,)}


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_state_dict(framework: Framework) -> None:
    """Upstream's names and shapes."""

    def shapes(rank: int = 1, **arguments: Any) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in state(build(framework, rank, **arguments)).items()}

    out = {"proj.weight": (12, 12), "proj.bias": (12,)}
    assert shapes(kernel_size=3) == PLAIN
    assert shapes(kernel_size=3, qkv_bias=False) == {"qkv.weight": (36, 12)} | out
    assert shapes(kernel_size=3, num_kv_heads=4) == PLAIN
    assert shapes(2, kernel_size=(3, 4), rel_pos_bias=True) == PLAIN | {"rpb": (4, 5, 7)}
    projections = {"q_proj.weight": (12, 12), "q_proj.bias": (12,), "kv_proj.weight": (12, 12), "kv_proj.bias": (12,)}
    assert shapes(3, kernel_size=3, num_kv_heads=2) == projections | out


@pytest.mark.parametrize(("name", "rank", "arguments"), MODULES, ids=[m[0] for m in MODULES])
def test_weights_are_interchangeable(name: str, rank: int, arguments: dict[str, Any]) -> None:
    """A checkpoint of one package, loaded in the other, gives the same numbers and the same gradients."""
    ours, theirs = (build(framework, rank, **arguments) for framework in FRAMEWORKS)
    weights, x = random_weights(ours), example(rank)
    load(ours, weights)
    load(theirs, state(ours))
    assert state(theirs).keys() == weights.keys()
    backends = MPS.package.use_backend("pure"), MLX.package.use_backend("pure")
    with backends[0], backends[1], MPS.watch() as torch_ran, MLX.watch() as mlx_ran:
        found, wanted = forward(MLX, theirs, x), forward(MPS, ours, x)
        (ours(torch.tensor(x)) ** 2).sum().backward()
        gradients = mlx.nn.value_and_grad(theirs, lambda x: (theirs(x) ** 2).sum())(mx.array(x))[1]
        mx.eval(gradients)
    assert torch_ran == mlx_ran == {"pure"}
    assert found.shape == x.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    for parameter, gradient in mlx.utils.tree_flatten(gradients):
        own = ours.get_parameter(parameter).grad.numpy()
        np.testing.assert_allclose(np.array(gradient), own, rtol=0, atol=1e-4 * max(1.0, np.abs(own).max()))


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize(("name", "rank", "arguments"), MODULES, ids=[m[0] for m in MODULES])
def test_a_module_equals_its_parts(name: str, rank: int, arguments: dict[str, Any], framework: Framework) -> None:
    """The parts are the dense op, and the projections around it in numpy."""
    module = build(framework, rank, **arguments)
    weights, x = random_weights(module), example(rank)
    load(module, weights)
    heads, kv = 4, arguments.get("num_kv_heads") or 4

    def linear(name: str, x: Array) -> Array:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", np.float32(0))

    if kv == heads:
        query, key, value = np.moveaxis(linear("qkv", x).reshape(*x.shape[:-1], 3, heads, 3), -3, 0)
    else:
        query = linear("q_proj", x).reshape(*x.shape[:-1], heads, 3)
        key, value = np.moveaxis(linear("kv_proj", x).reshape(*x.shape[:-1], 2, kv, 3), -3, 0)
    window = {n: v for n, v in arguments.items() if n in ("kernel_size", "stride", "dilation", "is_causal")}
    rpb = {"rpb": framework.tensor(weights["rpb"], "float32")} if "rpb" in weights else {}
    out = framework.face(f"na{rank}d")(
        *(framework.tensor(t, "float32") for t in (query, key, value)),
        **window,
        scale=arguments.get("qk_scale"),
        **rpb,
        backend="dense",
    )
    wanted = linear("proj", framework.numpy(out).reshape(x.shape))
    np.testing.assert_allclose(forward(framework, module, x), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize(("name", "rank", "arguments"), MODULES, ids=[m[0] for m in MODULES])
def test_dropout_changes_nothing_else(name: str, rank: int, arguments: dict[str, Any], framework: Framework) -> None:
    """In eval mode attn_drop has no effect. In training, dropping almost nothing gives almost the result of eval:
    scale, stride, causality, groups and rpb hold in the split ops that are then used. With half dropped, the mean of
    300 items is the result of eval.
    """
    plain, x = build(framework, rank, **arguments), example(rank, 1).repeat(300, axis=0)
    weights = random_weights(plain)
    load(plain, weights)
    wanted = forward(framework, plain, x)
    for drop, limit in ((1e-12, 1e-5), (0.5, 0.35)):
        dropping = build(framework, rank, **arguments, attn_drop=drop)
        load(dropping, weights)
        assert np.array_equal(forward(framework, dropping, x), wanted)
        dropping.train()
        torch.manual_seed(0)
        mx.random.seed(0)
        found = forward(framework, dropping, x)
        np.testing.assert_allclose(found.mean(0), wanted[0], rtol=0, atol=limit)
        assert np.allclose(found, wanted, atol=0.01) == (drop < 0.5)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_projection_dropout(framework: Framework) -> None:
    module = build(framework, 1, kernel_size=3, proj_drop=0.5)
    x = example(1)
    wanted = forward(framework, module, x)
    module.train()
    found = forward(framework, module, x)
    assert 0.3 < np.mean(found == 0) < 0.7
    np.testing.assert_allclose(found[found != 0], 2 * wanted[found != 0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize(("rank", "sizes"), [(1, [9, 5]), (2, [[6, 4], [3, 7]]), (3, [[4, 3, 3], [3, 3, 5]])])
def test_items_of_different_sizes(rank: int, sizes: list[Any], framework: Framework) -> None:
    """Each item of a padded batch equals a call on that item; padding gives the output projection's bias."""
    module = build(framework, rank, kernel_size=3, rel_pos_bias=True)
    load(module, random_weights(module))
    x = example(rank)
    found = forward(framework, module, x, **{"seq_lens" if rank == 1 else "spatial_sizes": sizes})
    bias = state(module)["proj.bias"]
    for item, size in enumerate(sizes):
        inside = tuple(slice(0, length) for length in np.atleast_1d(size))
        alone = forward(framework, module, x[item : item + 1][(slice(None), *inside)])
        np.testing.assert_allclose(found[item][inside], alone[0], rtol=0, atol=1e-5)
        padding = np.ones(SHAPES[rank], dtype=bool)
        padding[inside] = False
        np.testing.assert_allclose(found[item][padding], np.broadcast_to(bias, (padding.sum(), 12)), atol=1e-6)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_dropping_weights_of_padded_items_is_refused(framework: Framework) -> None:
    module = build(framework, 1, kernel_size=3, attn_drop=0.1)
    x = framework.tensor(example(1), "float32")
    module(x, [9, 5])
    module.train()
    with pytest.raises(NotImplementedError) as caught:
        module(x, [9, 5])
    assert str(caught.value) == (
        "NeighborhoodAttention1D: attn_drop in training cannot be combined with seq_lens; "
        "set attn_drop=0.0 or call the items one by one"
    )


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_rpb_starts_small(framework: Framework) -> None:
    """With a standard deviation of 0.02, as upstream."""
    rpb = state(build(framework, 2, kernel_size=13, rel_pos_bias=True))["rpb"]
    assert rpb.shape == (4, 25, 25) and 0.018 < rpb.std() < 0.022 and abs(rpb.mean()) < 0.002


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_repr_shows_the_arguments(framework: Framework) -> None:
    text = repr(build(framework, 2, kernel_size=3, dilation=(2, 1), num_kv_heads=2, is_causal=(True, False)))
    for part in ("num_kv_heads=2", "kernel_size=(3, 3)", "dilation=(2, 1)", "is_causal=(True, False)"):
        assert part in text
