"""natten-mlx's C++ primitives in MLX's graph. The common suites cover results and transforms."""

from __future__ import annotations

import gc
import io
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from cases import BY_NAME, INPUTS, inputs
from frameworks import MLX

NAMES = ("seq-causal-dilated-stride", "img-rpb-everything", "vol-gqa-additional")
STUB = Path(__file__).resolve().parents[2] / "packages" / "natten-mlx" / "src" / "natten_mlx" / "_ext.pyi"
Arrays = list[mx.array]


def host() -> Any:
    MLX.package  # noqa: B018 - selects the CPU
    return MLX.module("_device").machine().nanobind


@pytest.fixture(autouse=True)
def nanobind() -> None:
    """Every call of this module requests the extension, in every thread."""
    assert host().unavailable_reason() is None
    MLX.package.set_backend("nanobind")


def random(*shape: int, seed: int = 0, dtype: str = "float32") -> mx.array:
    return mx.array(np.random.default_rng(seed).standard_normal(shape)).astype(getattr(mx, dtype), stream=mx.cpu)


def same(found: Any, wanted: Any) -> None:
    """Equal to the bit."""
    found, wanted = ([x] if isinstance(x, mx.array) else list(x) for x in (found, wanted))
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_array_equal(MLX.numpy(a), MLX.numpy(b))


def graph(*outputs: mx.array) -> str:
    """The graph of lazy arrays as text."""
    text = io.StringIO()
    mx.export_to_dot(text, *outputs)
    return text.getvalue()


# --- strided inputs -------------------------------------------------------------------------------------

