"""Derivatives of the split ops beyond first-order reverse mode: forward mode, second derivatives, and any mixture.

Both ops are linear in each of their tensors, so their derivatives are the same ops again. Compared with finite
differences in float64, and with the dense backend, which is plain operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import BY_NAME, Array, Case, inputs, slot_inputs
from frameworks import MLX, MPS, OURS, Framework, Path, held_slots
from torch.autograd import forward_ad

from natten_mps import compat

NAMES = ("seq-rpb-additional-gqa", "seq-causal-dilated-stride", "img-causal", "img-rpb-everything", "vol-causal")
CASES = tuple(BY_NAME[name] for name in NAMES)
OPS = ("qk", "av")
EVERY = [(case, op) for case in CASES for op in OPS]
each_op = pytest.mark.parametrize(("case", "op"), EVERY, ids=[f"{case}-{op}" for case, op in EVERY])
each_path = pytest.mark.parametrize("path", OURS, ids=str)


def arrays_of(case: Case, op: str) -> dict[str, Array]:
    """The op's tensors by name."""
    every = inputs(case) | slot_inputs(case, "float64")
    return {
        name: every[name] for name in (("query", "key", "rpb") if op == "qk" else ("attn", "value")) if name in every
    }


def of_op(framework: Framework, case: Case, op: str, backend: str) -> Callable[..., Any]:
    """The op as a function of its tensors by position, with 0 in slots that hold no key: -inf has no difference
    quotient.
    """
    names, held = tuple(arrays_of(case, op)), held_slots(case)
    arguments: dict[str, Any] = case.window | ({"scale": case.scale} if op == "qk" else {}) | {"backend": backend}

    def call(*tensors: Any) -> Any:
        found = framework.face(f"{case.face}_{op}")(**dict(zip(names, tensors, strict=True)), **arguments)
        if op == "av":
            return found
        if framework is MPS:
            return found.masked_fill(~torch.from_numpy(held), 0.0)
        import mlx.core as mx

        return mx.where(mx.array(held), found, mx.zeros((), found.dtype))

    return call


def given_to(framework: Framework, case: Case, op: str) -> tuple[list[Any], list[Any]]:
    """Tensors and a direction for each."""
    arrays, random = arrays_of(case, op), np.random.default_rng(1)
    return [framework.tensor(a) for a in arrays.values()], [
        framework.tensor(random.standard_normal(a.shape)) for a in arrays.values()
    ]


def test_the_cases_have_what_matters() -> None:
    tags = set().union(*(case.tags for case in CASES))
    assert {"rpb", "gqa", "causal", "stride", "dilation", "rank1", "rank2", "rank3"} <= tags
    assert not all(held_slots(case).all() for case in CASES)


# --- by finite differences ---------------------------------------------------------------------------


@each_op
@pytest.mark.parametrize("backend", ["native", "pure"])
def test_by_finite_differences(case: Case, op: str, backend: str) -> None:
    """Forward mode; reverse over reverse; forward over reverse, in a random direction of all tensors at once."""
    leaves = [tensor.requires_grad_() for tensor in given_to(MPS, case, op)[0]]
    with MPS.watch() as ran:
        call = of_op(MPS, case, op, backend)
        assert torch.autograd.gradcheck(call, leaves, fast_mode=True, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True, check_fwd_over_rev=True)
    assert ran == {backend}


@each_op
@pytest.mark.parametrize("backend", ["nanobind", "pure"])
def test_mlx_by_finite_differences(case: Case, op: str, backend: str) -> None:
    """The op is quadratic along a line, so central differences are exact up to rounding."""
    import mlx.core as mx

    (given, directions), call = given_to(MLX, case, op), of_op(MLX, case, op, backend)
    with MLX.watch() as ran:
        _, (tangent,) = mx.jvp(call, given, directions)
        ahead, behind = (call(*(g + sign * d for g, d in zip(given, directions, strict=True))) for sign in (1.0, -1.0))
        mx.eval(tangent, ahead, behind)
    assert ran == {backend}
    np.testing.assert_allclose(MLX.numpy(tangent), (MLX.numpy(ahead) - MLX.numpy(behind)) / 2, rtol=0, atol=1e-12)
    assert np.abs(MLX.numpy(tangent)).max() > 0.1


# --- against the dense backend --------------------------------------------------------------------------


