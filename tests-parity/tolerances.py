"""How much a result may differ from the truth.

The truth is :mod:`natten_metal.problem.reference` in float64. The baseline is straightforward code for the same
problem: inputs rounded to the dtype, one dense masked softmax in float32, one final rounding. With error = max|x - ref|
/ max|ref| per output tensor, the bound is

    2 (results) or 3 (gradients) * error of the baseline  +  4 ulp of the tensor's dtype at max|ref|

Two packages may differ from each other by as much as either may differ from the truth. The largest error of one small
problem varies by chance, so the baseline's error is the largest over :data:`DRAWS` draws of the same problem. float64
has no wider type to be measured against: there a result may be off by :data:`EXACT_ULP` ulp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from cases import Case, inputs, lse_dtype, rounded, slot_inputs

from natten_mps._metal.problem import reference
from natten_mps._metal.problem.mask import bias_offsets, neighborhood_mask, slot_keys
from natten_mps._metal.problem.problem import Problem

Array = Any
FLOOR_ULP = 4
DRAWS = 4
EXACT_ULP = 64


def ulp(value: float, dtype: str) -> float:
    """The distance from ``value`` to the next number of ``dtype``."""
    if dtype != "bfloat16":
        return float(np.spacing(np.asarray(abs(value), dtype=dtype)))
    # 8 bits of mantissa, against 24 in float32.
    return float(np.spacing(np.float32(abs(value)))) * 2**16


@dataclass(frozen=True)
class Expected:
    """The truth of one output tensor, and how much a result may differ from it.

    error: the baseline's, relative to max|truth|. factor: 2 for results, 3 for gradients.
    """

    truth: Array
    error: float
    dtype: str
    factor: int

    @property
    def top(self) -> float:
        """max|truth|, ignoring infinities."""
        return largest(self.truth)

    @property
    def floor(self) -> float:
        return (EXACT_ULP if self.dtype == "float64" else FLOOR_ULP) * ulp(self.top, self.dtype)

    @property
    def own(self) -> float:
        """How much the baseline deviates for a tensor of this size."""
        return self.error * self.top

    @property
    def bound(self) -> float:
        return self.factor * self.own + self.floor


def largest(array: Array) -> float:
    """max|array|, ignoring infinities; 0 if empty."""
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))


def deviation(found: Array, wanted: Array) -> float:
    """max|found - wanted|; infinite if either has a NaN or an infinity that the other has not."""
    assert found.shape == wanted.shape, f"shape {found.shape}, not {wanted.shape}"
    with np.errstate(invalid="ignore"):
        apart = np.where(found == wanted, 0.0, np.abs(found - wanted))
    return float(np.nan_to_num(apart, nan=np.inf, posinf=np.inf).max(initial=0.0))


def assert_within(found: dict[str, Array], expected: dict[str, Expected], where: str) -> None:
    """Assert that all expected tensors were found, and that none differs from the truth by more than its bound."""
    assert found.keys() == expected.keys(), f"{where}: {sorted(found)}, not {sorted(expected)}"
    for name, wanted in expected.items():
        apart = deviation(found[name], wanted.truth)
        assert apart <= wanted.bound, f"{where}: {name} is off by {apart:.3g}, bound {wanted.bound:.3g}"


def assert_agree(a: dict[str, Array], b: dict[str, Array], expected: dict[str, Expected], where: str) -> None:
    """Assert that the results of two packages differ by no more than either may differ from the truth."""
    assert a.keys() == b.keys() == expected.keys(), where
    for name, wanted in expected.items():
        apart = deviation(a[name], b[name])
        assert apart <= wanted.bound, f"{where}: {name} differs by {apart:.3g}, bound {wanted.bound:.3g}"


# --- the baseline --------------------------------------------------------------------------------


def _compute(dtype: str) -> Any:
    return np.float64 if dtype == "float64" else np.float32


def _flat(tensor: Array, compute: Any, groups: int = 1) -> Array:
    """``[B, tokens.., H, D]`` -> ``[B, H * groups, tokens, D]`` in the compute dtype."""
    batch, heads, dim = tensor.shape[0], *tensor.shape[-2:]
    tokens = int(np.prod(tensor.shape[1:-2]))
    moved = tensor.astype(compute).reshape(batch, tokens, heads, dim).transpose(0, 2, 1, 3)
    return moved.repeat(groups, axis=1)


def _back(tensor: Array, shape: tuple[int, ...], groups: int = 1) -> Array:
    """The transpose of :func:`_flat`."""
    batch, heads, tokens, dim = tensor.shape
    summed = tensor.reshape(batch, heads // groups, groups, tokens, dim).sum(2, dtype=tensor.dtype)
    return summed.transpose(0, 2, 1, 3).reshape(batch, *shape, heads // groups, dim)


def _t(tensor: Array) -> Array:
    return tensor.swapaxes(-1, -2)


def _product(a: Array, b: Array) -> Array:
    """a @ b, with terms added one by one: in the same order on every machine, whatever library numpy uses."""
    total = np.zeros((*a.shape[:-1], b.shape[-1]), a.dtype)
    for i in range(a.shape[-1]):
        total += a[..., i, None] * b[..., i, None, :]
    return total


def _rpb_grad(problem: Problem, logits_grad: Array) -> Array:
    """The gradient of rpb: the gradients of logits added one by one for each offset."""
    sizes = [2 * w - 1 for w in problem.kernel_size]
    found = np.zeros((problem.heads, int(np.prod(sizes))), logits_grad.dtype)
    mask, offsets = neighborhood_mask(problem), bias_offsets(problem)
    for head in range(problem.heads):
        np.add.at(found[head], offsets[mask], logits_grad.sum(0, dtype=logits_grad.dtype)[head][mask])
    return found.reshape(problem.heads, *sizes)


def _logits(problem: Problem, q: Array, k: Array, rpb: Array | None) -> Array:
    """Unmasked logits of all keys; those after the problem's own keys are additional ones."""
    logits = q.dtype.type(problem.scale) * _product(q, _t(k))
    if rpb is not None:
        entries = rpb.astype(q.dtype).reshape(problem.heads, -1)
        logits[..., : problem.keys] += entries[:, bias_offsets(problem)]
    return logits


