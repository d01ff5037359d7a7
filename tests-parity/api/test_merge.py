"""merge_attentions and attention: results over parts of the keys, combined; full attention."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from cases import BY_NAME, generator
from frameworks import FRAMEWORKS, PATHS, Framework, Path, planned_backend

Array = Any


def dense(q: Array, k: Array, v: Array, scale: float, causal: bool, d_out: Array, d_lse: Array) -> tuple[Array, ...]:
    """out, lse and gradients of attention, one head at a time, straight from the definition."""
    results = [np.zeros((*q.shape[:-1], v.shape[-1])), np.zeros(q.shape[:-1]), *map(np.zeros_like, (q, k, v))]
    out, lse, d_q, d_k, d_v = results
    group = q.shape[2] // k.shape[2]
    seen = np.tri(q.shape[1], k.shape[1], dtype=bool) if causal else np.ones((q.shape[1], k.shape[1]), dtype=bool)
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            at, kv = (b, slice(None), h), (b, slice(None), h // group)
            logits = np.where(seen, scale * q[at] @ k[kv].T, -np.inf)
            lse[at] = np.logaddexp.reduce(logits, axis=1)
            weights = np.exp(logits - lse[at][:, None])
            out[at] = weights @ v[kv]
            d_weights = d_out[at] @ v[kv].T
            delta = (weights * d_weights).sum(1) - d_lse[at]
            d_logits = weights * (d_weights - delta[:, None])
            d_q[at] = scale * d_logits @ k[kv]
            d_k[kv] += scale * d_logits.T @ q[at]
            d_v[kv] += weights.T @ d_out[at]
    return tuple(results)


# queries, keys, heads, kv heads, D, D_v, causal, scale
FULL = (
    (9, 9, 2, 2, 4, 4, False, None),
    (9, 9, 2, 2, 4, 4, True, None),
    (5, 12, 4, 2, 3, 7, False, 0.3),
    (5, 12, 4, 2, 3, 7, True, None),
    (12, 5, 3, 1, 8, 2, False, None),
    (12, 5, 3, 1, 8, 2, True, 0.0),
    (1, 7, 2, 1, 33, 1, True, None),
    (7, 1, 2, 2, 1, 1, True, None),
    (150, 131, 1, 1, 16, 16, True, None),
    (150, 131, 2, 1, 5, 5, False, None),
)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("shape", FULL, ids=str)
def test_full_attention(shape: tuple[Any, ...], path: Path) -> None:
    """Every key or, if causal, those up to the query's own index: aligned at the top left."""
    queries, keys, h, kv, d, d_v, causal, scale = shape
    framework, random = path.framework, generator(str(shape))
    sizes = ((2, queries, h, d), (2, keys, kv, d), (2, keys, kv, d_v), (2, queries, h, d_v), (2, queries, h))
    arrays = [random.standard_normal(size) for size in sizes]
    tensors = [framework.tensor(a) for a in arrays]
    assert planned_backend(framework, "attention", *tensors[:3], is_causal=causal, backend=path.backend) == path.backend

    def call(*given: Any) -> Any:
        return framework.face("attention")(*given, causal, scale, return_lse=True, backend=path.backend)

    with framework.watch() as ran:
        results, gradients = framework.vjp(call, tensors[:3], tensors[3:])
    assert ran == {path.backend}
    wanted = dense(*arrays[:3], d**-0.5 if scale is None else scale, causal, *arrays[3:])
    for found, truth in zip((*results, *gradients), wanted, strict=True):
        np.testing.assert_allclose(framework.numpy(found), truth, rtol=0, atol=1e-12)
    alone = framework.face("attention")(*tensors[:3], causal, scale, backend=path.backend)
    assert np.array_equal(framework.numpy(alone), framework.numpy(results[0]))


