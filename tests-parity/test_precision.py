"""Gradients where logits are large, and sums over many tokens: errors are those of single roundings.

The bounds are derived, element by element, from the rounding u of the dtype that a path accumulates in. A logit that is
off by e moves a weight P by at most P (1 - P) (exp(2 e) - 1): one key that has all the weight keeps it, whatever its
logit. Whoever computes weights again in the backward by other products, or from a rounded lse, would move P itself by
e: no path does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import BY_NAME, DTYPES, INPUTS, Case, inputs, lse_dtype, make, rounded
from frameworks import FRAMEWORKS, PATHS, Path

from natten_mps._metal.mask import bias_offsets, neighborhood_mask

Array = Any
Tensors = dict[str, Array]
ROUNDING = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
SMALLEST = {"float64": 2.0**-1022, "float32": 2.0**-126}
COMPILED = tuple(Path(framework, framework.compiled) for framework in FRAMEWORKS)
ONE_HEAD = {"heads": 2, "kv_heads": 2}
LARGE = (
    make("seq-large", (70,), 9, head_dim=32, head_dim_v=16, **ONE_HEAD),
    make("seq-large-bias", (41,), 7, d=2, head_dim=20, rpb=True, **ONE_HEAD),
    make("img-large-logits", (9, 8), (5, 4), s=(2, 1), additional=3, head_dim=24, **ONE_HEAD),
)


def attend(path: Path, case: Case, arrays: Tensors, dtype: str) -> Tensors:
    """Out, lse and every gradient by name; the path ran, and no other."""
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


class Dense:
    """One problem in float64 on dense matrices ``[B, H, queries, keys]``, with the errors that rounding may make.

    equal: all keys are equal, so that their logits are off by the same and weights are not off at all.
    """

    def __init__(self, case: Case, arrays: Tensors, dtype: str, equal: bool = False) -> None:
        self.case, self.arrays = case, arrays
        self.u, self.last = ROUNDING[lse_dtype(dtype)], ROUNDING[dtype]
        problem = case.problem()
        mask = neighborhood_mask(problem)
        q, k, v, g = (self.flat(arrays[name]) for name in ("query", "key", "value", "d_out"))
        if case.additional:
            k = np.concatenate([k, self.flat(arrays["additional_keys"])], 2)
            v = np.concatenate([v, self.flat(arrays["additional_values"])], 2)
            mask = np.concatenate([mask, np.ones((len(mask), case.additional), dtype=bool)], 1)
        self.q, self.k, self.v, self.g = q, k, v, g
        logits, size = case.factor * q @ k.mT, case.factor * abs(q) @ abs(k).mT
        if case.rpb:
            table = arrays["rpb"].reshape(case.heads, -1)[:, bias_offsets(problem)]
            logits[..., : problem.keys] += table
            size[..., : problem.keys] += abs(table)
        logits[..., ~mask] = -np.inf
        top = logits.max(-1, keepdims=True)
        weights = np.exp(logits - top)
        total = weights.sum(-1, keepdims=True)
        self.lse = (top + np.log(total))[..., 0]
        self.p = weights / total
        self.terms = mask.sum(-1).max()
        # A dot product of D terms is off by D + 2 roundings of its terms' size; the row's largest counts for all.
        off = (case.head_dim + 4) * self.u * np.where(mask, size, 0).max(-1, keepdims=True)
        moved = self.p * (1 - self.p) * np.expm1(np.minimum(2 * off, 600)) * (not equal)
        # A weight that is too small for the dtype is 0.
        self.dp = moved + (self.terms + 8) * self.u * self.p + SMALLEST[lse_dtype(dtype)]
        self.lse_error = off[..., 0] + 4 * self.u * abs(self.lse) + (self.terms + 8) * self.u
        self.differentiate(case)

    def flat(self, tensor: Array) -> Array:
        """``[B, *shape, H, D]`` -> ``[B, H, tokens, D]``."""
        moved = tensor.reshape(tensor.shape[0], -1, *tensor.shape[-2:])
        return moved.transpose(0, 2, 1, 3)

    def differentiate(self, case: Case) -> None:
        p, g, v = self.p, self.g, self.v
        self.out = p @ v
        self.out_error = self.dp @ abs(v) + self.terms * self.u * p @ abs(v)
        towards = g @ v.mT
        delta = (g * self.out).sum(-1, keepdims=True) - self.flat(self.arrays["d_lse"][..., None])
        size = abs(g) @ abs(v).mT
        # delta is made from the output as it was rounded.
        delta_error = (abs(g) * (self.out_error + self.last * abs(self.out))).sum(-1, keepdims=True)
        error = (case.head_dim_v + 4) * self.u * (size + (abs(g) * abs(self.out)).sum(-1, keepdims=True) + abs(delta))
        self.ds = p * (towards - delta)
        self.ds_error = self.dp * abs(towards - delta) + (p + self.dp) * (error + delta_error)

    def product(self, left: Array, left_error: Array, right: Array, factor: float) -> tuple[Array, Array]:
        """A sum over queries or keys, and its error before the last rounding."""
        terms = left.shape[-1] * self.u
        return factor * left @ right, factor * (left_error + terms * abs(left)) @ abs(right)

    def wanted(self) -> dict[str, tuple[Array, Array]]:
        """Truth and error of every tensor by name, as the op gives them."""
        keys, factor = self.case.problem().keys, self.case.factor
        d_k, d_v = (
            self.product(self.ds.mT, self.ds_error.mT, self.q, factor),
            self.product(self.p.mT, self.dp.mT, self.g, 1),
        )
        found = {
            "out": (self.out, self.out_error),
            "lse": (self.lse[..., None], self.lse_error[..., None]),
            "query": self.product(self.ds, self.ds_error, self.k, factor),
            "key": tuple(part[:, :, :keys] for part in d_k),
            "value": tuple(part[:, :, :keys] for part in d_v),
        }
        if self.case.additional:
            found["additional_keys"] = tuple(part[:, :, keys:] for part in d_k)
            found["additional_values"] = tuple(part[:, :, keys:] for part in d_v)
        shaped = {
            name: tuple(part.transpose(0, 2, 1, 3).reshape(self.shape_of(name)) for part in pair)
            for name, pair in found.items()
        }
        if self.case.rpb:
            mask, offsets = neighborhood_mask(self.case.problem()), bias_offsets(self.case.problem())
            shaped["rpb"] = tuple(self.table(part[..., :keys], mask, offsets) for part in (self.ds, self.ds_error))
            shaped["rpb"][1][:] += len(mask) * self.u * self.table(abs(self.ds[..., :keys]), mask, offsets)
        return shaped

    def table(self, part: Array, mask: Array, offsets: Array) -> Array:
        found = np.zeros((self.case.heads, int(offsets.max()) + 1))
        for head in range(self.case.heads):
            np.add.at(found[head], offsets[mask], part.sum(0)[head][mask])
        return found.reshape(self.arrays["rpb"].shape)

    def shape_of(self, name: str) -> tuple[int, ...]:
        like = self.arrays[{"out": "d_out", "lse": "d_lse"}.get(name, name)]
        return tuple(like.shape)

    def check(self, found: Tensors, dtype: str, where: str) -> None:
        wanted = self.wanted()
        assert found.keys() == wanted.keys()
        for name, (truth, error) in wanted.items():
            last = ROUNDING[lse_dtype(dtype) if name == "lse" else dtype]
            smallest = 2.0**-24 if dtype == "float16" else 0.0  # float16 ends there
            # Twice: the truth of float64 is itself computed in float64.
            allowed = 2 * (error + last * (abs(truth) + error)) + smallest
            worst = np.max(abs(found[name] - truth) / np.maximum(allowed, 1e-300))
            assert worst <= 1, f"{where}: {name} is off by {worst:.3g} times what rounding explains"


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
    dense = Dense(case, arrays, dtype)
    dense.check(attend(path, case, arrays, dtype), dtype, f"{path} {case} {dtype} {size:g}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", COMPILED, ids=str)
def test_equal_keys_share_the_weight(path: Path, dtype: str) -> None:
    """Logits of about 1e5, all equal: a float32 lse is off by up to 0.004, the weights by nothing. Matrix products of a
    framework may round equal rows differently, so this is said of the CPU kernel alone.
    """
    case = LARGE[0]
    arrays = large_inputs(case, dtype, 1e5)
    arrays["key"] = np.broadcast_to(arrays["key"][:, :1], arrays["key"].shape).copy()
    dense = Dense(case, arrays, dtype, equal=True)
    assert abs(dense.lse).max() > 1e4
    dense.check(attend(path, case, arrays, dtype), dtype, f"{path} {dtype}")


# --- sums over many tokens ---------------------------------------------------------------------------

# What a sum may lose, in roundings of the size of its terms: as much as some 1,000 numbers that are added one after the
# other (roundings are as often up as down: the root of their number), and the same for any number of terms. This is
# said of the CPU kernel: frameworks' matrix products, of which the other paths are made, lose more.
SUM = 32
# exp() and logits of less than 1.
WEIGHT = 8


def close(found: Tensors, wanted: dict[str, tuple[Array, Array]], u: float, where: str) -> None:
    """wanted: truth and the size of the terms, by name."""
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
    """Sums over all queries: the gradients of a bias and of additional keys and values. Logits are the bias alone."""
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
    seen, extra = arrays["value"][0, :, 0][keys], arrays["additional_values"][0, :, 0]
    towards = np.concatenate([np.einsum("tc,tkc->tk", g, seen), g @ extra.T], 1)
    delta = (p * towards).sum(1, keepdims=True)
    ds, size = p * (towards - delta), p * (towards + delta)
    table = np.zeros((2, 5))
    for row, part in enumerate((ds, size)):
        np.add.at(table[row], offsets, part[:, :3])
    wanted = {
        "rpb": (table[0], table[1]),
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
    """Every logit of a head is -inf: out 0, lse -inf, gradients 0, and the other head as if it were alone."""
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
    """Causal: the first query sees itself alone, and the bias of that offset is -inf. All others see more."""
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
    # What flows into the dead row reaches nobody.
    for name in ("d_out", "d_lse"):
        arrays[name] = arrays[name].copy()
        arrays[name][:, 0] = 0
    for name, values in attend(path, case, arrays, "float32").items():
        assert np.array_equal(values, found[name]), name


@pytest.mark.parametrize("path", COMPILED, ids=str)
def test_additional_keys_give_weight(path: Path) -> None:
    """The window is -inf throughout: attention to the additional keys alone."""
    case = make("extra", (20,), 3, rpb=True, additional=4, head_dim=8)
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
