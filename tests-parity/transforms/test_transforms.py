"""torch's transforms of the compiled and the pure backend: gradients, vmap, compile, autocast, checkpointing.

Each is compared with plain eager calls of the same backend.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import BY_NAME, INPUTS, Case, inputs
from frameworks import MPS
from torch import Tensor

pytestmark = pytest.mark.usefixtures("torch_path")
NAMES = ("seq-causal-dilated-stride", "img-rpb-everything", "vol-gqa-additional")
Attend = Callable[..., Any]


def given_to(case: Case, dtype: str = "float64") -> dict[str, Tensor]:
    arrays = inputs(case, dtype)
    return {name: MPS.tensor(arrays[name], dtype) for name in INPUTS if name in arrays}


def attend(case: Case, names: tuple[str, ...], **options: Any) -> Attend:
    """The case's face as a function of the tensors ``names``."""
    face = MPS.face(case.face)

    def call(*tensors: Tensor) -> Any:
        by_name = dict(zip(names, tensors, strict=True))
        return face(**by_name, **case.window, scale=case.scale, **options)

    return call


def stacked(tensors: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """``size`` different versions of each tensor."""
    return {name: torch.stack([t * (i + 1) / size - i for i in range(size)]) for name, t in tensors.items()}


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


# --- functional gradients ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_functional_gradients(name: str) -> None:
    tensors = given_to(BY_NAME[name])
    call = attend(BY_NAME[name], tuple(tensors), return_lse=True)

    def loss(*given: Tensor) -> Tensor:
        out, lse = call(*given)
        return (out**2).sum() + lse.sin().sum()

    every = tuple(range(len(tensors)))
    found = torch.func.grad(loss, argnums=every)(*tensors.values())
    leaves = [t.clone().requires_grad_() for t in tensors.values()]
    close(found, torch.autograd.grad(loss(*leaves), leaves))
    value, only = torch.func.grad_and_value(loss, argnums=1)(*tensors.values())[::-1]
    close((value, only), (loss(*leaves).detach(), found[1]))
    _, pull = torch.func.vjp(call, *tensors.values())
    out, lse = call(*leaves)
    cotangents = torch.randn_like(out), torch.randn_like(lse)
    close(pull(cotangents), torch.autograd.grad((out, lse), leaves, cotangents))


def test_a_whole_jacobian() -> None:
    """jacrev is vmap over the pullback: each row is one plain gradient."""
    case = BY_NAME["seq-dim1"]
    tensors = given_to(case)
    call = attend(case, tuple(tensors))
    found = torch.func.jacrev(call, argnums=(0, 1, 2))(*tensors.values())
    leaves = [t.clone().requires_grad_() for t in tensors.values()]
    out = call(*leaves)
    for i in range(0, out.numel(), 5):
        wanted = torch.autograd.grad(out.flatten()[i], leaves, retain_graph=True)
        close(tuple(j.flatten(0, out.ndim - 1)[i] for j in found), wanted)


# --- vmap --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, "seq-rpb"])
@pytest.mark.parametrize("mapped", ["all", "query", "key value", "rpb", "additional_keys"])
def test_vmap(name: str, mapped: str) -> None:
    """Over all inputs, over some, and over rpb alone."""
    tensors = given_to(BY_NAME[name])
    over = set(tensors) if mapped == "all" else set(mapped.split()) & set(tensors)
    if not over:
        over = {"value"}  # the case has no such tensor: map another one that no other variant maps alone
    call = attend(BY_NAME[name], tuple(tensors), return_lse=True)
    many = stacked(tensors, 3)
    given = [many[n] if n in over else t for n, t in tensors.items()]
    dims = tuple(0 if n in over else None for n in tensors)
    found = torch.vmap(call, in_dims=dims)(*given)
    wanted = [call(*(many[n][i] if n in over else t for n, t in tensors.items())) for i in range(3)]
    close(found, tuple(torch.stack(part) for part in zip(*wanted, strict=True)))


def test_vmap_over_other_dimensions() -> None:
    case = BY_NAME["img-rpb-everything"]
    tensors = given_to(case)
    call, many = attend(case, tuple(tensors)), stacked(tensors, 2)
    dims = (2, -1, 0, 1, 3, 1)
    given = [many[n].movedim(0, d) for n, d in zip(tensors, dims, strict=True)]
    found = torch.vmap(call, in_dims=dims, out_dims=1)(*given)
    close(found, torch.stack([call(*(many[n][i] for n in tensors)) for i in range(2)], 1))


@pytest.mark.parametrize("name", NAMES)
def test_nested_vmap(name: str) -> None:
    """Queries over one mapped axis, keys over another, everything else shared."""
    tensors = given_to(BY_NAME[name])
    call, queries, keys = (
        attend(BY_NAME[name], tuple(tensors)),
        stacked(tensors, 2)["query"],
        stacked(tensors, 3)["key"],
    )
    shared = list(tensors.values())[2:]
    rest = (None,) * len(shared)
    inner = torch.vmap(call, in_dims=(None, 0, *rest))
    found = torch.vmap(inner, in_dims=(0, None, *rest))(queries, keys, *shared)
    close(found, torch.stack([torch.stack([call(q, k, *shared) for k in keys]) for q in queries]))


@pytest.mark.parametrize("name", [*NAMES, "seq-rpb"])
def test_gradients_per_sample(name: str) -> None:
    """vmap of grad: rpb shared by all samples has a gradient of its own in each."""
    tensors = given_to(BY_NAME[name])
    call, many = attend(BY_NAME[name], tuple(tensors)), stacked(tensors, 3)
    grad = torch.func.grad(lambda *t: (call(*t) ** 2).sum(), argnums=tuple(range(len(tensors))))
    given = [t if n == "rpb" else many[n] for n, t in tensors.items()]
    dims = tuple(None if n == "rpb" else 0 for n in tensors)
    found = torch.vmap(grad, in_dims=dims)(*given)
    wanted = [grad(*(t if n == "rpb" else many[n][i] for n, t in tensors.items())) for i in range(3)]
    close(found, tuple(torch.stack(part) for part in zip(*wanted, strict=True)))


def test_gradients_through_vmap() -> None:
    case = BY_NAME["img-rpb-everything"]
    tensors = given_to(case)
    call, many = attend(case, tuple(tensors)), stacked(tensors, 3)
    leaves = [t.requires_grad_() for t in many.values()]
    found = torch.autograd.grad((torch.vmap(call)(*leaves) ** 2).sum(), leaves)
    wanted = torch.autograd.grad(sum((call(*(t[i] for t in leaves)) ** 2).sum() for i in range(3)), leaves)
    close(found, wanted)


def test_vmap_of_the_other_ops() -> None:
    case = BY_NAME["img-mixed"]
    query, key, value = given_to(case).values()
    window = case.window

    def split(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        logits = MPS.face("na2d_qk")(query, key, **window)
        return MPS.face("na2d_av")(torch.softmax(logits, -1), value, **window)

    def full(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return MPS.face("attention")(query[:, 0], key[:, 1], value[:, 1], True)

    def merged(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        parts = [MPS.face("na2d")(query, k, value, **window, return_lse=True) for k in (key, -key)]
        return MPS.face("merge_attentions")(*map(list, zip(*parts, strict=True)))[0]

    queries = torch.stack([query, 2 * query, -query])
    for function in (split, full, merged):
        close(
            torch.vmap(function, in_dims=(0, None, None))(queries, key, value),
            torch.stack([function(q, key, value) for q in queries]),
        )


# --- compile -----------------------------------------------------------------------------------------


def results_and_gradients(call: Attend, tensors: dict[str, Tensor]) -> tuple[Any, Any]:
    leaves = [t.clone().requires_grad_() for t in tensors.values()]
    found = call(*leaves)
    parts = found if isinstance(found, tuple) else (found,)
    loss = sum((part.float() ** 2).sum() for part in parts)
    return parts, torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("name", NAMES)
def test_compile(name: str) -> None:
    """The whole graph, forward and backward, without a break."""
    torch.compiler.reset()
    tensors = given_to(BY_NAME[name], "float32")
    call = attend(BY_NAME[name], tuple(tensors), return_lse=True)
    compiled = torch.compile(lambda *t: tuple(2 * part for part in call(*t)), fullgraph=True, backend="aot_eager")
    eager = results_and_gradients(lambda *t: tuple(2 * part for part in call(*t)), tensors)
    torch.testing.assert_close(results_and_gradients(compiled, tensors), eager, rtol=0, atol=1e-5)


def test_compile_for_inference_follows_the_shape() -> None:
    """No input needs a gradient; called again with other sizes, the compiled function computes those."""
    torch.compiler.reset()
    call = attend(BY_NAME["img"], ("query", "key", "value"))
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for shape in ((1, 5, 6, 2, 4), (2, 7, 4, 2, 4), (1, 9, 9, 1, 3)):
        given = torch.randn(3, *shape).unbind()
        assert torch.equal(compiled(*given), call(*given))
        with torch.no_grad():
            assert torch.equal(compiled(*given), call(*given))


@pytest.mark.parametrize("needs_gradient", [False, True])
def test_compile_with_one_tensor_for_all(needs_gradient: bool) -> None:
    torch.compiler.reset()
    call = attend(BY_NAME["seq"], ("query", "key", "value"))
    compiled = torch.compile(lambda x: call(x, x, x), fullgraph=True, backend="aot_eager")
    query = torch.randn(1, 9, 2, 4, dtype=torch.float64)
    close(compiled(query), call(query, query, query))
    if needs_gradient:
        query.requires_grad_()
        (found,) = torch.autograd.grad(compiled(query).sin().sum(), query)
        (wanted,) = torch.autograd.grad(call(query, query, query).sin().sum(), query)
        close(found, wanted)


def test_compile_the_split_ops() -> None:
    torch.compiler.reset()
    tensors = given_to(BY_NAME["seq-gqa"], "float32")

    qk, av = MPS.face("na1d_qk"), MPS.face("na1d_av")

    def split(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return av(qk(query, key, 5).softmax(-1), value, 5)

    compiled = torch.compile(split, fullgraph=True, backend="aot_eager")
    found, wanted = (results_and_gradients(function, tensors) for function in (compiled, split))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_compile_raises_what_eager_raises() -> None:
    torch.compiler.reset()
    face = MPS.face("na1d")
    compiled = torch.compile(lambda q: face(q, q, q, 3), backend="aot_eager")
    with pytest.raises(ValueError, match="must not exceed the axis length"):
        compiled(torch.ones(1, 2, 1, 4))
    assert compiled(torch.ones(1, 3, 1, 4)).shape == (1, 3, 1, 4)


@pytest.mark.all
def test_compile_with_inductor() -> None:
    """torch's default compiler, which needs a C++ compiler."""
    torch.compiler.reset()
    tensors = given_to(BY_NAME["img-rpb-everything"], "float32")
    call = attend(BY_NAME["img-rpb-everything"], tuple(tensors), return_lse=True)
    found = results_and_gradients(torch.compile(call, fullgraph=True), tensors)
    torch.testing.assert_close(found, results_and_gradients(call, tensors), rtol=0, atol=1e-5)


# --- autocast, checkpointing, threads ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["img-rpb-everything", "seq-gqa"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(name: str, dtype: torch.dtype) -> None:
    """All tensors are cast first; gradients come back in the dtypes of the inputs."""
    tensors = given_to(BY_NAME[name], "float32")
    call = attend(BY_NAME[name], tuple(tensors), return_lse=True)
    leaves = [t.clone().requires_grad_() for t in tensors.values()]
    with torch.autocast("cpu", dtype):
        out, lse = call(*leaves)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    gradients = torch.autograd.grad((out.float() ** 2).sum() + lse.sum(), leaves)
    assert {g.dtype for g in gradients} == {torch.float32}
    cast = [t.to(dtype).requires_grad_() for t in tensors.values()]
    wanted_out, wanted_lse = call(*cast)
    wanted = torch.autograd.grad((wanted_out.float() ** 2).sum() + wanted_lse.sum(), cast)
    assert torch.equal(out, wanted_out) and torch.equal(lse, wanted_lse)
    assert all(torch.equal(g, w.float()) for g, w in zip(gradients, wanted, strict=True))


def test_autocast_unifies_dtypes_and_leaves_float64_alone() -> None:
    query = torch.randn(1, 9, 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = MPS.face("na1d")(query, query.bfloat16(), query.half(), 3)
        double = MPS.face("na1d")(*[query.double()] * 3, 3)
        logits = MPS.face("na1d_qk")(query, query, 3)
        full = MPS.face("attention")(query, query, query)
    assert {t.dtype for t in (mixed, logits, full)} == {torch.bfloat16} and double.dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16, enabled=False), pytest.raises(TypeError, match="one dtype"):
        MPS.face("na1d")(query, query.bfloat16(), query, 3)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    tensors = given_to(BY_NAME["img-rpb-everything"])
    call = attend(BY_NAME["img-rpb-everything"], tuple(tensors))

    def checkpointed(*given: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(call, *given, use_reentrant=reentrant)

    found = []
    for function in (checkpointed, call):
        leaves = [t.clone().requires_grad_() for t in tensors.values()]
        (function(*leaves) ** 2).sum().backward()
        found.append([leaf.grad for leaf in leaves])
    close(*found)


def test_gradients_of_some_inputs_and_of_none() -> None:
    tensors = given_to(BY_NAME["img-rpb-everything"])
    call = attend(BY_NAME["img-rpb-everything"], tuple(tensors), return_lse=True)
    leaves = [t.clone().requires_grad_() for t in tensors.values()]
    every = torch.autograd.grad(call(*leaves)[1].sum(), leaves, allow_unused=True, materialize_grads=True)
    for i, wanted in enumerate(every):
        one = [t.clone().requires_grad_(j == i) for j, t in enumerate(tensors.values())]
        (found,) = torch.autograd.grad(call(*one)[1].sum(), one[i])
        close(found, wanted)
    assert not every[2].any(), "lse does not depend on the values"
    with torch.no_grad():
        assert not call(*leaves)[0].requires_grad


def test_threads_agree() -> None:
    """The same problem, planned and run for the first time by eight threads at once."""
    case = BY_NAME["img-large-rpb"]
    tensors = {name: t * 1.5 for name, t in given_to(case, "float32").items()}
    call, found = attend(case, tuple(tensors)), []
    gate = threading.Barrier(8)

    def work() -> None:
        gate.wait()
        found.append(results_and_gradients(call, tensors))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)
