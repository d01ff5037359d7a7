"""MLX's transforms of the backends with kernels of their own: grad, vmap, compile, checkpoint, streams and threads.

Each is compared with plain calls of the same backend.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from cases import BY_NAME, INPUTS, Case, inputs
from frameworks import MLX
from mlx_abilities import needs_mapped_padding

NAMES = ("seq-causal-dilated-stride", "img-rpb-everything", "vol-gqa-additional")
Attend = Callable[..., Any]


def given_to(case: Case, dtype: str = "float64") -> dict[str, mx.array]:
    MLX.package  # noqa: B018 - selects the CPU
    arrays = inputs(case, dtype)
    return {name: MLX.tensor(arrays[name], dtype) for name in INPUTS if name in arrays}


def attend(case: Case, names: tuple[str, ...], **options: Any) -> Attend:
    """The case's face as a function of the arrays ``names``, on the backend under test."""

    def call(*arrays: mx.array) -> Any:
        by_name = dict(zip(names, arrays, strict=True))
        return MLX.face(case.face)(**by_name, **case.window, scale=case.scale, **options)

    return call


def loss_of(call: Attend) -> Attend:
    """A number that depends on every output."""

    def loss(*arrays: mx.array) -> mx.array:
        found = call(*arrays)
        parts = found if isinstance(found, (tuple, list)) else (found,)
        return sum((part.astype(mx.float32) ** 2).sum() for part in parts)

    return loss


def stacked(arrays: dict[str, mx.array], size: int) -> dict[str, mx.array]:
    """``size`` different versions of each array."""
    return {name: mx.stack([a * ((i + 1) / size) - i for i in range(size)]) for name, a in arrays.items()}


def close(found: Any, wanted: Any, limit: float = 1e-12) -> None:
    found, wanted = ([x] if isinstance(x, mx.array) else list(x) for x in (found, wanted))
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(MLX.numpy(a), MLX.numpy(b), rtol=0, atol=limit)


