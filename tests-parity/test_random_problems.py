"""Random problems against a brute-force reference that shares nothing with the packages: query by query, from the text.

Everything is float64, so the bound needs no baseline: a logit of size L is known to L ulps, and a weight no better.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest
from frameworks import PATHS, Path

Array = Any
EPS = float(np.finfo(np.float64).eps)
# Ulps of the largest logit that a result may be off, relative to the largest number of its kind.
ULPS = 64


def keys_of_axis(query: int, length: int, w: int, s: int, d: int, causal: bool) -> list[int]:
    """The keys that a query sees on one axis."""
    group, p = query % d, query // d
    members = range(group, length, d)
    n = len(members)
    if causal:
        leader = min(p // s * s + s - 1, n - 1)
        seen = range(max(leader - w + 1, 0), p + 1)
    else:
        leader = min(p // s * s + s // 2, n - 1)
        first = min(max(leader - w // 2, 0), n - w)
        seen = range(first, first + w)
    return [members[t] for t in seen]


@cache
def problem(number: int) -> tuple[dict[str, Any], dict[str, Array], float]:
    """Window arguments, tensors by name (cotangents too), and the scale."""
    random = np.random.default_rng([11, number])

    def draw(least: int, most: int) -> int:
        return int(random.integers(least, most + 1))

    rank = draw(1, 3)
    shape = tuple(draw(1, {1: 30, 2: 7, 3: 4}[rank]) for _ in range(rank))
    dilation = tuple(draw(1, min(length, 3)) for length in shape)
    window = tuple(draw(1, length // d) for length, d in zip(shape, dilation, strict=True))
    biased = draw(0, 2) == 0
    stride = tuple(1 if biased else draw(1, w) for w in window)
    causal = tuple(draw(0, 2) == 0 for _ in shape)
    kv, dim, dim_v, batch = draw(1, 2), draw(1, 9), draw(1, 9), draw(1, 2)
    heads = kv * draw(1, 2)
    shapes = {"query": (*shape, heads, dim), "key": (*shape, kv, dim), "value": (*shape, kv, dim_v)}
    if draw(0, 2) == 0:
        extra = draw(1, 5)
        shapes |= {"additional_keys": (extra, kv, dim), "additional_values": (extra, kv, dim_v)}
    shapes |= {"d_out": (*shape, heads, dim_v), "d_lse": (*shape, heads)}
    arrays = {name: random.standard_normal((batch, *sizes)) for name, sizes in shapes.items()}
    if biased:
        arrays["rpb"] = random.standard_normal((heads, *(2 * w - 1 for w in window)))
    arrays["query"] *= 10 ** random.uniform(0, 5)
    arguments = {"kernel_size": window, "stride": stride, "dilation": dilation, "is_causal": causal}
    return arguments, arrays, dim**-0.5


@cache
def truth(number: int) -> tuple[dict[str, Array], float]:
    """Results and gradients by name, and the largest logit."""
    arguments, arrays, scale = problem(number)
    w, s, d, causal = arguments.values()
    shape, heads = arrays["query"].shape[1:-2], arrays["query"].shape[-2]
    group = heads // arrays["key"].shape[-2]
    found = {name: np.zeros_like(a) for name, a in arrays.items() if not name.startswith("d_")}
    found |= {"out": np.zeros_like(arrays["d_out"]), "lse": np.zeros_like(arrays["d_lse"])}
    top, extra = 0.0, arrays.get("additional_keys")
    for batch, token in itertools.product(range(len(arrays["query"])), np.ndindex(*shape)):
        axes = [keys_of_axis(*each) for each in zip(token, shape, w, s, d, causal, strict=True)]
        seen = list(itertools.product(*axes))
        at = (batch, *np.array(seen).T)
        for head in range(heads):
            kv = head // group
            query, d_out = arrays["query"][batch][token][head], arrays["d_out"][batch][token][head]
            keys, values = arrays["key"][at][:, kv], arrays["value"][at][:, kv]
            if extra is not None:
                keys = np.concatenate([keys, extra[batch, :, kv]])
                values = np.concatenate([values, arrays["additional_values"][batch, :, kv]])
            logits = scale * keys @ query
            if "rpb" in arrays:
                offsets = (np.array(seen) - token) // np.array(d) + np.array(w) - 1
                logits[: len(seen)] += arrays["rpb"][(head, *offsets.T)]
            top = max(top, float(np.abs(logits).max()))
            weights = np.exp(logits - logits.max())
            lse = logits.max() + np.log(weights.sum())
            weights /= weights.sum()
            out = weights @ values
            flow = weights * (values @ d_out - d_out @ out + arrays["d_lse"][batch][token][head])
            found["out"][batch][token][head], found["lse"][batch][token][head] = out, lse
            found["query"][batch][token][head] = scale * flow @ keys
            d_keys, d_values = scale * np.outer(flow, query), np.outer(weights, d_out)
            found["key"][(*at, kv)] += d_keys[: len(seen)]
            found["value"][(*at, kv)] += d_values[: len(seen)]
            if extra is not None:
                found["additional_keys"][batch, :, kv] += d_keys[len(seen) :]
                found["additional_values"][batch, :, kv] += d_values[len(seen) :]
            if "rpb" in arrays:
                found["rpb"][(head, *offsets.T)] += flow[: len(seen)]
    return found, top


def assert_true(path: Path, number: int) -> None:
    arguments, arrays, _ = problem(number)
    wanted, top = truth(number)
    framework = path.framework
    names = [name for name in arrays if not name.startswith("d_")]
    rank = len(arguments["kernel_size"])

    def call(*given: Any) -> Any:
        by_name = dict(zip(names, given, strict=True))
        return framework.face(f"na{rank}d")(**by_name, **arguments, return_lse=True, backend=path.backend)

    with framework.watch() as ran:
        results, gradients = framework.vjp(
            call,
            [framework.tensor(arrays[n]) for n in names],
            [framework.tensor(arrays[n]) for n in ("d_out", "d_lse")],
        )
    assert ran == {path.backend}
    found = dict(zip(["out", "lse", *names], [*results, *gradients], strict=True))
    # What cancels in a gradient has the size of its terms: cotangents of about 1 times a key or a query.
    sizes = {name: float(np.abs(a).max()) for name, a in wanted.items()}
    terms = {"query": 1.0, "key": float(np.abs(arrays["query"]).max())}
    terms |= {"additional_keys": terms["key"]}
    for name, tensor in found.items():
        size = max(sizes[name], 10 * terms.get(name, 1.0))
        apart = float(np.abs(framework.numpy(tensor) - wanted[name]).max())
        assert apart <= ULPS * EPS * (8 + top) * size, (number, name, apart, top, arguments)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_some_random_problems(path: Path) -> None:
    for number in range(30):
        assert_true(path, number)


@pytest.mark.all
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_many_random_problems(path: Path) -> None:
    for number in range(30, 2030):
        assert_true(path, number)