def jvp(framework: Framework, function: Callable[..., Any], given: list[Any], along: list[Any]) -> Any:
    """The function's tangent."""
    if framework is MPS:
        return torch.func.jvp(function, tuple(given), tuple(along))[1]
    import mlx.core as mx

    return mx.jvp(function, given, along)[1][0]


def grad(framework: Framework, function: Callable[..., Any], given: list[Any]) -> list[Any]:
    """Gradients with respect to all that is given."""
    every = tuple(range(len(given)))
    if framework is MPS:
        return list(torch.func.grad(function, argnums=every)(*given))
    import mlx.core as mx

    return list(mx.grad(function, argnums=every)(*given))


def vmap(framework: Framework, function: Callable[..., Any], given: Array) -> Any:
    if framework is MPS:
        return torch.vmap(function)(framework.tensor(given))
    import mlx.core as mx

    return mx.vmap(function)(framework.tensor(given))


def derivatives(
    framework: Framework, call: Callable[..., Any], given: list[Any], along: list[Any]
) -> dict[str, list[Array]]:
    def pushed(*tensors: Any) -> Any:
        return jvp(framework, call, list(tensors), along)

    def pulled(*tensors: Any) -> Any:
        gradients = grad(framework, lambda *ts: call(*ts).sin().sum(), list(tensors))
        return sum((g * d).sum() for g, d in zip(gradients, along, strict=True))

    def in_one(index: int, tangent: Any) -> Any:
        one = lambda tensor: call(*given[:index], tensor, *given[index + 1 :])  # noqa: E731
        return jvp(framework, one, [given[index]], [tangent])

    both = np.stack([framework.numpy(along[0]), -2 * framework.numpy(along[0])])
    found = {
        "forward": [pushed(*given)],
        "forward of forward": [jvp(framework, pushed, given, along)],
        "forward of reverse": [jvp(framework, pulled, given, along)],
        "reverse of forward": grad(framework, lambda *ts: pushed(*ts).sin().sum(), given),
        "reverse of reverse": grad(framework, pulled, given),
        "mapped": [vmap(framework, lambda tangent: in_one(0, tangent), both)],
        "each alone": [in_one(index, tangent) for index, tangent in enumerate(along)],
    }
    return {name: [framework.numpy(tensor) for tensor in tensors] for name, tensors in found.items()}


@each_op
@each_path
def test_every_mixture_equals_the_dense_backend(path: Path, case: Case, op: str) -> None:
    framework, (given, along) = path.framework, given_to(path.framework, case, op)
    found = {}
    for backend in (path.backend, "dense"):
        with framework.watch() as ran:
            found[backend] = derivatives(framework, of_op(framework, case, op, backend), given, along)
        assert ran == {backend}
    for name, wanted in found["dense"].items():
        for ours, dense in zip(found[path.backend][name], wanted, strict=True):
            scale = np.abs(dense).max()
            np.testing.assert_allclose(ours, dense, rtol=0, atol=1e-12 * max(1.0, scale), err_msg=name)
        assert max(np.abs(each).max() for each in wanted) > 0.1 or (op == "av" and name == "forward of forward")


# --- slots that hold no key --------------------------------------------------------------------------


@pytest.mark.parametrize("path", OURS, ids=str)
def test_slots_without_a_key_have_no_tangent(path: Path) -> None:
    """0, not -inf like their logits; and a NaN tangent of such a weight reaches nothing."""
    case, framework = BY_NAME["img-causal"], path.framework
    (query, key), (d_query, d_key) = given_to(framework, case, "qk")
    (attn, value), (d_attn, d_value) = given_to(framework, case, "av")
    held = np.broadcast_to(held_slots(case), attn.shape)
    d_attn = framework.tensor(np.where(held, framework.numpy(d_attn), np.nan))
    qk = lambda q, k: framework.face("na2d_qk")(q, k, **case.window, backend=path.backend)  # noqa: E731
    av = lambda a, v: framework.face("na2d_av")(a, v, **case.window, backend=path.backend)  # noqa: E731
    with framework.watch() as ran:
        logits = framework.numpy(jvp(framework, qk, [query, key], [d_query, d_key]))
        out = framework.numpy(jvp(framework, av, [attn, value], [d_attn, d_value]))
    assert ran == {path.backend}
    assert not held.all() and np.all(logits[~held] == 0) and np.all(logits[held] != 0)
    assert np.all(np.isfinite(logits)) and np.all(np.isfinite(out))