VIEWS: dict[str, Callable[[mx.array], mx.array]] = {
    "axes in another order": lambda x: mx.moveaxis(mx.contiguous(mx.moveaxis(x, 3, 1)), 1, 3),
    "every other token": lambda x: mx.repeat(x, 2, axis=2)[:, :, ::2],
    "backwards": lambda x: mx.contiguous(x[:, ::-1])[:, ::-1],
    "channels apart": lambda x: mx.repeat(x, 3, axis=4)[..., ::3],
    "an offset": lambda x: mx.concatenate([x, x], axis=1)[:, x.shape[1] :],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_strided_inputs(view: str, dtype: str) -> None:
    """Bit-equal to contiguous ones, forward and backward, for each input alone and for all."""
    packed = [random(2, 9, 8, 2, 5, seed=i, dtype=dtype) for i in range(3)]

    def call(*arrays: mx.array) -> list[mx.array]:
        return list(MLX.face("na2d")(*arrays, (3, 4), dilation=(2, 1), return_lse=True))

    cotangents = [random(2, 9, 8, 2, 5, seed=7, dtype=dtype), random(2, 9, 8, 2, seed=8)]
    wanted = mx.vjp(call, packed, cotangents)
    for viewed in ((0,), (1,), (2,), (0, 1, 2)):
        given = [VIEWS[view](a) if i in viewed else a for i, a in enumerate(packed)]
        for found, expected in zip(mx.vjp(call, given, cotangents), wanted, strict=True):
            same(found, expected)
    strided = [mx.contiguous(mx.swapaxes(c, 1, 2)).swapaxes(1, 2) for c in cotangents]
    same(mx.vjp(call, packed, strided)[1], wanted[1])


def test_broadcast_inputs() -> None:
    """Strides of zero; the gradient of what was repeated is a sum."""
    query, key = random(2, 12, 2, 4), random(1, 12, 1, 4, seed=1)

    def call(query: mx.array, key: mx.array) -> mx.array:
        spread = mx.broadcast_to(key, query.shape)
        return MLX.face("na1d")(query, spread, spread, 5)

    spread = mx.contiguous(mx.broadcast_to(key, query.shape))
    same(call(query, key), MLX.face("na1d")(query, spread, spread, 5))
    one = mx.grad(lambda *a: call(*a).square().sum(), argnums=1)(query, key)
    attend = lambda *a: MLX.face("na1d")(*a, 5).square().sum()  # noqa: E731
    both = mx.grad(attend, argnums=(1, 2))(query, spread, spread)
    np.testing.assert_allclose(MLX.numpy(one), MLX.numpy(sum(both).sum((0, 2), keepdims=True)), rtol=1e-5)


def test_cotangents_of_another_dtype() -> None:
    """MLX passes them on unchanged."""
    query, cotangent = random(1, 12, 2, 4, dtype="float16"), random(1, 12, 2, 4, seed=1, dtype="float16")

    def call(query: mx.array) -> list[mx.array]:
        return [MLX.face("na1d")(query, query, query, 5)]

    found, wanted = (mx.vjp(call, [query], [c])[1] for c in (cotangent.astype(mx.float32), cotangent))
    same(found, wanted)


@pytest.mark.parametrize("view", [lambda x: x[:, ::2, ::2], lambda x: mx.swapaxes(x, 1, 2)])
def test_views_are_not_copied(view: Callable[[mx.array], mx.array]) -> None:
    """A call allocates only its outputs."""
    whole = random(1, 128, 128, 4, 16)
    mx.eval(whole)
    given = view(whole)
    mx.eval(given)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    out, lse = MLX.face("na2d")(given, given, given, 3, return_lse=True)
    mx.eval(out, lse)
    assert mx.get_peak_memory() - before <= (out.nbytes + lse.nbytes) * 1.1


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch(name: str) -> None:
    """Through every op, forward and backward, also where vmap maps the batch."""
    case = BY_NAME[name]
    arrays = {n: MLX.tensor(a, "float32") for n, a in inputs(case, "float32").items() if n in INPUTS}
    given = [a if n == "rpb" else a[:0] for n, a in arrays.items()]

    def call(*arrays: mx.array) -> mx.array:
        return MLX.face(case.face)(**dict(zip(given_names, arrays, strict=True)), **case.window, scale=case.scale)

    given_names = tuple(arrays)
    out, gradients = mx.vjp(lambda *a: [call(*a)], given, [call(*given)])
    assert out[0].shape == (0, *case.shape, case.heads, arrays["value"].shape[-1])
    assert [g.shape for g in gradients] == [a.shape for a in given]
    assert not any(MLX.numpy(g).any() for g in gradients)


# --- the graph ---------------------------------------------------------------------------------------


def test_equal_calls_are_computed_once() -> None:
    """mx.compile merges primitives that say they are equivalent, and no others."""
    query, key = random(1, 9, 2, 4), random(1, 9, 2, 4, seed=1)

    def merged(first: dict[str, Any], second: dict[str, Any], op: str = "na1d") -> bool:
        def both(query: mx.array, key: mx.array) -> mx.array:
            arrays = (query, key) if op == "na1d_qk" else (query, key, key)
            return MLX.face(op)(*arrays, **first).sum() + MLX.face(op)(*arrays, **second).sum()

        lazy = mx.compile(both)(query, key)
        found = graph(lazy).count('label ="na1d')
        same(lazy, both(query, key))
        assert found in (1, 2)
        return found == 1

    call = {"kernel_size": 4, "dilation": 1, "stride": 1, "is_causal": False}
    assert merged(call, call)
    assert merged(call, call, "na1d_qk")
    for other in ({"kernel_size": 5}, {"dilation": 2}, {"stride": 2}, {"is_causal": True}, {"scale": 0.3}):
        assert not merged(call, call | other), other
        assert not merged(call, call | other, "na1d_qk"), other


def test_the_gradient_is_another_primitive() -> None:
    query = random(1, 9, 2, 4)
    out, gradient = mx.value_and_grad(lambda q: MLX.face("na1d")(q, q, q, 3).sum())(query)
    text = graph(out, gradient)
    assert (text.count('"na1d forward"'), text.count('"na1d backward"')) == (1, 1)


def test_the_gradient_of_a_split_op_does_not_need_its_output() -> None:
    """Logits are the largest tensors there are: they are not computed where only a gradient is needed."""
    query = random(1, 9, 2, 4)
    gradient = mx.grad(lambda q: (MLX.face("na1d_qk")(q, q, 3) * 2).sum())(query)
    assert "na1d_qk qk_backward" in graph(gradient) and 'label ="na1d_qk qk"' not in graph(gradient)
    mapped = mx.vmap(mx.grad(lambda q: (MLX.face("na1d_qk")(q, q, 3) ** 2).sum()))(mx.stack([query, -query]))
    same(mapped[0], -mapped[1])


def test_a_mapped_rpb_makes_one_call_per_item_and_all_else_one_batch() -> None:
    query, bias = random(3, 1, 9, 2, 4), random(3, 2, 5)
    shared = mx.vmap(lambda q: MLX.face("na1d")(q, q, q, 3))(query)
    own = mx.vmap(lambda q, b: MLX.face("na1d")(q, q, q, 3, rpb=b))(query, bias)
    assert [graph(mapped).count('"na1d forward"') for mapped in (shared, own)] == [1, 3]


def test_errors_of_derivatives_are_not_wrapped() -> None:
    query = random(1, 9, 2, 4)
    loss = lambda q: MLX.face("na1d")(q, q, q, 3).sum()  # noqa: E731
    calls: dict[str, Callable[[], Any]] = {
        "second derivatives": lambda: mx.grad(lambda q: mx.grad(loss)(q).sum())(query),
        "forward-mode derivatives": lambda: mx.jvp(loss, [query], [query]),
    }
    for what, call in calls.items():
        with pytest.raises(NotImplementedError) as caught:
            call()
        assert (
            str(caught.value)
            == f'na1d: {what} are not implemented; use backend="dense", or na1d_qk, a softmax and na1d_av'
        )


def test_a_plan_lives_as_long_as_its_primitives() -> None:
    """Even after its caches have evicted it, and on another thread."""
    query = random(1, 9, 2, 4)
    wanted = MLX.face("na1d")(query, query, query, 3)
    mx.eval(wanted)
    lazy = MLX.face("na1d")(query, query, query, 3)
    for cache in (host().plans.clear, host().remembered.clear, gc.collect):
        cache()
    same(lazy, wanted)


ENDING = """
import mlx.core as mx, natten_mlx
mx.set_default_device(mx.cpu)
query = mx.random.normal((1, 2000, 2, 16))
lazy = natten_mlx.na1d(query, query, query, 9, backend="nanobind")
running = mx.grad(lambda q: natten_mlx.na1d(q, q, q, 9, backend="nanobind").sum())(query)
mx.async_eval(running)
print("end")
"""


def test_the_interpreter_may_end_at_any_time() -> None:
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_a_plan_refuses_arrays_that_do_not_fit_it() -> None:
    """The kernels would read past their ends."""
    extension, query = host().found, random(1, 9, 2, 4)
    MLX.face("na1d")(query, query, query, 3)
    plan, stream = host().remembered.values()[-1], mx.default_stream(mx.cpu)
    same(extension.apply(plan, [query] * 3, stream)[0], MLX.face("na1d")(query, query, query, 3))
    for other in ([query] * 2, [query, query, query[:, :8]], [query, query, query.astype(mx.float16)]):
        with pytest.raises(ValueError, match="do not fit the plan"):
            extension.apply(plan, other, stream)


# --- threads and streams -----------------------------------------------------------------------------


def test_many_threads_with_problems_of_their_own() -> None:
    """Each thread has its stream; all share the pool of the CPU kernels."""
    problems = [(1, 40 + 7 * i, 2, 8) for i in range(4)]
    wanted = [MLX.face("na1d")(*[random(*shape, seed=i)] * 3, 5) for i, shape in enumerate(problems)]
    mx.eval(wanted)
    failures: list[str] = []

    def work(i: int) -> None:
        with mx.stream(mx.new_stream(mx.cpu)):
            for _ in range(25):
                query = random(*problems[i], seed=i)
                found = MLX.face("na1d")(query, query, query, 5)
                if not np.array_equal(MLX.numpy(found), MLX.numpy(wanted[i])):
                    failures.append(f"thread {i}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_streams_wait_for_each_other() -> None:
    """A chain of calls, each on another stream, equals the chain on one."""
    streams = [mx.new_stream(mx.cpu) for _ in range(3)]
    query = random(1, 300, 2, 8)

    def chain(x: mx.array, streams: list[Any]) -> mx.array:
        for i in range(9):
            x = MLX.face("na1d")(x, x, x, 3 + i, stream=streams[i % 3])
        return x

    same(chain(query, streams), chain(query, [None] * 3))
    gradients = [mx.grad(lambda q, s=s: chain(q, s).sum())(query) for s in (streams, [None] * 3)]
    same(*gradients)


# --- recalled calls -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("legal", "wrong"),
    [
        ({"kernel_size": 1}, {"kernel_size": True}),
        ({"kernel_size": 1}, {"kernel_size": 1.0}),
        ({"kernel_size": (3,)}, {"kernel_size": (3.0,)}),
        ({"kernel_size": [1]}, {"kernel_size": [True]}),
        ({"kernel_size": 3, "is_causal": False}, {"kernel_size": 3, "is_causal": 0}),
        ({"kernel_size": 3, "is_causal": (True,)}, {"kernel_size": 3, "is_causal": (1,)}),
        ({"kernel_size": 3, "scale": 1.0}, {"kernel_size": 3, "scale": True}),
        ({"kernel_size": 3, "return_lse": True}, {"kernel_size": 3, "return_lse": 1}),
    ],
)
def test_a_remembered_call_does_not_vouch_for_an_equal_one(legal: dict[str, Any], wrong: dict[str, Any]) -> None:
    """Arguments that are equal but of another type are checked again."""
    query = random(1, 9, 2, 4)
    MLX.face("na1d")(query, query, query, **legal)
    with MLX.watch() as ran:
        mx.eval(MLX.face("na1d")(query, query, query, **legal))
    assert ran == {"nanobind"}
    with pytest.raises(TypeError):
        MLX.face("na1d")(query, query, query, **wrong)
    with pytest.raises(TypeError, match="share one dtype"):
        MLX.face("na1d")(query, query, query.astype(mx.float16), **legal)


def test_a_remembered_call_follows_the_backend() -> None:
    query = random(1, 9, 2, 4)
    for backend in ("nanobind", "pure", "dense", "nanobind"):
        with MLX.package.use_backend(backend), MLX.watch() as ran:
            mx.eval(MLX.face("na1d")(query, query, query, 3))
        assert ran == {backend}


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host().remembered, "max_size", 4)
    host().remembered.clear()
    query = random(1, 30, 2, 4)
    for kernel_size in range(1, 12):
        MLX.face("na1d")(query, query, query, kernel_size)
        assert 0 < len(host().remembered) <= 4


# --- the stub ----------------------------------------------------------------------------------------


def test_the_stub_is_up_to_date(tmp_path: Path) -> None:
    """Rebuild it with ``import mlx.core; from nanobind.stubgen import main; main(["-m", "natten_mlx._ext_0_32_4",
    "-o", ...])``, the module for the release of MLX that is installed.
    """
    from nanobind.stubgen import main

    made = tmp_path / "_ext.pyi"
    main(["-q", "-m", host().found.__name__, "-o", str(made)])
    assert made.read_text() == STUB.read_text()
    # With another ABI it would name the C++ type.
    assert "mlx.core.array" in made.read_text()