def baseline(problem: Problem, arrays: dict[str, Array]) -> dict[str, Array]:
    """Results and gradients of fused attention, unrounded: dense, in float32 (float64 for float64)."""
    compute = _compute(problem.dtype)
    groups, shape, keys = problem.group_heads, problem.query_shape, problem.keys
    q, d_out = (_flat(arrays[name], compute) for name in ("query", "d_out"))
    d_lse = _flat(arrays["d_lse"][..., None], compute)
    seen, visible = neighborhood_mask(problem), arrays.get("key_mask")
    k, v = (arrays[name] for name in ("key", "value"))
    if visible is not None:
        k, v = (np.where(visible[..., None, None], tensor, 0) for tensor in (k, v))
        seen = seen & visible.reshape(problem.batch, 1, 1, keys)
    k, v = (_flat(tensor, compute, groups) for tensor in (k, v))
    rpb, additional = arrays.get("rpb"), "additional_keys" in arrays
    if additional:
        k = np.concatenate([k, _flat(arrays["additional_keys"], compute, groups)], 2)
        v = np.concatenate([v, _flat(arrays["additional_values"], compute, groups)], 2)
    logits = _logits(problem, q, k, rpb)
    logits[..., :keys] = np.where(seen, logits[..., :keys], compute(-np.inf))
    top = logits.max(-1, keepdims=True, initial=-np.inf)
    weights = np.exp(logits - np.where(top == -np.inf, compute(0), top))
    total = weights.sum(-1, keepdims=True)
    weights /= np.where(total == 0, compute(1), total)
    out = _product(weights, v)
    delta = (d_out * out).sum(-1, keepdims=True) - d_lse
    logits_grad = weights * (_product(d_out, _t(v)) - delta)
    scale = compute(problem.scale)
    key_grad, value_grad = scale * _product(_t(logits_grad), q), _product(_t(weights), d_out)
    found = {
        "out": _back(out, shape),
        "lse": _back(top + _log(total), shape)[..., 0],
        "query": _back(scale * _product(logits_grad, k), shape),
        "key": _back(key_grad[:, :, :keys], problem.key_shape, groups),
        "value": _back(value_grad[:, :, :keys], problem.key_shape, groups),
    }
    if additional:
        found["additional_keys"] = _back(key_grad[:, :, keys:], (problem.additional,), groups)
        found["additional_values"] = _back(value_grad[:, :, keys:], (problem.additional,), groups)
    if rpb is not None:
        found["rpb"] = _rpb_grad(problem, logits_grad[..., :keys])
    return found


def _log(total: Array) -> Array:
    """The logarithm; that of 0, the sum of a query that sees no key, is -inf."""
    with np.errstate(divide="ignore"):
        return np.log(total)


Tensors = dict[str, Array]


def _expected(
    case: Case, dtype: str, results: set[str], truth_of: Callable[..., Tensors], plain_of: Callable[..., Tensors]
) -> dict[str, Expected]:
    """The truth of the first draw, and the baseline's error in the worst."""
    truths = [truth_of(case, dtype, draw) for draw in range(1 if dtype == "float64" else DRAWS)]
    errors = dict.fromkeys(truths[0], 0.0)
    kinds = {name: lse_dtype(dtype) if name == "lse" else dtype for name in errors}
    for draw, truth in enumerate(truths):
        plain = plain_of(case, dtype, draw)
        for name, wanted in truth.items():
            apart, top = deviation(rounded(plain[name], kinds[name]), wanted), largest(wanted)
            errors[name] = max(errors[name], apart / top if top else 0.0)
    return {
        name: Expected(truth, errors[name], kinds[name], 2 if name in results else 3)
        for name, truth in truths[0].items()
    }


