"""The windows in docs/migration.md: each mask_mod there equals the arguments that are given for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import make
from frameworks import FRAMEWORKS, Framework

from natten_mps._metal.problem.mask import neighborhood_mask

Array = Any
L = 48
Q, K = np.arange(L)[:, None], np.arange(L)[None, :]


def keys_of(**window: Any) -> Array:
    """``[queries, keys]`` bool of one axis."""
    kernel_size = window.pop("kernel_size")
    return neighborhood_mask(make("migration", (L,), kernel_size, **window).problem())


def inner(mask: Array, w: int) -> Array:
    """The rows whose windows are not shifted at a border."""
    assert 2 * w < L
    return mask[w : L - w]


@pytest.mark.parametrize("w", [3, 5, 7])
def test_mask_mods(w: int) -> None:
    assert np.array_equal(inner(abs(Q - K) <= w // 2, w), inner(keys_of(kernel_size=w), w))
    shifted, shrunk = keys_of(kernel_size=w)[0], (abs(Q - K) <= w // 2)[0]
    assert shifted.sum() == w > shrunk.sum()
    assert np.array_equal((Q >= K) & (w > Q - K), keys_of(kernel_size=w, causal=True))
    dilated = ((Q - K) % 3 == 0) & (abs(Q - K) <= 3 * (w // 2))
    assert np.array_equal(inner(dilated, 3 * w), inner(keys_of(kernel_size=w, d=3), 3 * w))


@pytest.mark.parametrize("w", [3, 4, 6, 8])
def test_blocks(w: int) -> None:
    assert np.array_equal(Q // w == K // w, keys_of(kernel_size=w, s=w))


@pytest.mark.parametrize(("w", "s"), [(5, 2), (7, 3), (7, 4)])
def test_groups_of_queries(w: int, s: int) -> None:
    leader = Q // s * s + s // 2
    assert np.array_equal(inner(abs(leader - K) <= w // 2, 8), inner(keys_of(kernel_size=w, s=s), 8))


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_what_stride_was(framework: Framework) -> None:
    """0.3's stride: every s-th query with its own window, as the op without stride computes it."""
    random = np.random.default_rng(0)
    arrays = [random.standard_normal((1, 11, 2, 4)) for _ in range(3)]
    query, key, value = (framework.tensor(a) for a in arrays)
    found = framework.numpy(framework.face("na1d")(query, key, value, 5)[:, ::3])
    assert found.shape == (1, 4, 2, 4)
    for row, token in enumerate(range(0, 11, 3)):
        start = min(max(token - 2, 0), 6)
        q, k, v = arrays[0][0, token], arrays[1][0, start : start + 5], arrays[2][0, start : start + 5]
        logits = np.einsum("hd,khd->hk", q, k) / 2
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        wanted = np.einsum("hk,khd->hd", weights / weights.sum(-1, keepdims=True), v)
        np.testing.assert_allclose(found[0, row], wanted, rtol=0, atol=1e-12)
