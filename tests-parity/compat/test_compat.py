"""The call forms of NATTEN's generations: signatures, results, gradients, modules and their checkpoints."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from typing import Any

import metal_emulator
import numpy as np
import pytest
import torch
from frameworks import FRAMEWORKS, MPS, Framework
from golden_files import FAMILY_B, FOLDER, close, tolerance
from metal.conftest import installed
from metal.host import EmulatedHost

import natten_mps

Array = Any
GENERATIONS = ("v0141", "v0145", "v014", "v015", "v017", "v020", "v021")
SHAPES = {1: (9,), 2: (6, 7), 3: (4, 3, 5)}


def ranks(name: str, which: tuple[int, ...], text: str) -> dict[str, str]:
    return {name.format(rank): text for rank in which}


# --- signatures --------------------------------------------------------------------------------------

# Upstream's, written out here again: natten_metal.compat.forms must agree.
ALL, FLAT, VOLUME = (1, 2, 3), (1, 2), (3,)
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
    CLASS, ALL, "embed_dim, num_heads, kernel_size, stride=1, dilation=1, is_causal=False, qkv_bias=True, "
    "qk_scale=None, proj_drop=0.0",
)  # fmt: skip
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
            CLASS, VOLUME, "dim, num_heads, kernel_size, kernel_size_d=None, dilation=1, dilation_d=None, bias=True, "
            + DROP,
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
            "na{}d", ALL, "query, key, value, kernel_size, dilation=1, is_causal=False, rpb=None, scale=None, "
            "additional_keys=None, additional_values=None, xformers_kwargs=None",
        ),
        **ranks(
            CLASS, ALL, f"dim, num_heads, kernel_size, dilation=1, is_causal=False, rel_pos_bias=False, {DROP}, "
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
}  # fmt: skip
CONTEXT = (
    "use_kv_parallelism_in_fused_na", "is_kv_parallelism_in_fused_na_enabled", "set_memory_usage_preference",
    "get_memory_usage_preference", "is_memory_usage_default", "is_memory_usage_strict",
    "is_memory_usage_unrestricted", "use_deterministic_algorithms", "are_deterministic_algorithms_enabled",
)  # fmt: skip
# What a module has besides, and what natten-mps and natten-mlx 0.3 had there.
NAMES = {
    "v014": ("add_natten_handle", "_FlopHandler"),
    "v015": ("na1d", "na2d", "na3d", "has_cuda", "has_mps", "has_gemm", "has_fna", "add_natten_handle"),
    "v017": (*CONTEXT, "use_fused_na", "use_fna", "is_fna_enabled", "has_fused_na", "use_gemm_na", "use_tiled_na",
             "has_half", "has_bfloat", "has_cuda", "has_mps", "use_autotuner", "use_flex_attention"),
    "v020": (*CONTEXT, *SPLIT_17, "has_cuda", "has_mps", "has_fna", "HAS_LIBNATTEN", "get_configs_for_cutlass_fna"),
    "v021": (*CONTEXT, *UPSTREAM["v017"], *UPSTREAM["v015"], "has_fused_na", "use_fused_na", "HAS_LIBNATTEN",
             "allow_flex_compile", "disable_flex_compile", "is_flex_compile_allowed", "get_configs_for_flex_fna"),
}  # fmt: skip
LEFT_OUT = {"v014": ("natten3dqk", "na1d", "NattenContext"), "v0141": ("natten1dqk",), "v015": ("use_fused_na",)}


def module(framework: Framework, generation: str) -> Any:
    return framework.module(f"compat.{generation}")


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
    """Python's own errors for wrong calls, and this package's for what a face rejects."""
    old, query = module(framework, "v014"), framework.tensor(np.ones((1, 2, 9, 4)), "float32")
    for call, error, words in (
        (lambda: old.natten1dqk(query, query, 3), TypeError, "natten1dqk: missing argument 'dilation'"),
        (lambda: old.natten1dqk(query, query, 3, 1, 1), TypeError, "natten1dqk: takes at most 4 arguments; got 5"),
        (lambda: old.natten1dqk(query, query, 3, 1, key=1), TypeError, "multiple values for argument 'key'"),
        (lambda: old.natten1dqk(query, query, 3, dilatation=1), TypeError, "unexpected keyword argument 'dilatation'"),
        (lambda: old.natten2dqk(query, query, 3, 1), ValueError,
         r"natten2dqk: query must be \[batch, heads, X, Y, dim\] \(5-D\); got \(1, 2, 9, 4\)"),
        (lambda: old.natten1dqk(query, query, 3, 4), ValueError, "axis 0 has 3 \\* 4 = 12 > 9"),
        (lambda: old.natten1dqk(None, query, 3, 1), TypeError, "query must be a tensor"),
        (lambda: module(framework, "v0141").natten1dqkrpb(query, query, None, 1), TypeError, "rpb must be a tensor"),
        (lambda: module(framework, "v017").na1d_qk(query, query, 3, additional_keys=query[..., :3]), ValueError,
         r"additional_keys must be \[batch, heads, any number, dim\] = \(1, 2, any, 4\); got \(1, 2, 9, 3\)"),
        (lambda: module(framework, "v017").na1d_av(query, query, 3, additional_values=query), ValueError,
         r"prod\(kernel_size\) \+ additional values = 3 \+ 9 slots; got 4"),
    ):  # fmt: skip
        with pytest.raises(error, match=words):
            call()
    flat = framework.tensor(np.ones((1, 2, 3, 4, 5)), "float32")
    with pytest.raises(ValueError, match=r"natten2dav: attn must have kernel_size \*\* 2 slots; got 5"):
        module(framework, "v0141").natten2dav(flat, flat, 1)


# --- results: upstream's own, and today's faces ------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("fixture", FAMILY_B, ids=lambda fixture: fixture["file"].removesuffix(".npz"))
def test_what_upstream_computed(fixture: dict[str, Any], framework: Framework, dtype: str) -> None:
    """0.17.5's own kernels, heads-first, causal axes, rpb and additional keys included."""
    with np.load(FOLDER / fixture["file"]) as stored:
        golden = {name: stored[name].astype(np.float64) for name in stored.files}
    old, rank, limit = module(framework, "v017"), fixture["na_dim"], tolerance(fixture, dtype)
    qk, av = getattr(old, f"na{rank}d_qk"), getattr(old, f"na{rank}d_av")
    names = [name for name in ("q", "k", "v", "rpb", "add_k", "add_v") if name in golden]
    window = (tuple(fixture["kernel_size"]), tuple(fixture["dilation"]))
    causal, logits = tuple(fixture["is_causal"]), []

    def call(*leaves: Any) -> tuple[Any, ...]:
        given = dict(zip(names, leaves, strict=True))
        query = given["q"] * fixture["scale"]
        found = qk(query, given["k"], *window, given.get("add_k"), causal, given.get("rpb"))
        logits.append(found)
        return (av(softmax(found), given["v"], *window, given.get("add_v"), causal),)

    leaves = [framework.tensor(golden[name], dtype) for name in names]
    (out,), gradients = framework.vjp(call, leaves, [framework.tensor(golden["d_out"], dtype)])
    close(framework.numpy(out), golden["out"], limit, "out")
    close(framework.numpy(qk_once(call, leaves, logits)), golden["logits"], limit, "logits")
    for name, gradient in zip(names, gradients, strict=True):
        wanted = golden["drpb" if name == "rpb" else f"d_{name}" if name.startswith("add") else f"d{name}"]
        close(framework.numpy(gradient), wanted, limit * max(1.0, np.abs(wanted).max()), f"gradient of {name}")