def fused_truth(case: Case, dtype: str, draw: int = 0) -> Tensors:
    """Out, lse, and the gradients of all inputs by the inputs' names, for inputs rounded to ``dtype``."""
    arrays, problem = inputs(case, dtype, draw), case.problem(dtype)
    given = {name: a for name, a in arrays.items() if name not in ("d_out", "d_lse")}
    out, lse = reference.forward(problem, **given)
    return {"out": out, "lse": lse, **reference.backward(problem, arrays["d_out"], arrays["d_lse"], **given)}


def _plain_fused(case: Case, dtype: str, draw: int) -> Tensors:
    return baseline(case.problem(dtype), inputs(case, dtype, draw))


@cache
def fused(case: Case, dtype: str) -> dict[str, Expected]:
    """The expected results of ``na{1,2,3}d``."""
    return _expected(case, dtype, {"out", "lse"}, fused_truth, _plain_fused)


def _dense_slots(problem: Problem, slots: Array, compute: Any) -> Array:
    """``[B, *shape, H, W]`` -> ``[B, H, queries, keys]``; slots without a key are dropped."""
    keys, held = slot_keys(problem)
    flat = np.where(held, _flat(slots, compute), compute(0))
    dense = np.zeros((*flat.shape[:2], problem.queries, problem.keys), compute)
    rows = np.broadcast_to(np.arange(problem.queries)[:, None], keys.shape)
    np.add.at(dense, (slice(None), slice(None), rows, keys), flat)
    return dense


def _slots_of(problem: Problem, dense: Array, empty: float) -> Array:
    keys, held = slot_keys(problem)
    found = np.take_along_axis(dense, np.broadcast_to(keys, (*dense.shape[:2], *keys.shape)), -1)
    return _back(np.where(held, found, dense.dtype.type(empty)), problem.query_shape)


def qk_truth(case: Case, dtype: str, draw: int = 0) -> Tensors:
    """Logits, and the gradients of query, key and rpb."""
    arrays, problem = inputs(case, dtype, draw), case.problem(dtype, "qk")
    given = [arrays["query"], arrays["key"], arrays.get("rpb")]
    d_logits = slot_inputs(case, dtype, draw)["d_logits"]
    return {"logits": reference.qk(problem, *given), **reference.qk_backward(problem, d_logits, *given)}


def _plain_qk(case: Case, dtype: str, draw: int) -> Tensors:
    arrays, problem = inputs(case, dtype, draw), case.problem(dtype, "qk")
    compute, groups = _compute(dtype), problem.group_heads
    q, k, scale = _flat(arrays["query"], compute), _flat(arrays["key"], compute, groups), compute(problem.scale)
    dense = _dense_slots(problem, slot_inputs(case, dtype, draw)["d_logits"], compute)
    plain = {
        "logits": _slots_of(problem, _logits(problem, q, k, arrays.get("rpb")), -np.inf),
        "query": _back(scale * _product(dense, k), case.query_shape),
        "key": _back(scale * _product(_t(dense), q), case.key_shape, groups),
    }
    return plain | ({"rpb": _rpb_grad(problem, dense)} if case.rpb else {})


@cache
def split_qk(case: Case, dtype: str) -> dict[str, Expected]:
    """The expected results of ``na{1,2,3}d_qk``."""
    return _expected(case, dtype, {"logits"}, qk_truth, _plain_qk)


def av_truth(case: Case, dtype: str, draw: int = 0) -> Tensors:
    """Out, and the gradients of attn and value."""
    arrays, problem = inputs(case, dtype, draw), case.problem(dtype, "av")
    attn, value = slot_inputs(case, dtype, draw)["attn"], arrays["value"]
    gradients = reference.av_backward(problem, arrays["d_out"], attn, value)
    return {"out": reference.av(problem, attn, value), **gradients}


def _plain_av(case: Case, dtype: str, draw: int) -> Tensors:
    arrays, problem = inputs(case, dtype, draw), case.problem(dtype, "av")
    compute, groups = _compute(dtype), problem.group_heads
    d_out, v = _flat(arrays["d_out"], compute), _flat(arrays["value"], compute, groups)
    dense = _dense_slots(problem, slot_inputs(case, dtype, draw)["attn"], compute)
    return {
        "out": _back(_product(dense, v), case.query_shape),
        "attn": _slots_of(problem, _product(d_out, _t(v)), 0.0),
        "value": _back(_product(_t(dense), d_out), case.key_shape, groups),
    }


@cache
def split_av(case: Case, dtype: str) -> dict[str, Expected]:
    """The expected results of ``na{1,2,3}d_av``."""
    return _expected(case, dtype, {"out"}, av_truth, _plain_av)
