"""Modules of NATTEN's generations: constructors by position, checkpoints with rpb, padding, late dilation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from frameworks import FRAMEWORKS, Framework
from module_weights import forward, load, random_weights, state

Array = Any
PLAIN = {"qkv.weight": (24, 8), "qkv.bias": (24,), "proj.weight": (8, 8), "proj.bias": (8,)}


def make(framework: Framework, generation: str, rank: int, *args: Any, **kwargs: Any) -> Any:
    made = getattr(framework.module(f"compat.{generation}"), f"NeighborhoodAttention{rank}D")(*args, **kwargs)
    made.eval()
    return made


def example(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal((2, *shape, 8)).astype(np.float32)


def rpb_shape(rank: int, w: int) -> dict[str, tuple[int, ...]]:
    return {"rpb": (2, *[2 * w - 1] * rank)}


# generation, rank, positional arguments in upstream's order, keywords, today's arguments, whether it has rpb
CONSTRUCTORS = (
    ("v0141", 1, (8, 5, 2), {"dilation": 2}, {"kernel_size": 5, "dilation": 2}, True),
    (
        "v0141",
        2,
        (8, 3, 2, False, 0.3, 0.1, 0.2, 1),
        {},
        {"kernel_size": 3, "qkv_bias": False, "qk_scale": 0.3, "attn_drop": 0.1, "proj_drop": 0.2},
        True,
    ),
    ("v0145", 1, (8, 2, 5, 2), {}, {"kernel_size": 5, "dilation": 2}, True),
    ("v014", 2, (8, 2, 3, 2, False), {"attn_drop": 0.1}, {"kernel_size": 3, "dilation": 2}, False),
    ("v014", 2, (8, 2, 3), {}, {"kernel_size": 3}, True),
    ("v015", 3, (8, 2, 3, 5, 1, 1, True, True, 0.3), {}, {"kernel_size": (5, 3, 3), "qk_scale": 0.3}, True),
    ("v015", 3, (8, 2, 3), {"dilation_d": 2, "bias": False}, {"kernel_size": 3, "dilation": (2, 1, 1)}, False),
    (
        "v017",
        2,
        (8, 2, (3, 5), (2, 1), (True, False)),
        {},
        {"kernel_size": (3, 5), "dilation": (2, 1), "is_causal": (True, False)},
        False,
    ),
    ("v017", 1, (8, 2, 5, 1, False, True), {"use_experimental_ops": True}, {"kernel_size": 5}, True),
    (
        "v020",
        2,
        (8, 2, 4, 2, 1, True, False, 0.3, 0.1),
        {},
        {"kernel_size": 4, "stride": 2, "is_causal": True, "qkv_bias": False, "qk_scale": 0.3},
        False,
    ),
    ("v021", 3, (8, 2, 3, 2), {}, {"kernel_size": 3, "stride": 2}, False),
)
INPUTS = {1: (11,), 2: (7, 8), 3: (6, 5, 4)}


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize(("generation", "rank", "args", "kwargs", "today", "has_rpb"), CONSTRUCTORS)
def test_constructors_and_checkpoints(
    generation: str,
    rank: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    today: dict[str, Any],
    has_rpb: bool,
    framework: Framework,
) -> None:
    """A generation's module loads its checkpoint, rpb included, and agrees with today's module."""
    old = make(framework, generation, rank, *args, **kwargs)
    face = framework.face(f"NeighborhoodAttention{rank}D")
    assert isinstance(old, face) and type(old).__name__ == face.__name__
    new = face(embed_dim=8, num_heads=2, **today, rel_pos_bias=has_rpb)
    new.eval()
    weights, x = random_weights(new), example(*INPUTS[rank])
    load(old, weights)
    load(new, weights)
    found = forward(framework, old, x)
    assert np.array_equal(found, forward(framework, new, x))
    assert ("rpb" in weights) == has_rpb
    if has_rpb:
        # rpb has an effect.
        load(old, weights | {"rpb": weights["rpb"] * 3})
        assert np.abs(forward(framework, old, x) - found).max() > 1e-3


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_state_dict_of_each_generation(framework: Framework) -> None:
    def shapes(generation: str, rank: int, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {name: array.shape for name, array in state(make(framework, generation, rank, *args, **kwargs)).items()}

    assert shapes("v0141", 2, 8, 3, 2) == PLAIN | rpb_shape(2, 3)
    assert shapes("v014", 1, 8, 2, 3) == shapes("v015", 1, 8, 2, 3) == PLAIN | rpb_shape(1, 3)
    assert shapes("v014", 1, 8, 2, 3, bias=False) == PLAIN
    assert shapes("v015", 3, 8, 2, 3, 5) == PLAIN | {"rpb": (2, 9, 5, 5)}
    assert shapes("v017", 3, 8, 2, 3) == shapes("v020", 3, 8, 2, 3) == shapes("v021", 3, 8, 2, 3) == PLAIN
    assert shapes("v017", 2, 8, 2, 3, rel_pos_bias=True) == PLAIN | rpb_shape(2, 3)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize(
    ("generation", "rank", "args", "shape", "padded"),
    [
        ("v0141", 1, (8, 5, 2), (3,), (5,)),
        ("v0141", 2, (8, 3, 2, True, None, 0.0, 0.0, 2), (4, 7), (6, 7)),
        ("v014", 2, (8, 2, 3, 3), (10, 5), (10, 9)),
        ("v015", 2, (8, 2, 7), (3, 4), (7, 7)),
        ("v015", 3, (8, 2, 3), (2, 5, 2), (3, 5, 3)),
    ],
)
def test_short_inputs_are_padded(
    generation: str,
    rank: int,
    args: tuple[Any, ...],
    shape: tuple[int, ...],
    padded: tuple[int, ...],
    framework: Framework,
) -> None:
    """Zeros are appended to each short axis; their keys and values are the projections' biases."""
    module = make(framework, generation, rank, *args)
    load(module, random_weights(module))
    x = example(*shape)
    whole = np.pad(x, [(0, 0), *((0, p - n) for n, p in zip(shape, padded, strict=True)), (0, 0)])
    found, wanted = forward(framework, module, x), forward(framework, module, whole)
    assert found.shape == x.shape
    assert np.array_equal(found, wanted[(slice(None), *(slice(n) for n in shape))])


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("generation", ["v017", "v020", "v021"])
def test_short_inputs_are_refused_since_0_17(generation: str, framework: Framework) -> None:
    module = make(framework, generation, 2, 8, 2, 5)
    with pytest.raises(ValueError, match=r"axis 0 has 5 \* 1 = 5 > 4"):
        forward(framework, module, example(4, 6))


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_late_dilation(framework: Framework) -> None:
    """Up to 0.14.4, a module without dilation uses the largest that the input's shortest axis allows, call by call."""
    late = make(framework, "v0141", 2, 8, 3, 2)
    weights = random_weights(late)
    load(late, weights)
    for shape, dilation in (((7, 9), 2), ((4, 9), 1), ((12, 10), 3), ((7, 9), 2)):
        fixed = make(framework, "v0141", 2, 8, 3, 2, dilation=dilation)
        load(fixed, weights)
        x = example(*shape)
        assert np.array_equal(forward(framework, late, x), forward(framework, fixed, x))


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_late_dilation_in_training_with_dropout(framework: Framework) -> None:
    """The split ops that dropout uses have the same dilation: dropping almost nothing changes almost nothing."""
    late = make(framework, "v0141", 1, 8, 3, 2, attn_drop=1e-9)
    load(late, random_weights(late))
    x = example(13)
    wanted = forward(framework, late, x)
    late.train()
    np.testing.assert_allclose(forward(framework, late, x), wanted, rtol=0, atol=1e-5)


def test_torch_modules_compile_and_pickle() -> None:
    """Classes can be found in the modules that they name, and a call in a generation's form is traced as a whole."""
    import pickle

    import torch

    from natten_mps.compat import v014, v017

    for module in (v014.NeighborhoodAttention2D(8, 2, 3), v017.NeighborhoodAttention2D(8, 2, 3, rel_pos_bias=True)):
        module.eval()
        x = torch.tensor(example(6, 7))
        wanted = module(x)
        again = pickle.loads(pickle.dumps(module))
        assert type(again) is type(module) and torch.equal(again(x), wanted)
    query = torch.randn(1, 2, 9, 4)

    def op(q: torch.Tensor) -> torch.Tensor:
        return v014.natten1dav(v014.natten1dqk(q, q, 3, 1), q, 3, 1)

    compiled = torch.compile(op, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(query), op(query), rtol=0, atol=1e-6)