def qk_once(call: Any, leaves: list[Any], logits: list[Any]) -> Any:
    """The logits of a call outside any trace."""
    call(*leaves)
    return logits[-1]


def softmax(logits: Any) -> Any:
    if isinstance(logits, torch.Tensor):
        return logits.softmax(-1)
    from natten_mlx._tensors import exp  # mx.softmax computes float64 in float32

    weights = exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def heads_first_arrays(rank: int, w: int, heads: int = 2) -> dict[str, Array]:
    """query, key, value, rpb, weights of slots, and additional tensors."""
    random, shape = np.random.default_rng(rank), SHAPES[rank]
    drawn = {name: random.standard_normal((2, heads, *shape, 4)) for name in ("query", "key", "value")}
    drawn["rpb"] = random.standard_normal((heads, *[2 * w - 1] * rank))
    drawn["attn"] = random.random((2, heads, *shape, w**rank))
    return drawn


# Calls of each generation: (generation, ranks, name, the tensors' names, the arguments after them).
CALLS = [
    ("v0141", FLAT, "natten{}dqkrpb", ("query", "key", "rpb"), (1,)),
    ("v0141", FLAT, "natten{}dav", ("attn", "value"), (1,)),
    ("v0145", FLAT, "natten{}dqkrpb", ("query", "key", "rpb"), (3, 1)),
    ("v0145", FLAT, "natten{}dav", ("attn", "value"), (1,)),
    ("v014", FLAT, "natten{}dqkrpb", ("query", "key", "rpb"), (3, 1)),
    ("v014", FLAT, "natten{}dqk", ("query", "key"), (3, 1)),
    ("v014", FLAT, "natten{}dav", ("attn", "value"), (3, 1)),
    *(
        (generation, which, name, tensors, (3, 3, 1, 1) if which == VOLUME else (3, 1))
        for generation in ("v015", "v017", "v021")
        for which in (FLAT, VOLUME)
        for name, tensors in (
            ("natten{}dqkrpb", ("query", "key", "rpb")),
            ("natten{}dqk", ("query", "key")),
            ("natten{}dav", ("attn", "value")),
        )
    ),
    ("v015", VOLUME, "na{}d_qk_with_bias", ("query", "key", "rpb"), (3, 3, 1, 1)),
    ("v015", FLAT, "na{}d_qk_with_bias", ("query", "key", "rpb"), (3, 1)),
    ("v015", FLAT, "na{}d_qk", ("query", "key"), (3, 2)),
    ("v015", VOLUME, "na{}d_av", ("attn", "value"), (3, 3, 1, 1)),
    ("v020", ALL, "na{}d_qk", ("query", "key"), (3, 1)),
    ("v021", ALL, "na{}d_av", ("attn", "value"), (3, 1)),
]
EACH_CALL = [(generation, rank, *rest) for generation, which, *rest in CALLS for rank in which]


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize(("generation", "rank", "name", "tensors", "rest"), EACH_CALL)
def test_split_calls(
    generation: str, rank: int, name: str, tensors: tuple[str, ...], rest: tuple[int, ...], framework: Framework
) -> None:
    """Equal to today's face after moving the heads axis, to the bit; gradients too."""
    arrays, dilation = heads_first_arrays(rank, 3), rest[-1]
    given = [framework.tensor(arrays[which], "float32") for which in tensors]
    kind = "av" if "attn" in tensors else "qk"
    old, new = getattr(module(framework, generation), name.format(rank)), framework.face(f"na{rank}d_{kind}")

    def moved(tensor: Any, back: bool = False) -> Any:
        ends = (-2, 1) if back else (1, -2)
        return tensor.movedim(*ends) if isinstance(tensor, torch.Tensor) else moveaxis(tensor, ends)

    def today(*leaves: Any) -> tuple[Any, ...]:
        own = [leaf if which == "rpb" else moved(leaf) for which, leaf in zip(tensors, leaves, strict=True)]
        options = {"scale": 1.0, "rpb": own[2] if len(own) > 2 else None} if kind == "qk" else {}
        return (moved(new(*own[:2], 3, dilation, **options), back=True),)

    cotangent = [framework.tensor(np.random.default_rng(5).standard_normal(tuple(today(*given)[0].shape)), "float32")]
    found = framework.vjp(lambda *leaves: (old(*leaves, *rest),), given, cotangent)
    wanted = framework.vjp(today, given, cotangent)
    for part, own in zip(found, wanted, strict=True):
        for a, b in zip(part, own, strict=True):
            assert np.array_equal(framework.numpy(a), framework.numpy(b))