# --- merging -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("cuts", [(4, 9), (1, 2, 3, 12), (12,)], ids=str)
def test_parts_of_the_keys_merge_to_all_of_them(cuts: tuple[int, ...], path: Path) -> None:
    """Attention over parts, merged, equals attention over their union: results and gradients."""
    framework, random = path.framework, generator(str(cuts))
    sizes = ((2, 7, 4, 3), (2, 12, 2, 3), (2, 12, 2, 5), (2, 7, 4, 5), (2, 7, 4))
    arrays = [random.standard_normal(size) for size in sizes]
    edges = [0, *cuts] if cuts[-1] == 12 else [0, *cuts, 12]
    tensors = [framework.tensor(a) for a in arrays]

    def merged(query: Any, key: Any, value: Any) -> Any:
        parts = [
            framework.face("attention")(
                query, key[:, low:high], value[:, low:high], return_lse=True, backend=path.backend
            )
            for low, high in itertools.pairwise(edges)
        ]
        return framework.face("merge_attentions")([out for out, _ in parts], [lse for _, lse in parts])

    with framework.watch() as ran:
        results, gradients = framework.vjp(merged, tensors[:3], tensors[3:])
    assert ran == {path.backend}
    wanted = dense(*arrays[:3], 3**-0.5, False, *arrays[3:])
    for found, truth in zip((*results, *gradients), wanted, strict=True):
        np.testing.assert_allclose(framework.numpy(found), truth, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("name", ["seq-additional", "img-additional", "vol-gqa-additional"])
def test_additional_keys_are_a_part(name: str, path: Path) -> None:
    """A window merged with attention to the additional keys equals the window with additional keys."""
    from cases import inputs

    case, framework = BY_NAME[name], path.framework
    arrays = {n: framework.tensor(a) for n, a in inputs(case).items()}
    q, k, v, more_k, more_v = (arrays[n] for n in ("query", "key", "value", "additional_keys", "additional_values"))
    face, options = framework.face(case.face), {"return_lse": True, "backend": path.backend}
    whole = face(q, k, v, **case.window, additional_keys=more_k, additional_values=more_v, **options)
    window, lse = face(q, k, v, **case.window, **options)
    flat = q.reshape(case.batch, -1, case.heads, case.head_dim)
    other, other_lse = framework.face("attention")(flat, more_k, more_v, **options)
    parts = [window, other.reshape(*window.shape)], [lse, other_lse.reshape(*lse.shape)]
    for found, wanted in zip(framework.face("merge_attentions")(*parts), whole, strict=True):
        np.testing.assert_allclose(framework.numpy(found), framework.numpy(wanted), rtol=0, atol=1e-13)


def merge(framework: Framework, outs: list[Array], lses: list[Array], dtype: str = "float64") -> list[Array]:
    """out, lse and the gradients of the parts' outs and lses, for cotangents of ones."""
    count = len(outs)
    lse_dtype = "float64" if dtype == "float64" else "float32"
    tensors = [framework.tensor(out, dtype) for out in outs] + [framework.tensor(lse, lse_dtype) for lse in lses]
    cotangents = [framework.tensor(np.ones_like(outs[0]), dtype), framework.tensor(np.ones_like(lses[0]), lse_dtype)]

    def call(*given: Any) -> Any:
        return framework.face("merge_attentions")(list(given[:count]), list(given[count:]))

    results, gradients = framework.vjp(call, tensors, cotangents)
    assert [framework.dtype_of(t) for t in results] == [dtype, lse_dtype]
    assert [framework.dtype_of(t) for t in gradients] == [dtype] * count + [lse_dtype] * count
    return [framework.numpy(t) for t in (*results, *gradients)]


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_an_empty_part_contributes_nothing(framework: Framework) -> None:
    """A part whose lse is -inf contributes nothing, whatever its out holds, NaN included; where all parts are like
    that, out is 0, lse -inf, and gradients are 0.
    """
    random = np.random.default_rng(3)
    outs = [random.standard_normal((1, 4, 1, 2)) for _ in range(3)]
    lses = [random.standard_normal((1, 4, 1)) for _ in range(3)]
    lses[0][0, :2] = -np.inf
    outs[0][0, :2] = np.nan
    for part in range(3):
        lses[part][0, 0] = -np.inf
        outs[part][0, 0] = np.inf
    out, lse, *gradients = merge(framework, outs, lses)
    assert not out[0, 0].any() and lse[0, 0, 0] == -np.inf
    for gradient in gradients:
        assert not gradient[0, 0].any()
    rest = merge(framework, [o[:, 1:2] for o in outs[1:]], [part[:, 1:2] for part in lses[1:]])
    for whole, part in zip((out, lse), rest, strict=False):
        np.testing.assert_allclose(whole[:, 1:2], part, rtol=0, atol=1e-15)
    assert not gradients[0][0, 1].any() and not gradients[3][0, 1].any()
    for number, wanted in zip((1, 2, 4, 5), rest[2:], strict=True):
        np.testing.assert_allclose(gradients[number][:, 1:2], wanted, rtol=0, atol=1e-15)
    assert np.isfinite(out).all() and np.isfinite(lse[0, 1:]).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_half_precision_is_merged_in_single(framework: Framework, dtype: str) -> None:
    """Equal parts whose number the dtype can hold merge to exactly that; a sum of 64 of them in the dtype would not."""
    out, lse, *gradients = merge(framework, [np.full((1, 1, 1, 1), 1001.0)] * 64, [np.zeros((1, 1, 1))] * 64, dtype)
    exact = 1000.0 if dtype == "bfloat16" else 1001.0
    assert out.item() == exact
    np.testing.assert_allclose(lse.item(), np.log(64), rtol=1e-6)
    np.testing.assert_allclose([g.item() for g in gradients[:64]], 1 / 64, rtol=1e-2)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_large_and_small_lses(framework: Framework) -> None:
    """lses far from 0, and far from each other, neither overflow nor underflow wrongly."""
    outs = [np.full((1, 1, 1, 1), value) for value in (1.0, 3.0)]
    out, lse, *_ = merge(framework, outs, [np.full((1, 1, 1), 1e4)] * 2)
    assert out.item() == pytest.approx(2.0) and lse.item() == pytest.approx(1e4 + np.log(2))
    out, lse, *_ = merge(framework, outs, [np.full((1, 1, 1), -1e4), np.full((1, 1, 1), 1e4)])
    assert out.item() == 3.0 and lse.item() == 1e4


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_gradients_of_a_merge_by_differences(framework: Framework) -> None:
    random = np.random.default_rng(11)
    outs = [random.standard_normal((1, 2, 1, 2)) for _ in range(3)]
    lses = [random.standard_normal((1, 2, 1)) for _ in range(3)]
    gradients = merge(framework, outs, lses)[2:]
    step = 1e-6
    for part, gradient in enumerate(gradients):
        tensors = outs if part < 3 else lses
        for index in np.ndindex(gradient.shape):
            ends = []
            for sign in (1, -1):
                moved = [t.copy() for t in tensors]
                moved[part % 3][index] += sign * step
                found = merge(framework, *((moved, lses) if part < 3 else (outs, moved)))
                ends.append(found[0].sum() + found[1].sum())
            assert gradient[index] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-8)
