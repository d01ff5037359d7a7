"""``stream=``: every op accepts it, and all of the op runs there, its gradient too."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import pytest
from frameworks import MLX
from mlx_abilities import needs_strict_threads, needs_thread_local_streams

RANKS = (1, 2, 3)
FUSED = ("na1d", "na2d", "na3d", "neighborhood_attention", "attention")
OPS = (
    *[f"na{rank}d{kind}" for rank in RANKS for kind in ("", "_qk", "_av", "_varlen")],
    *["neighborhood_attention", "attention", "merge_attentions"],
)


@pytest.fixture(autouse=True, params=["pure", "nanobind"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The backend under test, in every thread."""
    MLX.package.set_backend(request.param)
    yield request.param


def arguments_of(op: str) -> tuple[Any, ...]:
    """Small tensors, the same in every call."""
    rank = int(op[2]) if op.startswith("na") else 1
    shape = (6, 5, 4)[:rank]
    mx.random.seed(rank)
    q, attn, lse = (mx.random.normal((2, *shape, 2, *last), stream=mx.cpu) for last in ((4,), (2**rank,), ()))
    mx.eval(q, attn, lse)
    kinds = {"qk": (q, q, 2), "av": (attn, q, 2), "varlen": (q, q, q, [shape[0] if rank == 1 else shape] * 2, 2)}
    names = {"attention": (q, q, q), "merge_attentions": ([q, -q], [lse, 2 * lse])}
    found: tuple[Any, ...] = kinds[op.split("_")[1]] if op[2] in "123" and "_" in op else names.get(op, (q, q, q, 2))
    return found


def called(op: str, stream: Any, given: tuple[Any, ...], cotangents: list[mx.array]) -> list[mx.array]:
    """The op's results, and with cotangents for them the gradient of its first array too.

    The op and its gradient are called while another stream is the default.
    """
    fused = {"return_lse": True} if op in {*FUSED, *(f"{name}_varlen" for name in FUSED)} else {}

    def call(first: mx.array) -> list[mx.array]:
        tensors = ([first, *given[0][1:]], given[1]) if op == "merge_attentions" else (first, *given[1:])
        with mx.stream(mx.new_stream(mx.cpu)):
            found = MLX.face(op)(*tensors, **fused, stream=stream)
        return list(found) if isinstance(found, tuple) else [found]

    first = given[0][0] if op == "merge_attentions" else given[0]
    if not cotangents:
        return call(first)
    with mx.stream(stream):  # because MLX copies the initial gradient
        outs, gradients = mx.vjp(call, [first], cotangents)
    return [*outs, *gradients]


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are computed while another stream is the default."""
    kind = MLX.module("_autodiff").Forward
    original = kind.differentiate

    def differentiate(self: Any, *arrays: Any) -> Any:
        with mx.stream(mx.new_stream(mx.cpu)):
            return original(self, *arrays)

    monkeypatch.setattr(kind, "differentiate", differentiate)


def test_every_function_with_a_stream_is_tested() -> None:
    functions = [getattr(MLX.package, name) for name in MLX.package.__all__]
    faces = {f.__name__ for f in functions if inspect.isfunction(f) and "stream" in inspect.signature(f).parameters}
    assert faces == {*OPS, "tiled"}  # which evaluates each slab before it returns, in tests-parity/slabs


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("op", OPS)
def test_all_of_an_op_runs_on_its_stream(op: str, backend: str) -> None:
    """Its graph, made in a thread with its own streams, is evaluated where those are unknown."""
    stream, made = mx.new_stream(mx.cpu), []
    given = arguments_of(op)
    cotangents = [mx.ones(out.shape, out.dtype) for out in called(op, mx.cpu, given, [])]
    wanted = called(op, mx.cpu, given, cotangents)  # and makes the tables that later calls share
    mx.eval(cotangents, wanted)
    work = lambda: made.extend([called(op, stream, given, []), called(op, stream, given, cotangents)])  # noqa: E731
    thread = threading.Thread(target=work)
    with MLX.watch() as ran:
        thread.start()
        thread.join()
    assert ran == (set() if op == "merge_attentions" else {backend})
    mx.eval(made)
    outs, with_gradient = made
    assert all(mx.array_equal(a, b) for a, b in zip(outs, wanted, strict=False))
    assert all(mx.array_equal(a, b) for a, b in zip(with_gradient, wanted, strict=True))


@needs_strict_threads
def test_what_runs_on_another_stream_is_noticed() -> None:
    """The check above can fail."""
    made: list[mx.array] = []
    thread = threading.Thread(target=lambda: made.append(mx.ones((2,)) + 1))
    thread.start()
    thread.join()
    with pytest.raises(RuntimeError, match="no Stream"):
        mx.eval(made)


def test_several_streams_at_once() -> None:
    """Ops that wait for one another across streams, and ops that do not."""
    streams = [mx.new_stream(mx.cpu) for _ in range(3)]
    given = arguments_of("na2d")

    def chain(*order: Any) -> list[mx.array]:
        x, found = given[0], []
        for stream in order:
            x = MLX.face("na2d")(x, x, given[0], 2, stream=stream)
            found.append(x)
        return found

    wanted = chain(*[mx.cpu] * 6)
    found, apart = chain(*streams, *streams), [MLX.face("na2d")(*given, stream=stream) for stream in streams]
    mx.eval(found, apart)
    assert all(mx.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert all(mx.array_equal(a, wanted[0]) for a in apart)


@needs_thread_local_streams
@pytest.mark.parametrize("op", OPS)
def test_a_thread_local_stream(op: str, backend: str) -> None:
    """It stands for each thread's own stream; all of the op runs there."""
    stream, resolve = mx.new_thread_local_stream(mx.cpu), MLX.module("_tensors").stream_of
    given = arguments_of(op)
    cotangents = [mx.ones(out.shape, out.dtype) for out in called(op, mx.cpu, given, [])]
    wanted = called(op, mx.cpu, given, cotangents)
    mx.eval(cotangents, wanted)
    found: list[tuple[mx.Stream, list[mx.array]]] = []

    def work() -> None:
        own = resolve(op, stream)
        with mx.stream(stream):
            assert mx.default_stream(mx.cpu) == own
        outs = called(op, stream, given, cotangents)
        mx.eval(outs)
        found.append((own, outs))

    threads = [threading.Thread(target=work) for _ in range(2)]
    with MLX.watch() as ran:
        work()
        for thread in threads:
            thread.start()
            thread.join()
    assert ran == (set() if op == "merge_attentions" else {backend})
    assert len({str(own) for own, _ in found}) == 3
    assert all(mx.array_equal(a, b) for _, outs in found for a, b in zip(outs, wanted, strict=True))