def moveaxis(tensor: Any, ends: tuple[int, int]) -> Any:
    import mlx.core as mx

    return mx.moveaxis(tensor, *ends)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("rank", ALL)
def test_fused_calls(rank: int, framework: Framework, caplog: pytest.LogCaptureFixture) -> None:
    """By position, in each generation's order of arguments; those that tune CUDA kernels are logged and ignored."""
    arrays = heads_first_arrays(rank, 3)
    tensors = [framework.tensor(np.moveaxis(arrays[n], 1, -2), "float32") for n in ("query", "key", "value")]
    rpb = framework.tensor(arrays["rpb"], "float32")
    extra = [framework.tensor(arrays[n][:, :, 0].reshape(2, -1, 2, 4), "float32") for n in ("key", "value")]
    face, name = framework.face(f"na{rank}d"), f"na{rank}d"

    def same(found: Any, wanted: Any) -> None:
        assert np.array_equal(framework.numpy(found), framework.numpy(wanted))

    old = getattr(module(framework, "v017"), name)
    same(old(*tensors, 3, 1, False, rpb, 0.3), face(*tensors, 3, rpb=rpb, scale=0.3))
    wanted = face(*tensors, 3, is_causal=True, additional_keys=extra[0], additional_values=extra[1])
    same(old(*tensors, 3, 1, True, None, None, *extra), wanted)
    caplog.set_level(logging.INFO, "natten")
    framework.module("_metal.plan.backends").said.clear()
    for generation in ("v020", "v021"):
        new = getattr(module(framework, generation), name)
        same(new(*tensors, 3, 2, 1, True, 0.3), face(*tensors, 3, 2, 1, True, 0.3))
        knobs = {"backend": "cutlass-fna", "q_tile_shape": (8,) * rank, "run_persistent_kernel": False}
        generic = module(framework, generation).neighborhood_attention_generic
        same(
            generic(*tensors, 3, additional_keys=extra[0], additional_values=extra[1], is_causal=True, **knobs), wanted
        )
    said = [record.getMessage().split("'")[1] for record in caplog.records]
    assert sorted(said) == ["cutlass-fna", "q_tile_shape", "run_persistent_kernel"]
    out, lse = new(*tensors, 3, return_lse=True)
    for a, b in zip((out, lse), face(*tensors, 3, return_lse=True), strict=True):
        same(a, b)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_attention_and_merging(framework: Framework) -> None:
    random = np.random.default_rng(0)
    query, key, value = (framework.tensor(random.standard_normal((1, 7, 2, 4)), "float32") for _ in range(3))
    twenty, newest = module(framework, "v020"), module(framework, "v021")
    wanted = framework.numpy(framework.face("attention")(query, key, value, scale=0.7))
    # scale was the fourth argument up to 0.21.4.
    for call in (twenty.attention, newest.attention):
        assert np.array_equal(framework.numpy(call(query, key, value, 0.7)), wanted)
    assert np.array_equal(framework.numpy(newest.attention(query, key, value, False, 0.7)), wanted)
    parts = [newest.attention(query, k, v, scale=0.7, return_lse=True)
             for k, v in ((key[:, :3], value[:, :3]), (key[:, 3:], value[:, 3:]))]  # fmt: skip
    outs, lses = zip(*parts, strict=True)
    merged = newest.merge_attentions(list(outs), list(lses), False, False)
    assert isinstance(merged, tuple)
    only = twenty.merge_attentions(list(outs), list(lses), False)
    for found in (merged[0], only):
        np.testing.assert_allclose(framework.numpy(found), wanted, rtol=0, atol=1e-6)


