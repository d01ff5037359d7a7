"""Gradients with large logits, and sums over many tokens: the errors are those of single roundings.

:mod:`rounding` derives how far a result may be from the truth.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import BY_NAME, DTYPES, INPUTS, Case, inputs, lse_dtype, make, rounded
from frameworks import FRAMEWORKS, PATHS, Path
from rounding import ROUNDING, Dense, Tensors, assert_explained

from natten_mps._metal.problem.mask import bias_offsets, neighborhood_mask

Array = Any
COMPILED = tuple(Path(framework, framework.compiled) for framework in FRAMEWORKS)
ONE_HEAD = {"heads": 2, "kv_heads": 2}
LARGE = (
    make("seq-large", (70,), 9, head_dim=32, head_dim_v=16, **ONE_HEAD),
    make("seq-large-bias", (41,), 7, d=2, head_dim=20, rpb=True, **ONE_HEAD),
    make("img-large-logits", (9, 8), (5, 4), s=(2, 1), additional=3, head_dim=24, **ONE_HEAD),
)


def attend(path: Path, case: Case, arrays: Tensors, dtype: str) -> Tensors:
    """Out, lse and all gradients by name; asserts that this backend ran, and no other."""
    framework, names = path.framework, [name for name in INPUTS if name in arrays]
    given = [framework.tensor(arrays[name], dtype) for name in names]
    cotangents = [framework.tensor(arrays["d_out"], dtype), framework.tensor(arrays["d_lse"], lse_dtype(dtype))]

    def call(*tensors: Any) -> Any:
        arguments = case.window | {"scale": case.scale, "return_lse": True, "backend": path.backend}
        return framework.face(case.face)(**dict(zip(names, tensors, strict=True)), **arguments)

    with framework.watch() as ran:
        (out, lse), gradients = framework.vjp(call, given, cotangents)
    assert ran == {path.backend}
    found = {"out": out, "lse": lse, **dict(zip(names, gradients, strict=True))}
    return {name: framework.numpy(tensor) for name, tensor in found.items()}


# --- large logits ------------------------------------------------------------------------------------


def dense(case: Case, arrays: Tensors, dtype: str, equal: bool = False) -> Dense:
    problem = case.problem()
    return Dense(arrays, neighborhood_mask(problem), bias_offsets(problem), case.factor, dtype, equal)


def large_inputs(case: Case, dtype: str, size: float) -> Tensors:
    """Inputs of the case whose largest logit is about ``size``."""
    arrays = inputs(case, dtype)
    factor = (size / 4) ** 0.5
    for name in ("query", "key", "additional_keys"):
        if name in arrays:
            arrays[name] = rounded(arrays[name] * factor, dtype)
    return arrays


@pytest.mark.parametrize("size", [1e2, 1e3, 1e4, 1e5])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", LARGE, ids=str)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_gradients_of_large_logits(path: Path, case: Case, dtype: str, size: float) -> None:
    arrays = large_inputs(case, dtype, size)
    found = attend(path, case, arrays, dtype)
    assert_explained(found, dense(case, arrays, dtype).fused(), dtype, f"{path} {case} {dtype} {size:g}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", COMPILED, ids=str)
def test_equal_keys_share_the_weight(path: Path, dtype: str) -> None:
    """Logits of about 1e5, all equal: a float32 lse is off by up to 0.004, but the weights are exact. A framework's
    matrix product may round equal rows differently, so this is asserted of the CPU kernel alone.
    """
    case = LARGE[0]
    arrays = large_inputs(case, dtype, 1e5)
    arrays["key"] = np.broadcast_to(arrays["key"][:, :1], arrays["key"].shape).copy()
    wanted = dense(case, arrays, dtype, equal=True).fused()
    assert abs(wanted["lse"][0]).max() > 1e4
    assert_explained(attend(path, case, arrays, dtype), wanted, dtype, f"{path} {dtype}")


# --- sums over many tokens ---------------------------------------------------------------------------

# The error that a sum may have, in roundings of the size of its terms: that of about 1,000 numbers added one by one
# (roundings go up as often as down, so the square root of their number), whatever the number of terms. Asserted of the
# CPU kernel alone: the frameworks' matrix products, which the other backends use, lose more.
SUM = 32
# Roundings in the weights themselves: of exp(), and of logits below 1.
WEIGHT = 8


def close(found: Tensors, wanted: dict[str, tuple[Array, Array]], u: float, where: str) -> None:
    """``wanted``: the truth and the size of its terms, by name."""
    for name, (truth, size) in wanted.items():
        worst = np.max(abs(found[name].reshape(truth.shape) - truth) / (u * size))
        assert worst <= SUM + WEIGHT, f"{where}: {name} is off by {worst:.3g} roundings of its terms"


def check_attention(path: Path, queries: int, keys: int, dtype: str) -> None:
    framework, random, dim = path.framework, np.random.default_rng(queries + keys), 8
    q, k = (rounded(random.normal(0, 0.2, (n, dim)), dtype) for n in (queries, keys))
    g, v = (rounded(random.uniform(0.5, 1.5, (n, dim)), dtype) for n in (queries, keys))
    given = [framework.tensor(a[None, :, None], dtype) for a in (q, k, v)]
    cotangents = [framework.tensor(a, dtype) for a in (g[None, :, None], np.zeros((1, queries, 1)))]
    call = framework.face("attention")
    with framework.watch() as ran:
        outputs, gradients = framework.vjp(
            lambda *t: call(*t, scale=1.0, return_lse=True, backend=path.backend), given, cotangents
        )
    assert ran == {path.backend}
    names = ("out", "lse", "query", "key", "value")
    found = {name: framework.numpy(t) for name, t in zip(names, [*outputs, *gradients], strict=True)}
    weights = np.exp(q @ k.T)
    total = weights.sum(1, keepdims=True)
    p = weights / total
    out = p @ v
    delta = (g * out).sum(1, keepdims=True)
    ds = p * (g @ v.T - delta)
    size = p * (g @ v.T + delta)
    wanted = {
        "out": (out, out),
        "lse": (np.log(total), 1 + np.log(total)),
        "query": (ds @ k, size @ abs(k)),
        "key": (ds.T @ q, size.T @ abs(q)),
        "value": (p.T @ g, p.T @ g),
    }
    close(found, wanted, ROUNDING[dtype], f"{path}: {queries} queries, {keys} keys")


MANY = [(65_536, 16), (16, 65_536)]
MOST = [(1_000_000, 8), (8, 1_000_000), (262_144, 32)]


@pytest.mark.parametrize(("queries", "keys"), MANY)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("path", COMPILED, ids=str)
def test_sums_over_many_tokens(path: Path, dtype: str, queries: int, keys: int) -> None:
    check_attention(path, queries, keys, dtype)


@pytest.mark.all
@pytest.mark.parametrize(("queries", "keys"), MOST)
@pytest.mark.parametrize("path", COMPILED, ids=str)
def test_sums_over_a_million_tokens(path: Path, queries: int, keys: int) -> None:
    check_attention(path, queries, keys, "float32")


def check_bias_and_additional(path: Path, tokens: int) -> None:
    """Sums over all queries: the gradients of rpb and of additional keys and values. The logits are rpb alone."""
    framework, random, width, dtype = path.framework, np.random.default_rng(tokens), 4, "float32"
    arrays = {
        "query": np.zeros((1, tokens, 1, width)),
        "key": random.normal(0, 1, (1, tokens, 1, width)),
        "value": random.uniform(0.5, 1.5, (1, tokens, 1, width)),
        "additional_keys": random.normal(0, 1, (1, 2, 1, width)),
        "additional_values": random.uniform(2.5, 3.5, (1, 2, 1, width)),
        "rpb": random.normal(0, 0.3, (1, 5)),
    }
    arrays = {name: rounded(a, dtype) for name, a in arrays.items()}
    g = rounded(random.uniform(0.5, 1.5, (tokens, width)), dtype)
    given = [framework.tensor(a, dtype) for a in arrays.values()]
    call = framework.face("na1d")
    with framework.watch() as ran:
        _, gradients = framework.vjp(
            lambda *t: (call(**dict(zip(arrays, t, strict=True)), kernel_size=3, backend=path.backend),),
            given,
            [framework.tensor(g[None, :, None], dtype)],
        )
    assert ran == {path.backend}
    found = dict(zip(arrays, map(framework.numpy, gradients), strict=True))
    start = np.clip(np.arange(tokens) - 1, 0, tokens - 3)
    keys = start[:, None] + np.arange(3)
    offsets = keys - np.arange(tokens)[:, None] + 2
    logits = np.concatenate([arrays["rpb"][0][offsets], np.zeros((tokens, 2))], 1)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    seen, additional = arrays["value"][0, :, 0][keys], arrays["additional_values"][0, :, 0]
    towards = np.concatenate([np.einsum("tc,tkc->tk", g, seen), g @ additional.T], 1)
    delta = (p * towards).sum(1, keepdims=True)
    ds, size = p * (towards - delta), p * (towards + delta)
    by_offset = np.zeros((2, 5))
    for row, part in enumerate((ds, size)):
        np.add.at(by_offset[row], offsets, part[:, :3])
    wanted = {
        "rpb": (by_offset[0], by_offset[1]),
        "additional_values": (p[:, 3:].T @ g, p[:, 3:].T @ g),
    }
    close(found, wanted, ROUNDING[dtype], f"{path}: {tokens} tokens")


@pytest.mark.parametrize("path", COMPILED, ids=str)
def test_gradients_that_sum_over_all_queries(path: Path) -> None:
    check_bias_and_additional(path, 50_000)


@pytest.mark.all
@pytest.mark.parametrize("path", COMPILED, ids=str)
def test_gradients_that_sum_over_a_million_queries(path: Path) -> None:
    check_bias_and_additional(path, 1_000_000)


# --- rows without any weight -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["seq-rpb", "seq-rpb-causal-dilated", "img-rpb", "vol-rpb"])
@pytest.mark.parametrize("path", COMPILED, ids=str)
def test_a_bias_of_minus_infinity(path: Path, name: str, dtype: str) -> None:
    """Every logit of one head is -inf: out 0, lse -inf, gradients 0; the other head is unaffected."""
    case = BY_NAME[name]
    arrays = inputs(case, dtype)
    clean = attend(path, case, arrays, dtype)
    arrays["rpb"] = arrays["rpb"].copy()
    arrays["rpb"][0] = -np.inf
    found = attend(path, case, arrays, dtype)
    for tensor, values in found.items():
        first, others = (values[0], values[1:]) if tensor == "rpb" else (values, None)
        if tensor == "lse":
            first, others = values[..., 0], values[..., 1:]
        elif tensor != "rpb":
            first, others = values[..., 0, :], values[..., 1:, :]
        assert np.all(first == (-np.inf if tensor == "lse" else 0.0)), tensor
        before = clean[tensor]
        kept = before[1:] if tensor == "rpb" else (before[..., 1:] if tensor == "lse" else before[..., 1:, :])
        assert np.array_equal(others, kept), tensor


@pytest.mark.parametrize("path", COMPILED, ids=str)
def test_one_row_without_weight(path: Path) -> None:
    """Causal: the first query sees only itself, and rpb is -inf at that offset. All others see more."""
    case = make("first", (40,), 5, causal=True, rpb=True, head_dim=8)
    arrays = inputs(case, "float32")
    arrays["rpb"] = arrays["rpb"].copy()
    arrays["rpb"][:, 4] = -np.inf
    found = attend(path, case, arrays, "float32")
    assert np.all(found["lse"][:, 0] == -np.inf) and np.all(found["out"][:, 0] == 0)
    assert np.isfinite(found["lse"][:, 1:]).all()
    assert np.all(found["query"][:, 0] == 0) and np.all(found["rpb"][:, 4] == 0)
    for name in ("out", "query", "key", "value", "rpb"):
        assert np.isfinite(found[name]).all() and found[name].any(), name
    # The gradient of the output of the row without weight reaches nothing.
    for name in ("d_out", "d_lse"):
        arrays[name] = arrays[name].copy()
        arrays[name][:, 0] = 0
    for name, values in attend(path, case, arrays, "float32").items():
        assert np.array_equal(values, found[name]), name


@pytest.mark.parametrize("path", COMPILED, ids=str)
def test_all_weight_is_on_additional_keys(path: Path) -> None:
    """The window's logits are all -inf: attention to the additional keys alone."""
    case = make("additional", (20,), 3, rpb=True, additional=4, head_dim=8)
    arrays = inputs(case, "float32")
    arrays["rpb"] = np.full_like(arrays["rpb"], -np.inf)
    found = attend(path, case, arrays, "float32")
    logits = np.einsum("bihd,bshd->bhis", arrays["query"], arrays["additional_keys"]) * case.factor
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    wanted = np.einsum("bhis,bshd->bihd", weights, arrays["additional_values"])
    assert np.allclose(found["out"], wanted, rtol=1e-5, atol=1e-6)
    assert all(np.all(found[name] == 0) for name in ("key", "value", "rpb"))
    assert np.isfinite(found["lse"]).all() and found["query"].any() and found["additional_keys"].any()