@pytest.fixture(autouse=True, params=["pure", "nanobind"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each test of this module runs one backend and no other, in every thread."""
    MLX.package.set_backend(request.param)
    with MLX.watch() as ran:
        yield request.param
    assert ran == {request.param}


# --- grad --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_grad_of_all_inputs_and_of_each(name: str) -> None:
    arrays = given_to(BY_NAME[name])
    loss = loss_of(attend(BY_NAME[name], tuple(arrays), return_lse=True))
    every = tuple(range(len(arrays)))
    value, found = mx.value_and_grad(loss, argnums=every)(*arrays.values())
    assert value.item() == loss(*arrays.values()).item()
    for i in every:
        close(mx.grad(loss, argnums=i)(*arrays.values()), found[i])


def test_grad_with_one_array_for_all() -> None:
    case = BY_NAME["seq"]
    (x, *_), call = given_to(case).values(), attend(case, ("query", "key", "value"))
    wanted = mx.grad(loss_of(call), argnums=(0, 1, 2))(x, x, x)
    close(mx.grad(lambda x: loss_of(call)(x, x, x))(x), sum(wanted))


# --- vmap --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, "seq-rpb"])
@pytest.mark.parametrize("mapped", ["all", "query", "key value", "rpb", "additional_keys"])
def test_vmap(name: str, mapped: str) -> None:
    """Over all inputs, over some, and over rpb alone."""
    arrays = given_to(BY_NAME[name])
    over = set(arrays) if mapped == "all" else set(mapped.split()) & set(arrays)
    if not over:
        over = {"value"}  # the case has no such array: map another one that no other variant maps alone
    call, many = attend(BY_NAME[name], tuple(arrays), return_lse=True), stacked(arrays, 3)
    given = [many[n] if n in over else a for n, a in arrays.items()]
    found = mx.vmap(call, in_axes=tuple(0 if n in over else None for n in arrays))(*given)
    wanted = [call(*(many[n][i] if n in over else a for n, a in arrays.items())) for i in range(3)]
    close(found, [mx.stack(list(part)) for part in zip(*wanted, strict=True)])


def test_vmap_over_other_axes() -> None:
    case = BY_NAME["img-rpb-everything"]
    arrays = given_to(case)
    call, many, axes = attend(case, tuple(arrays)), stacked(arrays, 2), (2, 5, 0, 1, 3, 1)
    given = [mx.moveaxis(many[n], 0, axis) for n, axis in zip(arrays, axes, strict=True)]
    found = mx.vmap(call, in_axes=axes, out_axes=1)(*given)
    close(found, mx.stack([call(*(many[n][i] for n in arrays)) for i in range(2)], axis=1))


@pytest.mark.parametrize("name", NAMES)
def test_nested_vmap(name: str) -> None:
    """Queries over one mapped axis, keys over another, everything else shared."""
    arrays = given_to(BY_NAME[name])
    call, queries, keys = attend(BY_NAME[name], tuple(arrays)), stacked(arrays, 2)["query"], stacked(arrays, 3)["key"]
    shared = list(arrays.values())[2:]
    rest = (None,) * len(shared)
    found = mx.vmap(mx.vmap(call, in_axes=(None, 0, *rest)), in_axes=(0, None, *rest))(queries, keys, *shared)
    wanted = [mx.stack([call(queries[i], keys[j], *shared) for j in range(3)]) for i in range(2)]
    close(found, mx.stack(wanted))


@needs_mapped_padding
@pytest.mark.parametrize("name", [*NAMES, "seq-rpb"])
def test_gradients_per_sample(name: str) -> None:
    """vmap of grad: rpb shared by all samples has a gradient of its own in each."""
    arrays = given_to(BY_NAME[name])
    call, many = attend(BY_NAME[name], tuple(arrays)), stacked(arrays, 3)
    grad = mx.grad(lambda *a: (call(*a) ** 2).sum(), argnums=tuple(range(len(arrays))))
    given = [a if n == "rpb" else many[n] for n, a in arrays.items()]
    found = mx.vmap(grad, in_axes=tuple(None if n == "rpb" else 0 for n in arrays))(*given)
    wanted = [grad(*(a if n == "rpb" else many[n][i] for n, a in arrays.items())) for i in range(3)]
    close(found, [mx.stack(list(part)) for part in zip(*wanted, strict=True)])


def test_gradients_through_vmap() -> None:
    case = BY_NAME["img-rpb-everything"]
    arrays = given_to(case)
    call, many = attend(case, tuple(arrays)), stacked(arrays, 3)
    every = tuple(range(len(arrays)))
    found = mx.grad(lambda *a: (mx.vmap(call)(*a) ** 2).sum(), argnums=every)(*many.values())
    wanted = mx.grad(lambda *a: sum((call(*(x[i] for x in a)) ** 2).sum() for i in range(3)), argnums=every)
    close(found, wanted(*many.values()))


def test_vmap_of_the_other_ops() -> None:
    case = BY_NAME["img-mixed"]
    query, key, value = given_to(case).values()
    window = case.window

    def split(query: mx.array, key: mx.array, value: mx.array) -> mx.array:
        logits = MLX.face("na2d_qk")(query, key, **window)
        return MLX.face("na2d_av")(mx.softmax(logits, -1), value, **window)

    def full(query: mx.array, key: mx.array, value: mx.array) -> mx.array:
        return MLX.face("attention")(query[:, 0], key[:, 1], value[:, 1], True)

    def merged(query: mx.array, key: mx.array, value: mx.array) -> mx.array:
        parts = [MLX.face("na2d")(query, k, value, **window, return_lse=True) for k in (key, -key)]
        return MLX.face("merge_attentions")(*map(list, zip(*parts, strict=True)))[0]

    queries = mx.stack([query, 2 * query, -query])
    for function in (split, full, merged):
        found = mx.vmap(function, in_axes=(0, None, None))(queries, key, value)
        close(found, mx.stack([function(queries[i], key, value) for i in range(3)]))


# --- compile, checkpoint -----------------------------------------------------------------------------


# MLX's CPU backend compiles each fused kernel with a C++ compiler, so one case runs by default.
SLOW = [pytest.param(name, marks=pytest.mark.all) for name in NAMES[:2]]


@pytest.mark.parametrize("name", [*SLOW, NAMES[2]])
def test_compile(name: str) -> None:
    """Results and gradients of compiled functions, and again with other values of the same shape."""
    arrays = given_to(BY_NAME[name], "float32")
    call = attend(BY_NAME[name], tuple(arrays), return_lse=True)
    grad = mx.grad(loss_of(call), argnums=tuple(range(len(arrays))))
    compiled, compiled_grad = mx.compile(call), mx.compile(grad)
    for factor in (1.0, 0.5):
        given = [a * factor for a in arrays.values()]
        close(compiled(*given), call(*given), 1e-5)
        close(compiled_grad(*given), grad(*given), 1e-4)
    close(mx.grad(lambda *a: loss_of(compiled)(*a), argnums=0)(*given), grad(*given)[0], 1e-4)


def test_compile_follows_the_shape() -> None:
    compiled = mx.compile(lambda q: MLX.face("na2d")(q, q, q, 3))
    for shape in ((1, 5, 6, 2, 4), (2, 7, 4, 2, 4)):
        query = mx.random.normal(shape, stream=mx.cpu)
        close(compiled(query), MLX.face("na2d")(query, query, query, 3), 1e-5)


@pytest.mark.parametrize("op", ["na1d", "na1d_qk", "attention"])
def test_shapeless_compile_raises(op: str) -> None:
    """Otherwise it would compute the first call's size."""
    case = BY_NAME["seq"]
    query, *_ = given_to(case, "float32").values()
    window = {} if op == "attention" else {"kernel_size": 3}
    count = 2 if op == "na1d_qk" else 3
    call = lambda q: MLX.face(op)(*[q] * count, **window)  # noqa: E731
    with pytest.raises(ValueError, match="infer"):
        mx.eval(mx.compile(call, shapeless=True)(query))
    assert call(query).shape[:3] == query.shape[:3]
    mx.eval(call(query))


def test_a_traced_function_keeps_its_backend() -> None:
    case = BY_NAME["seq"]
    arrays = given_to(case, "float32")
    compiled = mx.compile(lambda *a: MLX.face("na1d")(*a, **case.window))
    first = compiled(*arrays.values())
    with MLX.package.use_backend("dense"):
        again = compiled(*arrays.values())
    close(again, first, 0)


def test_checkpoint() -> None:
    arrays = given_to(BY_NAME["img-rpb-everything"])
    call = attend(BY_NAME["img-rpb-everything"], tuple(arrays))
    every = tuple(range(len(arrays)))
    found = mx.grad(loss_of(mx.checkpoint(call)), argnums=every)(*arrays.values())
    close(found, mx.grad(loss_of(call), argnums=every)(*arrays.values()))


# --- streams and threads -----------------------------------------------------------------------------


def test_any_cpu_stream() -> None:
    case = BY_NAME["img-rpb-everything"]
    arrays = given_to(case)
    wanted = attend(case, tuple(arrays))(*arrays.values())
    for stream in (mx.cpu, mx.Device(mx.cpu, 0), mx.new_stream(mx.cpu), mx.default_stream(mx.cpu)):
        call = attend(case, tuple(arrays), stream=stream)
        close(call(*arrays.values()), wanted, 0)
        gradients = mx.grad(loss_of(call), argnums=(0, 5))(*arrays.values())
        close(gradients, mx.grad(loss_of(attend(case, tuple(arrays))), argnums=(0, 5))(*arrays.values()), 0)


def test_threads_agree() -> None:
    """The same problem, planned and run for the first time by four threads at once."""
    case = BY_NAME["img-large-rpb"]
    MLX.package  # noqa: B018 - selects the CPU
    values = {name: a * 1.5 for name, a in inputs(case, "float32").items() if name in INPUTS}
    found, gate = [], threading.Barrier(4)

    def work() -> None:
        gate.wait()
        with mx.stream(mx.new_stream(mx.cpu)):
            arrays = {name: MLX.tensor(a, "float32") for name, a in values.items()}
            loss = loss_of(attend(case, tuple(arrays), return_lse=True))
            gradients = mx.grad(loss, argnums=tuple(range(len(arrays))))(*arrays.values())
            mx.eval(gradients)
            found.append([np.array(g) for g in gradients])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(other, found[0], strict=True))