# --- the Metal backend ----------------------------------------------------------------------------------


@pytest.fixture
def metal(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedHost]:
    """natten_mps with an emulated Apple GPU behind its CPU tensors."""
    reason = metal_emulator.unavailable_reason()
    if reason is not None:
        pytest.skip(reason)
    with installed(monkeypatch, EmulatedHost()) as host:
        yield host


def test_old_and_new_calls_run_on_metal(metal: EmulatedHost) -> None:
    old, new = module(MPS, "v014"), module(MPS, "v020")
    arrays = heads_first_arrays(1, 3)
    query, key, value, rpb = (torch.tensor(arrays[n], dtype=torch.float32) for n in ("query", "key", "value", "rpb"))

    def split() -> torch.Tensor:
        attn = old.natten1dqkrpb(query, key, rpb, 3, 2).softmax(-1)
        return old.natten1dav(attn, value, 3, 2)

    heads_last = [tensor.movedim(1, -2) for tensor in (query, key, value)]
    found = split(), new.na1d(*heads_last, 3, 2, 1, backend="cutlass-fna")
    assert [name.partition("_r1")[0] for name in metal.names] == ["na_qk", "na_av", "na_fwd"]
    with natten_mps.use_backend("pure"):
        wanted = split(), natten_mps.na1d(*heads_last, 3, 2, 1)
    assert len(metal.names) == 3
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)
