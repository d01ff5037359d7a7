"""Upstream's helpers: results and errors, against definitions written out here."""

from __future__ import annotations

import itertools
import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from frameworks import FRAMEWORKS, MLX, MPS, Framework

import natten_mps
from natten_mps.compat import v014, v0141, v015, v017, v020, v021

Ints = tuple[int, ...]

# --- checks of arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_arguments_per_axis(framework: Framework) -> None:
    old, new = (framework.module(f"compat.{name}").utils for name in ("v017", "v021"))
    checks = new.checks
    assert checks.check_all_args(2, 3, None, (1, 2), None) == ((3, 3), (1, 1), (1, 2), (False, False))
    assert old.check_all_args(1, [5], 2, True) == ((5,), (2,), (True,))
    assert old.get_num_na_weights((3, 5)) == 15 and checks.check_kernel_schedule("pp").name == "WarpSpecializedPingpong"
    for call, words in (
        (lambda: checks.check_kernel_size_arg(2, 0), "kernel_size must be one int >= 1 or 2 of them; got 0"),
        (lambda: checks.check_kernel_size_arg(2, (3, 3, 3)), r"got \(3, 3, 3\)"),
        (lambda: checks.check_dilation_arg(1, True), "dilation must be one int >= 1 or 1 of them; got True"),
        (lambda: checks.check_causal_arg(2, 1), "is_causal must be one bool or 2 of them; got 1"),
        (lambda: checks.check_tile_shape((1, 2, 3, 4)), "tile_shape must be at most 3 ints"),
        (lambda: checks.check_kernel_schedule("fast"), "kernel_schedule must be one of non, coop, pp; got 'fast'"),
        (lambda: old.check_tiling_config(2, ((8, 8),)), "tiling_config must be two tile shapes"),
        (lambda: old.check_backward_tiling_config(1, ((8,), (8,), (1,))), "two tile shapes, splits and a bool"),
        (lambda: new.tuples.ceil_div_tuple((1, 2), (1,)), "zip"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert new.tuples.ceil_div_tuple((7, 8), (4, 4)) == (2, 2) and new.tuples.sub_tuple((5, 3), (1, 2)) == (4, 1)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_checks_of_tensors(framework: Framework) -> None:
    checks = framework.module("compat.v021").utils.checks

    def tensor(*shape: int, dtype: str = "float32") -> Any:
        return framework.tensor(np.zeros(shape), dtype)

    query, key = tensor(1, 6, 7, 4, 8), tensor(1, 6, 7, 2, 8)
    assert checks.na_tensor_checks(query, key, key) is True
    assert not checks.na_tensor_checks(query, key, key, supports_gqa_mqa=False, raise_error=False)
    assert not checks.na_tensor_checks(query, tensor(1, 6, 6, 2, 8), key, raise_error=False)
    for call, error in (
        (lambda: checks.na_tensor_checks(query, key, key, supports_gqa_mqa=False), ValueError),
        (lambda: checks.na_tensor_checks(query, key, tensor(1, 6, 7, 2, 4), must_match_head_dims=True), ValueError),
        (lambda: checks.na_tensor_checks(query, tensor(1, 6, 7, 2, 8, dtype="float16"), key), TypeError),
        (lambda: checks.fmha_tensor_checks(query, key, key), ValueError),
        (lambda: checks.additional_kv_tensor_checks(query, key, key, tensor(1, 3, 2, 8)), ValueError),
        (lambda: checks.check_args_against_input(query, (3, 3), (1, 1), (1, 3), (False, False)), ValueError),
        (lambda: checks.check_args_against_input(query, (3, 3), (4, 1), (1, 1), (False, False)), ValueError),
    ):
        with pytest.raises(error):
            call()
    flat = tensor(2, 9, 4, 8)
    assert checks.fmha_tensor_checks(flat, tensor(2, 5, 2, 8), tensor(2, 5, 2, 8))
    checks.additional_kv_tensor_checks(query, key, key, tensor(1, 3, 2, 8), tensor(1, 3, 2, 8))
    assert checks.is_self_attention(query, (6, 7), (False, False), False)
    assert not checks.is_self_attention(query, (6, 7), (False, True), False)
    assert checks.is_self_attention(flat, (9,), (True,), False) and not checks.is_self_attention(
        flat, (9,), (True,), True
    )
    found = framework.module("compat.v021").backends
    names = found.get_compatible_backends(query, key, key, torch_compile=False)
    assert names[0] == found.choose_backend(query, key, key, False) and {"pure", "dense"} <= set(names)
    # Backends that are offered are accepted.
    for name in names:
        framework.face("na2d")(query, key, key, 3, backend=name)
    assert found.choose_fmha_backend(flat, flat, flat, True, False, False) in names


def test_packed_arguments() -> None:
    checks = v021.utils.checks
    query = torch.zeros(1, 9, 2, 4)
    assert checks.varlen_tensor_checks(query, query, query) == (None, None, 0, 0)
    made = checks.varlen_tensor_checks(query, query, query, torch.tensor([4, 5]), torch.tensor([2, 7]))
    assert [made[0].tolist(), made[1].tolist(), *made[2:]] == [[0, 4, 9], [0, 2, 9], 5, 7]
    again = checks.varlen_tensor_checks(query, query, query, None, None, *made)
    assert again == made
    with pytest.raises(ValueError, match="max_seqlen_KV"):
        checks.varlen_tensor_checks(query, query, query, None, None, *made[:3])


# --- counts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_counts_of_operations(framework: Framework) -> None:
    flops = framework.module("compat.v017").flops
    last, first, window = (2, 5, 7, 3, 4), (2, 3, 5, 7, 4), (3, 5)
    product = 2 * 3 * 5 * 7 * 15 * 4
    more = (window, 1, False)
    assert flops.na_qk_flop_count(last, last, *more, True) == flops.na_qk_flop_count(first, first, *more, False)
    assert flops.na_qk_flop_count(last, last, *more, True, return_macs=True) == product
    assert flops.na_av_flop_count((2, 3, 5, 7, 15), first, *more, False) == 2 * product
    assert flops.fna_flop_count(last, last, last, *more, True) == 4 * product
    with pytest.raises(ValueError, match="shapes must be equal"):
        flops.fna_flop_count(last, last, first, *more, True)
    query, logits = (framework.tensor(np.zeros(shape), "float32") for shape in (first, (*first[:-1], 15)))
    assert flops.qk_2d_rpb_flop([query, query, None], [logits]) == product + product // 4
    assert flops.av_2d_flop([logits, query], [query]) == product
    older = framework.module("compat.v014").flops
    assert older.av_flop([logits, query], [query]) == product


def test_torchs_own_counter() -> None:
    """FlopCounterMode counts forward and backward of every op, modules included, like upstream."""
    from torch.utils.flop_counter import FlopCounterMode

    query, rpb = torch.randn(2, 5, 7, 3, 4, requires_grad=True), torch.randn(3, 5, 5)
    product = 2 * 2 * 5 * 7 * 3 * 9 * 4
    flat = torch.randn(1, 8, 2, 4)
    heads_first = query.detach().movedim(-2, 1)

    def count(call: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            call()
        return int(counter.get_total_flops())

    assert count(lambda: natten_mps.na2d(query.detach(), query.detach(), query.detach(), 3)) == 2 * product
    assert count(lambda: natten_mps.na2d(query, query, query, 3).sum().backward()) == 7 * product
    assert count(lambda: v014.natten2dqkrpb(heads_first, heads_first, rpb, 3, 1)) == product
    assert count(lambda: natten_mps.attention(flat, flat, flat)) == 2 * (2 * 8 * 2 * 8 * 4)
    # One product over D and one over D_v, for the keys of the window and additional ones; the split ops have one each.
    wide, more = torch.randn(2, 5, 7, 3, 8), (torch.randn(2, 6, 3, 4), torch.randn(2, 6, 3, 8))
    given, tokens = (query.detach(), query.detach(), wide), 2 * 5 * 7 * 3
    added = {"additional_keys": more[0], "additional_values": more[1]}
    assert count(lambda: natten_mps.na2d(*given, 3, **added)) == 2 * tokens * (9 + 6) * (4 + 8)
    logits = natten_mps.na2d_qk(query.detach(), query.detach(), 3)
    assert count(lambda: natten_mps.na2d_av(logits, wide, 3)) == 2 * tokens * 9 * 8
    assert count(lambda: natten_mps.na2d_qk(query, query, 3).sum().backward()) == 3 * product
    module = v017.NeighborhoodAttention2D(12, 3, 3)
    projections = 2 * 70 * (12 * 36 + 12 * 12)
    assert count(lambda: module(torch.randn(2, 5, 7, 12))) == projections + 2 * product
    x = torch.randn(2, 5, 7, 12)
    assert v017.flops.get_flops(module, x) == v017.flops.get_flops(module, (x,)) == (projections + 2 * product) // 2


# --- autograd functions -------------------------------------------------------------------------------


def test_autograd_functions() -> None:
    """apply() equals the face, forward and backward, in a subclass too."""
    query, key = (torch.randn(2, 3, 9, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    rpb = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    more = torch.randn(2, 3, 6, 4, dtype=torch.float64, requires_grad=True)

    class Own(v014.functional.NATTEN1DQKRPBFunction):  # type: ignore[name-defined,misc]
        """A subclass like those that clients write."""

    functional, older = v017.functional, v0141.functional
    last = query.movedim(1, -2)
    for found, wanted in (
        (Own.apply(query, key, rpb, 3, 2), v014.natten1dqkrpb(query, key, rpb, 3, 2)),
        (older.NATTEN1DQKRPBFunction.apply(query, key, rpb, 2), v0141.natten1dqkrpb(query, key, rpb, 2)),
        (
            functional.NeighborhoodAttention1DQKAutogradFunction.apply(query, key, rpb, more, (3,), (2,), (False,)),
            v017.na1d_qk(query, key, 3, 2, more, False, rpb),
        ),
        (
            functional.FusedNeighborhoodAttention1D.apply(last, last, last, rpb, 3, 2, False, 0.5, None, None),
            v017.na1d(last, last, last, 3, 2, False, rpb, 0.5),
        ),
    ):
        cotangent, leaves = torch.randn_like(wanted), (query, key, rpb, more)
        assert torch.equal(found, wanted)
        gradients = (torch.autograd.grad(out, leaves, cotangent, allow_unused=True) for out in (found, wanted))
        for own, other in zip(*gradients, strict=True):
            assert (own is None) == (other is None)
            if own is not None and other is not None:
                torch.testing.assert_close(own, other, rtol=0, atol=1e-12)


# --- nested tensors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batched", [True, False], ids=["items-with-batch", "bare-items"])
def test_nested_tensors(batched: bool) -> None:
    """Nested tensors, additional ones too, in the split ops of 0.15 and 0.17: items are independent."""
    ones = (1,) if batched else ()
    items = [torch.randn(*ones, 2, n, 4, dtype=torch.float64, requires_grad=True) for n in (7, 11)]
    additional = [torch.randn(*ones, 2, 3, 4, dtype=torch.float64) for _ in items]

    def nest(tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.nested.as_nested_tensor(tensors)

    logits = v017.na1d_qk(nest(items), nest(items), 3, 2, nest(additional))
    out = v015.na1d_av(logits, nest(items), 3, 2, nest(additional))
    assert logits.is_nested and out.is_nested
    parts = list(out.unbind())
    (gradient,) = torch.autograd.grad(sum(part.square().sum() for part in parts), items[:1])
    for item, more, part in zip(items, additional, parts, strict=True):
        item, more = (item, more) if batched else (item[None], more[None])
        alone = v017.na1d_av(v017.na1d_qk(item, item, 3, 2, more), item, 3, 2, more)
        assert torch.equal(alone if batched else alone[0], part)
    first, more = (items[0], additional[0]) if batched else (items[0][None], additional[0][None])
    alone = v017.na1d_av(v017.na1d_qk(first, first, 3, 2, more), first, 3, 2, more)
    (wanted,) = torch.autograd.grad(alone.square().sum(), items[:1])
    torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-12)
    nested = v017.nested.na1d_qk_nested(nest(items), nest(items), None, 3, 2)
    assert torch.equal(nested.unbind()[1], v017.na1d_qk(nest(items), nest(items), 3, 2).unbind()[1])
    with pytest.raises(ValueError, match=r"all tensors but the bias must be nested.*'key': 'not nested'"):
        v017.na1d_qk(nest(items), items[0], 3)
    with pytest.raises(ValueError, match=r"equally many items; got \{'query': 2, 'key': 1\}"):
        v017.na1d_qk(nest(items), nest(items[:1]), 3)


def test_knobs_in_a_compiled_call(caplog: pytest.LogCaptureFixture) -> None:
    """Arguments that tune CUDA kernels are ignored in a program traced as a whole; the next eager call logs them."""
    import natten_mps._metal.plan.backends as own

    query, flat = torch.randn(1, 6, 7, 2, 4), torch.randn(1, 9, 2, 4)
    knobs = {"q_tile_shape": (8, 8), "kernel_schedule": "pp", "torch_compile": True}
    natten_mps.na2d(query, query, query, 3)
    natten_mps.attention(flat, flat, flat)
    own.logged.clear()
    caplog.set_level(logging.INFO, "natten")
    for op, tensor, arguments in (
        (natten_mps.na2d, query, {"kernel_size": 3, "backend": "cutlass-fna"} | knobs),
        (v021.neighborhood_attention_generic, query, {"kernel_size": 3, "backend": "hopper-fna"} | knobs),
        (v020.na2d, query, {"kernel_size": 3, "try_fuse_additional_kv": True}),
        (v017.na2d, query, {"kernel_size": 3, "xformers_kwargs": {}}),
        (v021.attention, flat, {"backend": "cutlass-fmha", "q_tile_size": 64}),
    ):

        def call(x: torch.Tensor, op: Any = op, arguments: dict[str, Any] = arguments) -> Any:
            return op(x, x, x, **arguments)

        torch.compiler.reset()
        compiled = torch.compile(call, fullgraph=True, backend="eager")(tensor)
        assert not caplog.records
        torch.testing.assert_close(compiled, call(tensor))
        assert {record.getMessage().partition(" ")[2].split()[-1] for record in caplog.records} == {"ignored"}
        caplog.clear()
        own.logged.clear()


def test_nested_tensors_are_refused_since_0_20() -> None:
    nested = torch.nested.nested_tensor([torch.randn(7, 2, 4), torch.randn(9, 2, 4)])
    for op in (v020.na1d, v021.na1d, natten_mps.na1d):
        with pytest.raises(NotImplementedError, match="varlen"):
            op(nested, nested, nested, 3)


# --- token permutation --------------------------------------------------------------------------------


def position(token: Ints, tile: Ints, groups: Ints, padded: Ints, flip: bool, groups_first: bool) -> int:
    """A token's position among all of a batch item, by definition: digits (group, rest, tile) of each axis."""
    rank = len(token)
    axes = range(rank)[::-1] if flip else range(rank)
    group = [(token[a] % groups[a], groups[a]) for a in axes]
    rest = [(token[a] // groups[a] // tile[a], padded[a] // groups[a] // tile[a]) for a in axes]
    inner = [(token[a] // groups[a] % tile[a], tile[a]) for a in axes]
    found = 0
    for digit, base in (*group, *rest, *inner) if groups_first else (*rest, *inner, *group):
        found = found * base + digit
    return found


SIZES = [
    ((9,), (4,), (2,)),
    ((9, 10), (4, 4), (2, 1)),
    ((6, 5), (2, 3), (1, 2)),
    ((5, 4, 6), (2, 2, 3), (1, 2, 1)),
]


@pytest.mark.parametrize("flip", [True, False], ids=["flipped", "in order"])
@pytest.mark.parametrize(("shape", "tile", "groups"), SIZES)
def test_token_permutation(shape: tuple[int, ...], tile: tuple[int, ...], groups: tuple[int, ...], flip: bool) -> None:
    """In the layouts of both releases, every token is where the definition puts it, padding is zero, and the inverse
    restores the tensor.
    """
    x = torch.arange(1.0, 1 + 2 * math.prod(shape) * 3).reshape(2, *shape, 3, 1).expand(-1, *[-1] * len(shape), -1, 2)
    padded = tuple(-(-n // (t * d)) * t * d for n, t, d in zip(shape, tile, groups, strict=True))
    new, old = v021.token_permute, v020.token_permute
    moved, layout, inside = new.token_permute_operation(x, tile, groups, flip)
    number, tokens = math.prod(groups), math.prod(padded) // math.prod(groups)
    assert moved.shape == (2 * number, tokens, 3, 2) and layout == shape
    assert inside == tuple(n // d for n, d in zip(padded, groups, strict=True))
    in_batch = moved.reshape(2, number * tokens, 3, 2)
    whole, missing = old.maybe_pad(x, tile, groups)
    older, own, rest = old.token_permute(whole, tile, groups, flip)
    assert own == inside and rest == tuple(n // t for n, t in zip(inside, tile, strict=True))
    in_heads = older.reshape(2, tokens * number, 3, 2)
    for token in itertools.product(*map(range, shape)):
        for found, groups_first in ((in_batch, True), (in_heads, False)):
            at = position(token, tile, groups, padded, flip, groups_first)
            assert torch.equal(found[:, at], x[(slice(None), *token)])
    assert (in_batch != 0).sum() == x.numel() == (in_heads != 0).sum()
    assert torch.equal(new.token_unpermute_operation(moved, layout, tile, groups, flip), x)
    back = old.token_unpermute(older, tile, own, rest, groups, flip)
    assert torch.equal(old.maybe_unpad(back, missing), x)


def test_bad_arguments_of_token_permutation() -> None:
    x, tokens = torch.zeros(1, 8, 8, 1, 4), v021.token_permute
    for call, words in (
        (lambda: tokens.token_permute_operation(x, (4,)), "tile_shape must be 2 ints >= 1"),
        (lambda: tokens.token_permute_operation(x, (4, 4), (2,)), "dilation must be 2 ints >= 1"),
        (lambda: v020.token_permute.token_permute(x, (3, 4)), r"shape must be a multiple of tile_shape \* dilation"),
        (lambda: tokens.token_unpermute_operation(x, (8, 8), (4, 4)), r"tensor must be .* \(4-D\)"),
        (lambda: tokens.token_unpermute_operation(x[:, 0], (8, 8), (4, 4), (2, 2)), "batch must be a multiple of 4"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


# --- differences between releases ----------------------------------------------------------------------


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize(
    ("release", "pair"), [("0.20.1", False), ("0.21.0", False), ("0.21.1", False), ("0.21.5", True)]
)
def test_what_merging_returns(release: str, pair: bool, framework: Framework) -> None:
    natten = framework.module("compat").for_version(release)
    outs = [framework.tensor(np.ones((1, 5, 2, 4)), "float32")] * 2
    lses = [framework.tensor(np.zeros((1, 5, 2)), "float32")] * 2
    assert isinstance(natten.merge_attentions(outs, lse_tensors=lses), tuple) == pair
    assert isinstance(natten.attn_merge.merge_attentions(outs, lse_tensors=lses), tuple) == pair
    found = framework.face("merge_attentions")(outs, lse_tensors=lses, torch_compile=True)
    for own, other in zip(found, framework.face("merge_attentions")(outs, lses), strict=True):
        assert np.array_equal(framework.numpy(own), framework.numpy(other))


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_modules_of_each_release(framework: Framework) -> None:
    """A scale of False means None. 'dim' is accepted where a release had it; elsewhere the error names the releases
    that had it.
    """

    def made(release: str) -> Any:
        return framework.module("compat").for_version(release)

    for release, args in (("0.14.4", (8, 3, 2)), ("0.14.6", (8, 2, 3)), ("0.17.5", (8, 2, 3)), ("0.21.7", (8, 2, 3))):
        assert made(release).NeighborhoodAttention2D(*args, qk_scale=False).scale == 4**-0.5
        assert made(release).NeighborhoodAttention2D(*args, qk_scale=0.5).scale == 0.5
    assert made("0.20.0").NeighborhoodAttention2D(dim=8, num_heads=2, kernel_size=3).embed_dim == 8
    forms = "v0141, v0145, v014, v015, v017"
    words = f"'dim'; it is 'embed_dim' here, and 'dim' is in the call forms {forms}, which compat.for_version and"
    with pytest.raises(TypeError, match=words):
        made("0.21.7").NeighborhoodAttention2D(dim=8, num_heads=2, kernel_size=3)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'dilatation'$"):
        made("0.21.7").NeighborhoodAttention2D(8, 2, 3, dilatation=2)
    assert made("0.14.4").NeighborhoodAttention is made("0.14.4").NeighborhoodAttention2D
    for rank in (1, 2, 3):
        generic = made("0.21.7").modules.NeighborhoodAttentionGeneric(rank, 8, 2, 3)
        assert generic.rank == rank and generic.kernel_size == (3,) * rank
    with pytest.raises(ValueError, match="na_dim must be one of 1, 2, 3; got 4"):
        made("0.21.7").modules.NeighborhoodAttentionGeneric(4, 8, 2, 3)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_initial_switches(framework: Framework) -> None:
    """KV parallelism is off in 0.17 and on in later generations; each generation has its own settings."""
    old, new = (framework.module(f"compat.{name}") for name in ("v017", "v021"))
    for each in (old, new):
        each.NattenContext.reset()
    old.AutotunerContext.reset()
    assert not old.is_kv_parallelism_in_fused_na_enabled() and new.is_kv_parallelism_in_fused_na_enabled()
    old.use_kv_parallelism_in_fused_na(True)
    new.use_kv_parallelism_in_fused_na(False)
    assert old.is_kv_parallelism_in_fused_na_enabled() and not new.is_kv_parallelism_in_fused_na_enabled()
    old.force_flex_attention()
    assert old.context.should_use_flex_attention() and old.context.should_force_flex_attention()
    old.use_autotuner(True, warmup_steps_backward=3)
    assert old.context.AutotunerContext.enabled_for_forward and old.context.AutotunerContext.warmup_steps_backward == 3
    for each in (old, new):
        each.NattenContext.reset()
    old.AutotunerContext.reset()
    assert not old.is_autotuner_enabled() and new.is_kv_parallelism_in_fused_na_enabled()


def test_submodules_are_imported() -> None:
    import natten_mlx.compat.v017.flops as mlx_flops
    import natten_mps.compat.v021.utils.checks as checks

    assert checks is v021.utils.checks and mlx_flops is MLX.module("compat.v017").flops
    assert MPS.module("compat.v021.backends.fna").na2d_cutlass_fna is v021.backends.na2d_cutlass_fna
    query = torch.randn(1, 6, 7, 2, 4)
    wanted = natten_mps.na2d(query, query, query, 3, 2, return_lse=True)
    found = v021.backends.reference.na2d_reference(query, query, query, 3, 2, return_lse=True)
    assert all(torch.equal(own, other) for own, other in zip(found, wanted, strict=True))
