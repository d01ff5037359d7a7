"""``flops``: what a call is worth, against a count of all pairs one by one."""

from __future__ import annotations

from typing import Any

import brute_force
import numpy as np
import pytest
from frameworks import FRAMEWORKS, Framework

PROBLEMS = 80


def pairs_of(given: brute_force.Random) -> tuple[int, int]:
    """Pairs of a query and a key that it sees, of one head and item; and queries. Listed one by one."""
    like = given.arrays["query" if "query" in given.arrays else "d_out"]
    if given.cut is None:
        mask = given.window.tables(like.shape[1:-2])[0]
    else:
        mask = given.cut.of_tables(*given.window.tables(given.cut.full_shape))[0]
    return int(mask.sum()), len(mask)


def wanted(given: brute_force.Random, backward: bool) -> int:
    arrays = given.arrays
    pairs, queries = pairs_of(given)
    if "additional_keys" in arrays:
        pairs += queries * arrays["additional_keys"].shape[1]
    d = arrays["query"].shape[-1] if "query" in arrays else 0
    d_v = arrays["value"].shape[-1] if "value" in arrays else 0
    batch, *_, heads, _ = arrays["query" if "query" in arrays else "attn"].shape
    # Logits and outputs; gradients of query, key and logits again, and of value and weights.
    products = {
        ("na", False): d + d_v,
        ("na", True): 3 * d + 2 * d_v,
        ("qk", False): d,
        ("qk", True): 2 * d,
        ("av", False): d_v,
        ("av", True): 2 * d_v,
    }
    return 2 * batch * heads * pairs * products[given.op, backward]


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("op", ["na", "qk", "av"])
@pytest.mark.parametrize("kind", ["whole", "piece", "wrap"])
def test_random_problems(framework: Framework, op: str, kind: str) -> None:
    make = {"whole": brute_force.problem, "piece": brute_force.piece, "wrap": brute_force.problem}[kind]
    seen = set()
    for number in range(PROBLEMS):
        given = make(op, "float32", number, **({"wraps": True} if kind == "wrap" else {}))
        face = f"na{given.rank}d" + ("" if op == "na" else f"_{op}")
        shapes = {name: array.shape for name, array in given.arrays.items() if not name.startswith("d_")}
        arguments: dict[str, Any] = given.window.arguments | ({} if given.cut is None else given.cut.arguments)
        first = [shapes.pop(name) for name in ("query", "attn", "key", "value") if name in shapes]
        for backward in (False, True):
            found = framework.face("flops")(face, *first, backward=backward, **shapes, **arguments)
            assert found == wanted(given, backward), given
        seen.add((given.rank, any(given.window.is_causal), max(given.window.stride) > 1))
    assert {rank for rank, *_ in seen} == {1, 2, 3}
    assert kind == "wrap" or {causal for _, causal, _ in seen} == {True, False}
    assert {strided for *_, strided in seen} == {True, False}


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_tensors_and_shapes_count_alike(framework: Framework) -> None:
    flops = framework.face("flops")
    query, key, value = ((2, 6, 7, 4, 8), (2, 6, 7, 2, 8), (2, 6, 7, 2, 5))
    rpb, mask = (4, 5, 5), (2, 6, 7)
    product = 2 * 2 * 6 * 7 * 4 * 9
    assert flops("na2d", query, key, value, kernel_size=3, rpb=rpb, key_mask=mask) == product * (8 + 5)
    tensors = [framework.tensor(np.zeros(shape), "float16") for shape in (query, key, value)]
    assert flops("na2d", *tensors, kernel_size=3, rpb=rpb, backend="pure", return_lse=True) == product * (8 + 5)
    assert flops("na2d", tensors[0], key, value, kernel_size=3) == product * (8 + 5)
    # Queries on a finer grid, and all keys of which causal queries see half.
    assert flops("na2d", (2, 12, 14, 4, 8), key, value, kernel_size=3) == 4 * product * (8 + 5)
    assert flops("attention", (1, 8, 2, 4), (1, 5, 1, 4), (1, 5, 1, 4)) == 2 * 2 * (8 * 5) * 8
    assert flops("attention", (1, 8, 2, 4), (1, 5, 1, 4), (1, 5, 1, 4), is_causal=True) == 2 * 2 * (15 + 15) * 8


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_modules(framework: Framework, kv_heads: int) -> None:
    layer = framework.face("NeighborhoodAttention2D")(
        32, 4, (3, 5), is_causal=(True, False), num_kv_heads=kv_heads, rel_pos_bias=True
    )
    shape = (2, 6, 7, 32)
    query, key = ((2, 6, 7, heads, 8) for heads in (4, kv_heads))
    flops = framework.face("flops")
    for backward in (False, True):
        attention = flops("na2d", query, key, key, kernel_size=(3, 5), is_causal=(True, False), backward=backward)
        projections = 2 * 84 * 32 * (32 + 2 * 8 * kv_heads + 32) * (1 + backward)
        assert flops(layer, shape, backward=backward) == attention + projections
    assert flops(layer, framework.tensor(np.zeros(shape), "float32")) == flops(layer, shape)
    with pytest.raises(TypeError, match="flops: of a module only its input is needed"):
        flops(layer, shape, kernel_size=3)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_errors(framework: Framework) -> None:
    flops, shape = framework.face("flops"), (1, 6, 7, 2, 4)
    with pytest.raises(ValueError, match=r"flops: unknown op 'na4d'; it counts neighborhood_attention, .*na3d_av"):
        flops("na4d", shape, shape, shape, kernel_size=3)
    with pytest.raises(TypeError, match="flops: na2d needs kernel_size"):
        flops("na2d", shape, shape, shape)
    with pytest.raises(TypeError, match="flops: na2d has no argument 'kernel'"):
        flops("na2d", shape, shape, shape, kernel=3, kernel_size=3)
    with pytest.raises(TypeError, match="flops: na2d needs query, key and value"):
        flops("na2d", shape, shape, kernel_size=3)
    with pytest.raises(TypeError, match="flops: query"):
        flops("na2d", ("a", 2), shape, shape, kernel_size=3)
    with pytest.raises(ValueError, match=r"na2d: kernel_size \* dilation"):
        flops("na2d", shape, shape, shape, kernel_size=7)
