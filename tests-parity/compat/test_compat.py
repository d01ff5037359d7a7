"""Calls in the forms of NATTEN's generations: results and gradients."""

from __future__ import annotations

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
ALL, FLAT, VOLUME = (1, 2, 3), (1, 2), (3,)


def module(framework: Framework, generation: str) -> Any:
    return framework.module(f"compat.{generation}")


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
    """The logits of a call that is not traced."""
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
    more = [framework.tensor(arrays[n][:, :, 0].reshape(2, -1, 2, 4), "float32") for n in ("key", "value")]
    face, name = framework.face(f"na{rank}d"), f"na{rank}d"

    def same(found: Any, wanted: Any) -> None:
        assert np.array_equal(framework.numpy(found), framework.numpy(wanted))

    old = getattr(module(framework, "v017"), name)
    same(old(*tensors, 3, 1, False, rpb, 0.3), face(*tensors, 3, rpb=rpb, scale=0.3))
    wanted = face(*tensors, 3, is_causal=True, additional_keys=more[0], additional_values=more[1])
    same(old(*tensors, 3, 1, True, None, None, *more), wanted)
    caplog.set_level(logging.INFO, "natten")
    framework.module("_metal.plan.backends").logged.clear()
    for generation in ("v020", "v021"):
        new = getattr(module(framework, generation), name)
        same(new(*tensors, 3, 2, 1, True, 0.3), face(*tensors, 3, 2, 1, True, 0.3))
        knobs = {"backend": "cutlass-fna", "q_tile_shape": (8,) * rank, "run_persistent_kernel": False}
        generic = module(framework, generation).neighborhood_attention_generic
        same(generic(*tensors, 3, additional_keys=more[0], additional_values=more[1], is_causal=True, **knobs), wanted)
    logged = [record.getMessage().split("'")[1] for record in caplog.records]
    assert sorted(logged) == ["cutlass-fna", "q_tile_shape", "run_persistent_kernel"]
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
    halves = (key[:, :3], value[:, :3]), (key[:, 3:], value[:, 3:])
    parts = [newest.attention(query, *half, scale=0.7, return_lse=True) for half in halves]
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
        pytest.skip(f"Metal kernels cannot be executed here: {reason}")
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
