"""``mx.compile(shapeless=True)``: a function traced for one size, called with another, is right or raises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import pytest
from frameworks import MLX
from mlx_abilities import needs_mapped_padding

Arrays = list[mx.array]
LSE = {"return_lse": True}


def tokens(batch: int, length: int) -> Arrays:
    return [mx.random.normal((batch, length, 2, 4))]


def grids(batch: int, length: int) -> Arrays:
    return [mx.random.normal((batch, length, 5, 2, 4))]


def items(*lengths: int) -> Arrays:
    return [mx.random.normal((length, heads, 4)) for length, heads in zip(lengths, (2, 2), strict=True)]


def face(name: str, *arguments: Any, **more: Any) -> Callable[..., Any]:
    """The op with one array for each of its tensors."""

    def call(x: mx.array) -> Any:
        tensors = (x, x) if name.endswith("_qk") else (x, x, x)
        return MLX.face(name)(*tensors, *arguments, **more)

    return call


def logits_to_out(x: mx.array) -> mx.array:
    return MLX.face("na1d_av")(mx.ones((*x.shape[:-1], 3)) * x[..., :1], x, 3)


def listed(*xs: mx.array) -> Any:
    return MLX.face("na1d_varlen")(list(xs), list(xs), list(xs), None, 3, **LSE)


def result_at(call: Callable[..., Any], *indices: int) -> Callable[..., Any]:
    """One of a call's results, by its index at each level."""

    def one(*xs: mx.array) -> Any:
        found = call(*xs)
        for index in indices:
            found = found[index]
        return found

    return one


NOTHING = {"seqlens_Q": [0, 0], "seqlens_KV": [0, 0]}
NO_KEYS = {"seqlens_Q": [2, 3], "seqlens_KV": [0, 0]}
# The function, the arguments of the trace, and those of the call.
CALLS: dict[str, tuple[Callable[..., Any], Arrays, Arrays]] = {
    "fused": (face("na1d", 3, **LSE), tokens(2, 9), tokens(2, 11)),
    "another batch": (face("na1d", 3), tokens(1, 9), tokens(3, 9)),
    "empty batch": (face("na1d", 3, **LSE), tokens(0, 9), tokens(0, 11)),
    "grid": (face("na2d", 3), grids(1, 7), grids(1, 8)),
    "attention": (face("attention", **LSE), tokens(1, 9), tokens(1, 11)),
    "attention of nothing": (face("attention", **LSE), tokens(0, 9), tokens(0, 11)),
    "qk": (face("na1d_qk", 3), tokens(1, 9), tokens(1, 11)),
    "qk of nothing": (face("na1d_qk", 3), tokens(0, 9), tokens(0, 11)),
    "av": (logits_to_out, tokens(1, 9), tokens(1, 11)),
    "av of nothing": (logits_to_out, tokens(0, 9), tokens(0, 11)),
    "varlen": (face("na1d_varlen", [9, 4], 3, **LSE), tokens(2, 9), tokens(2, 11)),
    "varlen of empty items": (face("na1d_varlen", [0, 0], 3, **LSE), tokens(2, 9), tokens(2, 11)),
    "out of empty items": (face("na2d_varlen", [[0, 5], [0, 0]], 3), grids(2, 9), grids(2, 11)),
    "lse of empty items": (result_at(face("na1d_varlen", [0, 0], 3, **LSE), 1), tokens(2, 9), tokens(2, 11)),
    "varlen of no items": (face("na1d_varlen", [], 3, **LSE), tokens(0, 9), tokens(0, 11)),
    "a list": (listed, items(5, 6), items(5, 7)),
    "a list's empty item": (result_at(listed, 0, 0), items(0, 5), [mx.zeros((0, 3, 4)), *items(5, 5)[1:]]),
    "packed": (face("attention", seqlens_Q=[4, 5], seqlens_KV=[4, 5]), tokens(1, 9), tokens(1, 11)),
    "packed without tokens": (face("attention", **NOTHING, **LSE), tokens(1, 9), tokens(1, 11)),
    "lse without tokens": (result_at(face("attention", **NOTHING, **LSE), 1), tokens(1, 9), tokens(1, 11)),
    "packed without keys": (face("attention", **NO_KEYS), tokens(1, 9), tokens(1, 11)),
}
MAPPED = {
    "tokens": (mx.vmap(face("na1d", 3)), [mx.ones((2, 1, 9, 2, 4))], [mx.ones((2, 1, 11, 2, 4))]),
    "nothing": (mx.vmap(face("na1d", 3)), [mx.ones((2, 0, 9, 2, 4))], [mx.ones((2, 0, 11, 2, 4))]),
}


@pytest.fixture(autouse=True, params=["nanobind", "pure", "dense"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    MLX.package.set_backend(request.param)
    yield request.param


def flat(found: Any) -> Arrays:
    return [found] if isinstance(found, mx.array) else [array for each in found for array in flat(each)]


def refuses(call: Callable[..., Any], traced: Arrays, given: Arrays) -> bool:
    """Whether the compiled function raises; if it does not, its results must equal those of the function itself."""
    compiled = mx.compile(lambda *xs: flat(call(*xs)), shapeless=True)
    try:
        compiled(*traced)
        found = compiled(*given)
    except ValueError as error:
        # Before 0.32.2, MLX takes no maximum of nothing, and dense meets that first.
        assert "infer" in str(error) or "zero size array" in str(error)
        return True
    wanted = flat(call(*given))
    assert [array.shape for array in found] == [array.shape for array in wanted]
    assert all(mx.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True))
    return False


@pytest.mark.parametrize("name", CALLS)
def test_a_call_traced_for_one_size_refuses_others(name: str) -> None:
    call, traced, given = CALLS[name]
    assert refuses(call, traced, given)


@needs_mapped_padding
@pytest.mark.parametrize("name", MAPPED)
def test_a_mapped_call_traced_for_one_size_refuses_others(name: str) -> None:
    assert refuses(*MAPPED[name])


@pytest.mark.parametrize("name", ["fused", "empty batch", "qk", "av", "varlen of empty items", "packed without keys"])
def test_its_gradient_is_right_or_refused(name: str) -> None:
    """A gradient that does not depend on the sizes, such as zeros, may be right."""
    call, traced, given = CALLS[name]
    refuses(mx.grad(lambda *xs: sum(array.sum() for array in flat(call(*xs)))), traced, given)


def test_merged_parts_fit_any_size() -> None:
    """Plain operations without sizes of their own."""

    def call(x: mx.array) -> Any:
        return MLX.face("merge_attentions")([x, 2 * x], [x.sum(-1), x.max(-1)])

    assert not refuses(call, tokens(2, 9), tokens(3, 11))