# --- torch: dual levels, dtypes, call forms of upstream's releases -----------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dual_tensors_and_a_gradient_of_their_tangent(dtype: torch.dtype, torch_path: str) -> None:
    torch.manual_seed(0)
    query, key, along = torch.randn(3, 2, 5, 6, 2, 8).to(dtype)
    key.requires_grad_()
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(MPS.face("na2d_qk")(forward_ad.make_dual(query, along), key, 3)).tangent
    wanted = MPS.face("na2d_qk")(along, key, 3)
    assert tangent is not None and tangent.dtype == dtype and torch.equal(tangent, wanted)
    assert torch.equal(*(torch.autograd.grad(t.float().sin().sum(), key)[0] for t in (tangent, wanted)))


# Call forms of each generation: its ops, the arguments after the tensors, and its tensors for an image of 4 x 5.
IMAGE, SLOTS, RPB, MORE = (2, 3, 4, 5, 4), (2, 3, 4, 5, 9), (3, 5, 5), (2, 3, 6, 4)
FORMS: dict[str, tuple[str, str, tuple[tuple[int, ...], ...], tuple[Any, ...], tuple[str, ...]]] = {
    "v014 qk": ("v014", "natten2dqk", (IMAGE, IMAGE), (3, 1), ()),
    "v014 qkrpb": ("v014", "natten2dqkrpb", (IMAGE, IMAGE, RPB), (3, 1), ()),
    "v014 av": ("v014", "natten2dav", (SLOTS, IMAGE), (3, 1), ()),
    "v015 bias": ("v015", "na2d_qk_with_bias", (IMAGE, IMAGE, RPB), (3, 1), ()),
    "v015 qk": ("v015", "na2d_qk", (IMAGE, IMAGE, MORE), (3, 1), ("additional_keys",)),
    "v017 qk": ("v017", "na2d_qk", (IMAGE, IMAGE, MORE, RPB), (3,), ("additional_keys", "rpb")),
    "v017 av": ("v017", "na2d_av", ((2, 3, 4, 5, 15), IMAGE, MORE), (3,), ("additional_values",)),
}


# Autograd functions of each generation: the arguments of `apply`, with shapes in place of tensors.
LINE = (1, 2, 8, 4)
APPLIED: dict[str, tuple[str, str, tuple[Any, ...]]] = {
    "v0141 qk": ("v0141", "NATTEN1DQKRPBFunction", (LINE, LINE, (2, 5), 2)),
    "v014 av": ("v014", "NATTEN1DAVFunction", ((1, 2, 8, 3), LINE, 3, 2)),
    "v017 qk": ("v017", "NeighborhoodAttention1DQKAutogradFunction", (LINE, LINE, (2, 5), (1, 2, 6, 4), 3, 2, False)),
}


@pytest.mark.parametrize("name", APPLIED)
def test_autograd_functions_of_upstream(name: str, torch_path: str) -> None:
    """Forward mode by finite differences, and the gradient of a tangent."""
    generation, function, shapes = APPLIED[name]
    apply = getattr(getattr(compat, generation).functional, function).apply
    torch.manual_seed(0)
    given = [torch.randn(s, dtype=torch.float64, requires_grad=True) if isinstance(s, tuple) else s for s in shapes]
    assert torch.autograd.gradcheck(apply, given, fast_mode=True, check_forward_ad=True)
    first, second = given[:2]
    along = torch.randn_like(first)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(apply(forward_ad.make_dual(first, along), *given[1:])).tangent
        assert tangent is not None
        (found,) = torch.autograd.grad(tangent.square().sum(), second)
    wanted = apply(along, second, *given[2:]) - apply(torch.zeros_like(along), second, *given[2:])
    torch.testing.assert_close(found, torch.autograd.grad(wanted.square().sum(), second)[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(tangent, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", FORMS)
def test_call_forms_of_upstream(name: str, torch_path: str) -> None:
    """Heads-first, additional tensors included: forward mode and second derivatives by finite differences."""
    generation, face, shapes, window, words = FORMS[name]
    function = getattr(getattr(compat, generation), face)
    first = len(shapes) - len(words)

    def call(*tensors: Any) -> Any:
        return function(*tensors[:first], *window, **dict(zip(words, tensors[first:], strict=True)))

    torch.manual_seed(0)
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True, check_fwd_over_rev=True)
