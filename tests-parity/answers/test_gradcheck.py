"""Derivatives against finite differences in float64, and the derivatives that only the dense backend has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cases import BY_NAME, CASES, INPUTS, Case, inputs
from frameworks import FRAMEWORKS, MLX, MPS, OURS, Framework, Path

# gradcheck does not accept empty tensors, and large problems would need larger steps than are good in float64.
SMALL = tuple(
    case for case in CASES if case.batch and case.additional != 0 and np.prod((case.heads, *case.shape)) <= 150
)
# A whole Jacobian takes two calls per input element, so it is computed for these tiny cases only.
TINY = (
    BY_NAME["seq-one-token"],
    BY_NAME["seq-dim1"],
    replace(BY_NAME["seq-rpb-additional-gqa"], shape=(7,), head_dim=2, head_dim_v=1, additional=2),
    replace(BY_NAME["img-mixed"], shape=(5, 4), kernel_size=(2, 2), stride=(2, 1), head_dim=1, head_dim_v=2),
)
BACKENDS = ("pure", MPS.compiled)


def leaves(case: Case) -> tuple[tuple[str, ...], list[torch.Tensor]]:
    arrays = inputs(case)
    names = tuple(name for name in INPUTS if name in arrays)
    return names, [MPS.tensor(arrays[name]).requires_grad_() for name in names]


def call(case: Case, names: tuple[str, ...], backend: str) -> Any:
    def attend(*given: torch.Tensor) -> Any:
        by_name = dict(zip(names, given, strict=True))
        return MPS.face(case.face)(**by_name, **case.window, scale=case.scale, return_lse=True, backend=backend)

    return attend


def test_enough_problems_are_checked() -> None:
    assert len(SMALL) >= 40
    assert {
        "rpb",
        "additional",
        "causal",
        "stride",
        "dilation",
        "mqa",
        "gqa",
        "rank1",
        "rank2",
        "rank3",
    } <= set().union(*(case.tags for case in SMALL))


@pytest.mark.parametrize("case", SMALL, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_first_derivatives(case: Case, backend: str) -> None:
    """Of out and lse, in a random direction of all inputs at once (gradcheck's fast mode)."""
    names, given = leaves(case)
    with MPS.watch() as ran:
        assert torch.autograd.gradcheck(call(case, names, backend), given, fast_mode=True, check_batched_grad=False)
    assert ran == {backend}


@pytest.mark.parametrize("case", TINY, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_first_derivatives_entry_by_entry(case: Case, backend: str) -> None:
    """The whole Jacobian of the smallest cases."""
    names, given = leaves(case)
    with MPS.watch() as ran:
        assert torch.autograd.gradcheck(call(case, names, backend), given)
    assert ran == {backend}


@pytest.mark.parametrize("name", ["seq-rpb-additional-gqa", "img-single", "seq-causal-stride"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_split_ops(name: str, backend: str) -> None:
    case = BY_NAME[name]
    arrays = inputs(case)
    given = [MPS.tensor(arrays[n]).requires_grad_() for n in ("query", "key", "value", "rpb") if n in arrays]
    query, key, value = given[:3]
    rpb = {"rpb": given[3]} if case.rpb else {}

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rpb: Any = None) -> torch.Tensor:
        logits = MPS.face(f"{case.face}_qk")(query, key, **case.window, rpb=rpb, backend=backend)
        return MPS.face(f"{case.face}_av")(torch.softmax(logits, -1), value, **case.window, backend=backend)

    with MPS.watch() as ran:
        assert torch.autograd.gradcheck(attend, (query, key, value, *rpb.values()), fast_mode=True)
    assert ran == {backend}


@pytest.mark.parametrize("case", SMALL, ids=str)
@pytest.mark.parametrize("backend", ["pure", MLX.compiled])
def test_first_derivatives_of_mlx(case: Case, backend: str) -> None:
    """Of out and lse, in a random direction of all inputs at once, by central differences."""
    arrays, random, step = inputs(case), np.random.default_rng(0), 1e-5
    names = tuple(name for name in INPUTS if name in arrays)
    directions = {name: random.standard_normal(arrays[name].shape) for name in names}
    cotangents = [MLX.tensor(arrays[name]) for name in ("d_out", "d_lse")]

    def attend(*given: Any) -> Any:
        by_name = dict(zip(names, given, strict=True))
        return MLX.face(case.face)(**by_name, **case.window, scale=case.scale, return_lse=True, backend=backend)

    def total(distance: float) -> float:
        """The outputs, weighted by their cotangents, at that distance along the direction."""
        outputs = attend(*(MLX.tensor(arrays[name] + distance * directions[name]) for name in names))
        return sum(float(np.sum(MLX.numpy(a) * MLX.numpy(b))) for a, b in zip(outputs, cotangents, strict=True))

    with MLX.watch() as ran:
        _, gradients = MLX.vjp(attend, [MLX.tensor(arrays[name]) for name in names], cotangents)
        slope = (total(step) - total(-step)) / (2 * step)
    assert ran == {backend}
    terms = [np.sum(MLX.numpy(g) * directions[name]) for g, name in zip(gradients, names, strict=True)]
    assert abs(sum(terms) - slope) <= 1e-6 * sum(map(abs, terms)), case


@pytest.mark.parametrize("name", ["seq-dim1", "seq-causal-even", "seq-rpb-additional-gqa", "img-single", "vol-whole"])
def test_second_derivatives_of_the_dense_backend(name: str) -> None:
    names, given = leaves(BY_NAME[name])
    with MPS.watch() as ran:
        assert torch.autograd.gradgradcheck(call(BY_NAME[name], names, "dense"), given, fast_mode=True)
    assert ran == {"dense"}


def test_forward_mode_of_the_dense_backend() -> None:
    names, given = leaves(BY_NAME["img-single"])
    with MPS.watch() as ran:
        assert torch.autograd.gradcheck(
            call(BY_NAME["img-single"], names, "dense"), given, fast_mode=True, check_forward_ad=True
        )
    assert ran == {"dense"}


# --- derivatives that the kernels do not have --------------------------------------------------------

# The shapes of each op's tensors.
OPS = {
    "na1d": ((1, 5, 1, 2),) * 3,
    "na2d": ((1, 5, 5, 1, 2),) * 3,
    "na3d": ((1, 3, 3, 3, 1, 2),) * 3,
    "na1d_qk": ((1, 5, 1, 2),) * 2,
    "na2d_av": ((1, 5, 5, 1, 9), (1, 5, 5, 1, 2)),
    "attention": ((1, 5, 1, 2),) * 3,
}


# The split ops have all derivatives; see test_split_derivatives.
FUSED = tuple(op for op in OPS if not op.endswith(("qk", "av")))


def which_have_them(op: str) -> str:
    """The alternative that the error names."""
    return 'use backend="dense"' + ("" if op == "attention" else f", or {op}_qk, a softmax and {op}_av")


def given_to(framework: Framework, op: str) -> list[Any]:
    random = np.random.default_rng(0)
    return [framework.tensor(random.standard_normal(shape)) for shape in OPS[op]]


def of_op(path: Path, op: str) -> Any:
    arguments = {} if op == "attention" else {"kernel_size": 3}
    return lambda *given: path.framework.face(op)(*given, **arguments, backend=path.backend)


@pytest.mark.parametrize("op", FUSED)
@pytest.mark.parametrize("path", OURS, ids=str)
def test_a_second_derivative_is_refused(path: Path, op: str) -> None:
    with pytest.raises(NotImplementedError) as caught:
        second_derivative(path, op)
    assert str(caught.value) == f"{op}: second derivatives are not implemented; {which_have_them(op)}"


@pytest.mark.parametrize("op", FUSED)
@pytest.mark.parametrize("path", OURS, ids=str)
def test_forward_mode_is_refused(path: Path, op: str) -> None:
    with pytest.raises(NotImplementedError) as caught:
        forward_derivative(path, op)
    assert str(caught.value) == f"{op}: forward-mode derivatives are not implemented; {which_have_them(op)}"


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_the_dense_backend_has_what_is_refused(framework: Framework, op: str) -> None:
    """Both packages find the same numbers."""
    with framework.watch() as ran:
        second = second_derivative(Path(framework, "dense"), op)
        forward = forward_derivative(Path(framework, "dense"), op)
    assert ran == {"dense"}
    np.testing.assert_allclose(second, second_derivative(Path(MPS, "dense"), op), rtol=0, atol=1e-12)
    np.testing.assert_allclose(forward, forward_derivative(Path(MPS, "dense"), op), rtol=0, atol=1e-12)


def second_derivative(path: Path, op: str) -> Any:
    """Gradient of |d sum(out^2) / d query|^2."""
    attend, given = of_op(path, op), given_to(path.framework, op)
    if path.framework is MPS:
        first, *others = given
        first.requires_grad_()
        (gradient,) = torch.autograd.grad((attend(first, *others) ** 2).sum(), first, create_graph=True)
        return torch.autograd.grad((gradient**2).sum(), first)[0].numpy()
    import mlx.core as mx

    assert path.framework is MLX
    gradient_of = mx.grad(lambda query: (attend(query, *given[1:]) ** 2).sum())
    found = mx.grad(lambda query: (gradient_of(query) ** 2).sum())(given[0])
    mx.eval(found)
    return np.array(found)


def forward_derivative(path: Path, op: str) -> Any:
    """Directional derivative along ones in the first tensor."""
    attend, (first, *others) = of_op(path, op), given_to(path.framework, op)
    if path.framework is MPS:
        return torch.func.jvp(lambda t: attend(t, *others), (first,), (torch.ones_like(first),))[1].numpy()
    import mlx.core as mx

    _, (tangent,) = mx.jvp(lambda t: attend(t, *others), [first], [mx.ones_like(first)])
    mx.eval(tangent)
    return np.array(tangent)
