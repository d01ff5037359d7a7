"""The call forms of NATTEN's generations: names, signatures, and the errors of calls that do not fit them."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from frameworks import FRAMEWORKS, Framework
from test_compat import ALL, FLAT, GENERATIONS, VOLUME, module


def ranks(name: str, which: tuple[int, ...], text: str) -> dict[str, str]:
    return {name.format(rank): text for rank in which}


# Upstream's signatures, written out here again; those in natten_metal.compat.forms must agree.
CLASS = "NeighborhoodAttention{}D"
DROP = "qkv_bias=True, qk_scale=None, attn_drop=0.0, proj_drop=0.0"
DEPTH = "kernel_size_d, kernel_size, dilation_d, dilation"
TILES = (
    "backend=None, q_tile_{0}=None, kv_tile_{0}=None, backward_q_tile_{0}=None, backward_kv_tile_{0}=None, "
    "backward_kv_splits=None, backward_use_pt_reduction=False, run_persistent_kernel=True, kernel_schedule=None, "
    "torch_compile=False"
)
FUSED = (
    "query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, additional_keys=None, "
    "additional_values=None, attention_kwargs=None, " + TILES.format("shape")
)
PACKED = (
    "seqlens_Q=None, seqlens_KV=None, cumulative_seqlen_Q=None, cumulative_seqlen_KV=None, max_seqlen_Q=None, "
    "max_seqlen_KV=None"
)
QKRPB_14 = {
    **ranks("natten{}dqkrpb", FLAT, "query, key, rpb, kernel_size, dilation"),
    **ranks("natten{}dqk", FLAT, "query, key, kernel_size, dilation"),
}
AV_14 = ranks("natten{}dav", FLAT, "attn, value, kernel_size, dilation")
CLASS_14 = ranks(CLASS, FLAT, f"dim, num_heads, kernel_size, dilation=1, bias=True, {DROP}")
CLASS_20 = ranks(
    CLASS,
    ALL,
    "embed_dim, num_heads, kernel_size, stride=1, dilation=1, is_causal=False, qkv_bias=True, "
    "qk_scale=None, proj_drop=0.0",
)
SPLIT_17 = {
    **ranks("na{}d_qk", ALL, "query, key, kernel_size, dilation=1, additional_keys=None, is_causal=False, rpb=None"),
    **ranks("na{}d_av", FLAT, "attn, value, kernel_size, dilation=1, additional_values=None, is_causal=False"),
    **ranks("na{}d_av", VOLUME, "attn, value, kernel_size, dilation, additional_values=None, is_causal=False"),
}
UPSTREAM = {
    "v0141": {
        **ranks("natten{}dqkrpb", FLAT, "query, key, rpb, dilation"),
        **ranks("natten{}dav", FLAT, "attn, value, dilation"),
        **ranks(CLASS, FLAT, f"dim, kernel_size, num_heads, {DROP}, dilation=None"),
    },
    "v0145": {**QKRPB_14, **ranks("natten{}dav", FLAT, "attn, value, dilation"), **CLASS_14},
    "v014": {**QKRPB_14, **AV_14, **CLASS_14},
    "v015": {
        **CLASS_14,
        **ranks(
            CLASS,
            VOLUME,
            "dim, num_heads, kernel_size, kernel_size_d=None, dilation=1, dilation_d=None, bias=True, " + DROP,
        ),
        **ranks("natten{}dqkrpb", FLAT, "query, key, rpb, kernel_size, dilation"),
        **ranks("natten{}dqkrpb", VOLUME, f"query, key, rpb, {DEPTH}"),
        **{
            name: text
            for either in ("natten{}dqk", "na{}d_qk")
            for name, text in (
                ranks(either, FLAT, "query, key, kernel_size, dilation, additional_keys=None")
                | ranks(either, VOLUME, f"query, key, {DEPTH}, additional_keys=None")
            ).items()
        },
        **ranks("na{}d_qk_with_bias", FLAT, "query, key, bias, kernel_size, dilation, additional_keys=None"),
        **ranks("na{}d_qk_with_bias", VOLUME, f"query, key, bias, {DEPTH}, additional_keys=None"),
        **{
            name: text
            for either in ("natten{}dav", "na{}d_av")
            for name, text in (
                ranks(either, FLAT, "attn, value, kernel_size, dilation, additional_values=None")
                | ranks(either, VOLUME, f"attn, value, {DEPTH}, additional_values=None")
            ).items()
        },
    },
    "v017": {
        **QKRPB_14,
        **AV_14,
        **ranks("natten{}dqkrpb", VOLUME, f"query, key, rpb, {DEPTH}"),
        **ranks("natten{}dqk", VOLUME, f"query, key, {DEPTH}"),
        **ranks("natten{}dav", VOLUME, f"attn, value, {DEPTH}"),
        **SPLIT_17,
        **ranks(
            "na{}d",
            ALL,
            "query, key, value, kernel_size, dilation=1, is_causal=False, rpb=None, scale=None, "
            "additional_keys=None, additional_values=None, xformers_kwargs=None",
        ),
        **ranks(
            CLASS,
            ALL,
            f"dim, num_heads, kernel_size, dilation=1, is_causal=False, rel_pos_bias=False, {DROP}, "
            "use_experimental_ops=False",
        ),
    },
    "v020": {
        **CLASS_20,
        **ranks("na{}d", ALL, f"{FUSED}, try_fuse_additional_kv=False"),
        "neighborhood_attention_generic": f"{FUSED}, try_fuse_additional_kv=False",
        "attention": f"query, key, value, scale=None, {TILES.format('size')}, return_lse=False",
        "merge_attentions": "outputs, lse_tensors, torch_compile=True",
    },
    "v021": {
        **CLASS_20,
        **ranks("na{}d", ALL, f"{FUSED}, return_lse=False"),
        "neighborhood_attention_generic": f"{FUSED}, return_lse=False",
        "attention": f"query, key, value, is_causal=False, scale=None, {PACKED}, {TILES.format('size')}, "
        "return_lse=False",
        "merge_attentions": "outputs, lse_tensors, torch_compile=True, use_autograd_fix=True",
    },
}
CONTEXT = (
    "use_kv_parallelism_in_fused_na",
    "is_kv_parallelism_in_fused_na_enabled",
    "set_memory_usage_preference",
    "get_memory_usage_preference",
    "is_memory_usage_default",
    "is_memory_usage_strict",
    "is_memory_usage_unrestricted",
    "use_deterministic_algorithms",
    "are_deterministic_algorithms_enabled",
)
# Other names that a generation's module has, and those that natten-mps and natten-mlx 0.3 had there.
NAMES = {
    "v014": ("add_natten_handle", "_FlopHandler"),
    "v015": ("na1d", "na2d", "na3d", "has_cuda", "has_mps", "has_gemm", "has_fna", "add_natten_handle"),
    "v017": (
        *CONTEXT,
        "use_fused_na",
        "use_fna",
        "is_fna_enabled",
        "has_fused_na",
        "use_gemm_na",
        "use_tiled_na",
        "has_half",
        "has_bfloat",
        "has_cuda",
        "has_mps",
        "use_autotuner",
        "use_flex_attention",
    ),
    "v020": (*CONTEXT, *SPLIT_17, "has_cuda", "has_mps", "has_fna", "HAS_LIBNATTEN", "get_configs_for_cutlass_fna"),
    "v021": (
        *CONTEXT,
        *UPSTREAM["v017"],
        *UPSTREAM["v015"],
        "has_fused_na",
        "use_fused_na",
        "HAS_LIBNATTEN",
        "allow_flex_compile",
        "disable_flex_compile",
        "is_flex_compile_allowed",
        "get_configs_for_flex_fna",
    ),
}
LEFT_OUT = {"v014": ("natten3dqk", "na1d", "NattenContext"), "v0141": ("natten1dqk",), "v015": ("use_fused_na",)}


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_signatures(generation: str, framework: Framework) -> None:
    found = module(framework, generation)
    for name, text in UPSTREAM[generation].items():
        face = getattr(found, name)
        assert str(inspect.signature(face)) == f"({text})", name
        assert (face.__name__, face.__module__) == (name, found.__name__) and face.__doc__
    for name in NAMES.get(generation, ()):
        assert name in found.__all__ and getattr(found, name) is not None, name
    for name in LEFT_OUT.get(generation, ()):
        assert not hasattr(found, name), name


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_calls_that_do_not_fit(framework: Framework) -> None:
    """Errors like Python's own for calls that do not fit a signature, and this package's for what a face rejects."""
    old, query = module(framework, "v014"), framework.tensor(np.ones((1, 2, 9, 4)), "float32")
    for call, error, words in (
        (lambda: old.natten1dqk(query, query, 3), TypeError, "natten1dqk: missing argument 'dilation'"),
        (lambda: old.natten1dqk(query, query, 3, 1, 1), TypeError, "natten1dqk: takes at most 4 arguments; got 5"),
        (lambda: old.natten1dqk(query, query, 3, 1, key=1), TypeError, "multiple values for argument 'key'"),
        (lambda: old.natten1dqk(query, query, 3, dilatation=1), TypeError, "unexpected keyword argument 'dilatation'"),
        (
            lambda: old.natten2dqk(query, query, 3, 1),
            ValueError,
            r"natten2dqk: query must be \[batch, heads, X, Y, dim\] \(5-D\); got \(1, 2, 9, 4\)",
        ),
        (lambda: old.natten1dqk(query, query, 3, 4), ValueError, "axis 0 has 3 \\* 4 = 12 > 9"),
        (lambda: old.natten1dqk(None, query, 3, 1), TypeError, "query must be a tensor"),
        (lambda: module(framework, "v0141").natten1dqkrpb(query, query, None, 1), TypeError, "rpb must be a tensor"),
        (
            lambda: module(framework, "v017").na1d_qk(query, query, 3, additional_keys=query[..., :3]),
            ValueError,
            r"additional_keys must be \[batch, heads, any number, dim\] = \(1, 2, any, 4\); got \(1, 2, 9, 3\)",
        ),
        (
            lambda: module(framework, "v017").na1d_av(query, query, 3, additional_values=query),
            ValueError,
            r"prod\(kernel_size\) \+ additional values = 3 \+ 9 slots; got 4",
        ),
    ):
        with pytest.raises(error, match=words):
            call()
    flat = framework.tensor(np.ones((1, 2, 3, 4, 5)), "float32")
    with pytest.raises(ValueError, match=r"natten2dav: attn must have kernel_size \*\* 2 slots; got 5"):
        module(framework, "v0141").natten2dav(flat, flat, 1)
