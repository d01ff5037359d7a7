"""Key masks of the modules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from frameworks import FRAMEWORKS, Framework
from module_weights import build

MODULES: tuple[tuple[int, dict[str, Any]], ...] = (
    (1, {"kernel_size": 5}),
    (2, {"kernel_size": (3, 4), "dilation": (2, 1), "is_causal": (False, True), "num_kv_heads": 2}),
    (2, {"kernel_size": 3, "wrap": (True, False), "rel_pos_bias": True}),
    (3, {"kernel_size": 3, "stride": 2}),
)
SHAPES = {1: (2, 9), 2: (2, 6, 7), 3: (2, 4, 5, 6)}


def tokens(rank: int) -> tuple[Any, Any]:
    random = np.random.default_rng(rank)
    return random.standard_normal((*SHAPES[rank], 12)), random.random(SHAPES[rank]) < 0.5


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize(("rank", "arguments"), MODULES)
def test_masked_tokens_reach_no_other(rank: int, arguments: dict[str, Any], framework: Framework) -> None:
    """Whatever masked tokens hold, the others' results are the same; and they differ from those without a mask."""
    layer, (x, mask) = build(framework, rank, **arguments), tokens(rank)
    key_mask = framework.tensor(mask, "bool")
    plain, masked, spoilt = (
        framework.numpy(layer(framework.tensor(each, "float32"), **given))
        for each, given in (
            (x, {}),
            (x, {"key_mask": key_mask}),
            (np.where(mask[..., None], x, np.nan), {"key_mask": key_mask}),
        )
    )
    assert np.isfinite(masked).all() and not np.allclose(plain, masked)
    assert np.array_equal(spoilt[mask], masked[mask])
    shown = framework.numpy(
        layer(framework.tensor(x, "float32"), key_mask=framework.tensor(np.ones_like(mask), "bool"))
    )
    np.testing.assert_allclose(shown, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_where_no_key_is_seen_only_the_bias_of_the_projection_is_left(framework: Framework) -> None:
    layer, (x, mask) = build(framework, 2, kernel_size=3), tokens(2)
    out = framework.numpy(layer(framework.tensor(x, "float32"), key_mask=framework.tensor(0 * mask, "bool")))
    assert np.array_equal(out, np.broadcast_to(framework.numpy(layer.proj.bias), out.shape))


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_what_does_not_go_with_a_key_mask(framework: Framework) -> None:
    (x, mask), name = tokens(1), "NeighborhoodAttention1D: key_mask cannot be combined with"
    given = framework.tensor(x, "float32")
    key_mask = framework.tensor(mask, "bool")
    layer, causal = build(framework, 1, kernel_size=3), build(framework, 1, kernel_size=3, is_causal=True)
    dropping = build(framework, 1, kernel_size=3, attn_drop=0.5)
    dropping.train()
    sharded = build(framework, 1, kernel_size=3)
    sharded.shared = lambda *call: None
    cache = framework.package.KeyValueCache(kernel_size=3, is_causal=True)
    for module, more, text in (
        (layer, {"seq_lens": [9, 9]}, f"{name} seq_lens; mask the padding too, without seq_lens"),
        (causal, {"cache": cache}, f"{name} cache; call the module on the whole sequence, without a cache"),
        (dropping, {}, f"{name} attn_drop in training; set attn_drop=0.0"),
        (sharded, {}, f"{name} shards; call the module on the whole input"),
    ):
        with pytest.raises(NotImplementedError) as caught:
            module(given, key_mask=key_mask, **more)
        assert str(caught.value) == text
    for wrong, error, text in (
        (given, TypeError, "key_mask must be bool; got float32"),
        (key_mask[:, :4], ValueError, "key_mask must be [batch, *key shape] = (2, 9); got (2, 4)"),
    ):
        with pytest.raises(error) as failed:
            layer(given, key_mask=wrong)
        assert str(failed.value) == f"neighborhood_attention: {text}"
