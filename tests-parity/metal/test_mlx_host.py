"""natten_mlx from its faces to its Metal kernels, on an emulated ``mx.fast.metal_kernel``."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path as File
from typing import Any

import frameworks
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import tolerances
from cases import BY_NAME, make
from frameworks import MLX, MPS, Path
from metal_emulator.lint import lint
from mlx.utils import tree_flatten
from varlen_items import BATCHES, Items

import natten_mlx
from natten_mlx._device import machine
from natten_mlx._metal.plan.verdicts import KernelFailure

from .conftest import installed, installed_mlx
from .host import EmulatedHost
from .launch import SCHEDULES
from .mlx_host import EmulatedMlxHost, Kernel

pytestmark = pytest.mark.usefixtures("emulator")

FAST = Path(MLX, "fast_metal")
# Every feature in some rank and dtype; few instances, because each takes seconds to compile.
FUSED = (
    ("seq-additional-everything", "float32"),
    ("img-mqa-values", "float16"),
    ("vol-rpb", "bfloat16"),
    ("seq-masked-causal-gqa", "float16"),
)
SPLIT = BY_NAME["img-rpb"]
# The case of tests that do not check numbers; the templates of its forward and of its gradient.
SMALL = BY_NAME["img-mqa-values"]
FORWARD, GRADIENT = ["na_fwd"], {"na_delta", "na_bwd_dq", "na_bwd_dkv"}
Install = Callable[[EmulatedMlxHost], EmulatedMlxHost]
Attend = Callable[..., Any]


@pytest.fixture
def install(emulator: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Replaces MLX's own host by another."""
    with ExitStack() as hosts:
        yield lambda host: hosts.enter_context(installed_mlx(monkeypatch, host))


@pytest.fixture
def host(mlx_metal: EmulatedMlxHost) -> EmulatedMlxHost:
    return mlx_metal


def arrays(dtype: str = "float16") -> list[mx.array]:
    """Query, key and value of :data:`SMALL`."""
    given = frameworks.inputs(SMALL, dtype)
    return [MLX.tensor(given[name], dtype) for name in ("query", "key", "value")]


def attend(backend: str = "fast_metal", **options: Any) -> Attend:
    """The call of :data:`SMALL` as a function of query, key and value."""

    def call(query: mx.array, key: mx.array, value: mx.array) -> Any:
        return natten_mlx.na2d(query, key, value, SMALL.kernel_size, backend=backend, **options)

    return call


def loss_of(call: Attend) -> Attend:
    return lambda *given: (call(*given).astype(mx.float32) ** 2).sum()


# --- results -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "dtype"), FUSED)
def test_fused(host: EmulatedMlxHost, name: str, dtype: str) -> None:
    """Outputs and all gradients, within the bounds of plain code; each kernel is probed once before it is launched."""
    case = BY_NAME[name]
    found, dtypes = frameworks.run.__wrapped__(FAST, case, dtype)
    expected = tolerances.fused(case, dtype)
    tolerances.assert_within(found, expected, f"{name} {dtype}")
    assert dtypes == {tensor: wanted.dtype for tensor, wanted in expected.items()}
    wanted = {
        *FORWARD,
        *GRADIENT,
        *(["na_rpb", "na_sum"] if case.rpb else []),
        *(["na_sum"] if case.additional else []),
    }
    assert set(host.templates) == wanted
    probes = len({launch.name for launch in host.ran})
    launches = 4 + (3 if case.additional else 0) + (2 if case.rpb else 0)
    assert len(host.ran) == probes + launches
    for host.schedule in SCHEDULES[1:]:
        again, _ = frameworks.run.__wrapped__(FAST, case, dtype)
        assert all(again[tensor].tobytes() == found[tensor].tobytes() for tensor in found), host.schedule
    assert len(host.ran) == probes + launches * len(SCHEDULES)


@pytest.mark.parametrize(
    "batch",
    [
        pytest.param(batch, id=batch.name, marks=[pytest.mark.all] if batch.rank == 3 else [])
        for batch in BATCHES
        if batch.name in ("dilated", "images", "volumes")
    ],
)
def test_padded_items(host: EmulatedMlxHost, batch: Items) -> None:
    """Items of different sizes in every rank against plain code, with gradients."""
    *given, d_out, d_lse = [MLX.tensor(array, "float32") for array in batch.arrays()]
    face = getattr(natten_mlx, f"na{batch.rank}d_varlen")
    found = {}
    for backend in ("fast_metal", "pure"):

        def call(*tensors: mx.array, backend: str = backend) -> Any:
            return face(*tensors, batch.argument, **batch.window, return_lse=True, backend=backend)

        (out, lse), gradients = mx.vjp(call, given, [d_out, d_lse])
        found[backend] = [out, lse, *gradients]
        mx.eval(found[backend])
    assert set(host.templates) == {*FORWARD, *GRADIENT}
    for ours, wanted in zip(*found.values(), strict=True):
        assert mx.allclose(ours, wanted, rtol=2e-5, atol=2e-5)
    outside = batch.outside()
    assert (np.array(found["fast_metal"][1])[outside] == -np.inf).all()


def test_split(host: EmulatedMlxHost) -> None:
    """Logits and weighted sums of window slots, and their gradients."""
    for run, expected in ((frameworks.run_qk, tolerances.split_qk), (frameworks.run_av, tolerances.split_av)):
        found, _ = run(FAST, SPLIT, "float32")
        tolerances.assert_within(found, expected(SPLIT, "float32"), run.__name__)
    assert set(host.templates) == {"na_qk", "na_av", "na_av_t", "na_rpb", "na_sum"}


@pytest.mark.parametrize(("name", "dtype"), FUSED[:1])
def test_both_packages_agree(host: EmulatedMlxHost, monkeypatch: pytest.MonkeyPatch, name: str, dtype: str) -> None:
    case = BY_NAME[name]
    ours, _ = frameworks.run(FAST, case, dtype)
    monkeypatch.delitem(frameworks.BACKEND_MODULES, "fast_metal")  # a module that the other package does not have
    with installed(monkeypatch, EmulatedHost()) as torch_host:
        theirs, _ = frameworks.run(Path(MPS, "metal"), case, dtype)
        assert torch_host.names
    tolerances.assert_agree(ours, theirs, tolerances.fused(case, dtype), name)


def layouts(array: mx.array) -> dict[str, mx.array]:
    """The same values with other layouts: each axis of [B, X, Y, H, D] fastest once, reversed, with gaps, a part."""
    axes = range(array.ndim)
    found = {f"axis {axis} fastest": mx.contiguous(mx.moveaxis(array, axis, -1)).moveaxis(-1, axis) for axis in axes}
    every = (slice(None, None, -1),) * array.ndim
    found["reversed"] = mx.contiguous(array[every])[every]
    found["every second"] = mx.stack([array, array * 0 + 9], axis=-1).flatten(-2)[..., ::2]
    found["a part"] = mx.pad(array, [(1, 2)] * array.ndim, constant_values=9)[(slice(1, -2),) * array.ndim]
    return found


def test_any_strides_give_the_same_bits(host: EmulatedMlxHost) -> None:
    query, key, value = given = arrays()
    wanted = attend()(*given)
    gradients = mx.grad(loss_of(attend()), argnums=(0, 1, 2))(*given)
    mx.eval(wanted, gradients)
    for (name, q), k, v in zip(layouts(query).items(), layouts(key).values(), layouts(value).values(), strict=True):
        mx.eval(q, k, v)
        assert mx.array_equal(attend()(q, k, v), wanted), name
        found = mx.grad(loss_of(attend()), argnums=(0, 1, 2))(q, k, v)
        assert all(mx.array_equal(a, b) for a, b in zip(found, gradients, strict=True)), name
    whole = mx.broadcast_to(key[:, :1], key.shape)
    assert mx.array_equal(attend()(query, whole, value), attend()(query, mx.contiguous(whole), value))
    # A cotangent that is a broadcast scalar.
    (ones,) = mx.grad(lambda q: attend()(q, key, value).sum(), argnums=(0,))(query)
    dense = mx.grad(lambda q: attend("dense")(q, key, value).sum())(query)
    assert mx.allclose(ones, dense, rtol=0, atol=0.01)


def test_a_cotangent_of_lse_with_gaps(host: EmulatedMlxHost) -> None:
    """Kernels read it as contiguous, and flattening it does not make it so: every second element would be skipped."""
    case = make("seq-eight", (8,), 2, heads=1, head_dim=16)
    given = frameworks.inputs(case, "float32")
    query, key, value, weights = (MLX.tensor(given[n], "float32") for n in ("query", "key", "value", "d_lse"))

    def gradients(gaps: bool) -> tuple[mx.array, ...]:
        def loss(*qkv: mx.array) -> mx.array:
            _, lse = natten_mlx.na1d(*qkv, case.kernel_size, return_lse=True, backend="fast_metal")
            if gaps:
                return (mx.concatenate([lse, mx.zeros(lse.shape)], -1) * mx.concatenate([weights, weights], -1)).sum()
            return (lse * weights).sum()

        found: tuple[mx.array, ...] = mx.grad(loss, argnums=(0, 1, 2))(query, key, value)
        return found

    for a, b in zip(gradients(True), gradients(False), strict=True):
        assert mx.array_equal(a, b)
    assert set(host.templates) == {*FORWARD, *GRADIENT}


def test_few_rows(host: EmulatedMlxHost) -> None:
    """Three rows: lse, delta and their gradients have too few elements for MLX to pass them in device memory."""
    case = make("seq-three", (3,), 2, heads=1, head_dim=16)
    found, _ = frameworks.run(FAST, case, "float32")
    tolerances.assert_within(found, tolerances.fused(case, "float32"), "three rows")


def test_tensors_that_are_too_small(host: EmulatedMlxHost) -> None:
    small = mx.ones((1, 7, 1, 1))
    with pytest.raises(NotImplementedError, match=r"fewer than 8 elements as constants, .* got one of 7"):
        natten_mlx.na1d(small, small, small, 3, backend="fast_metal")
    mx.eval(natten_mlx.na1d(small, small, small, 3))
    assert "pure (" in natten_mlx.explain("na1d", small, small, small, kernel_size=3)
    assert "fast_metal (" in natten_mlx.explain("na1d", *[mx.ones((1, 8, 1, 1))] * 3, kernel_size=3)
    assert not host.ran


def test_wide_heads_take_fewer_simdgroups(host: EmulatedMlxHost) -> None:
    def simdgroups(dim: int) -> int:
        text = natten_mlx.explain("na1d", *[mx.ones((1, 64, 1, dim), mx.float16)] * 3, kernel_size=3)
        found = re.search(r"_g(\d+)_", text)
        assert found
        return int(found[1])

    assert (simdgroups(64), simdgroups(97)) == (8, 4)


# --- MLX's transforms --------------------------------------------------------------------------------


def test_lazy(host: EmulatedMlxHost) -> None:
    """A call computes nothing but the probe of its kernel."""
    found = attend()(*arrays())
    assert host.templates == FORWARD
    mx.eval(found)
    assert host.templates == FORWARD * 2


@pytest.mark.parametrize("traced_first", [False, True])
def test_compile(host: EmulatedMlxHost, traced_first: bool) -> None:
    """Compiled functions launch the same kernels, whether or not these were probed before MLX traces."""
    given = arrays()
    function = mx.value_and_grad(loss_of(attend()), argnums=(0, 1, 2))
    compiled = mx.compile(function)
    first, then = (compiled, function) if traced_first else (function, compiled)
    found, wanted = first(*given), then(*given)
    mx.eval(found, wanted)
    again = compiled(*(x * 2 for x in given))
    mx.eval(again)
    assert set(host.templates) == {*FORWARD, *GRADIENT}
    assert len(host.ran) == 4 + 3 * 4
    for a, b in ((found, wanted), (again, function(*(x * 2 for x in given)))):
        assert mx.array_equal(a[0], b[0])
        assert all(mx.array_equal(x, y) for x, y in zip(a[1], b[1], strict=True))


def test_compile_without_shapes_raises(host: EmulatedMlxHost) -> None:
    with pytest.raises(ValueError, match="cannot infer output shapes"):
        mx.eval(mx.compile(attend(), shapeless=True)(*arrays()))


@pytest.mark.parametrize("backend", ["auto", "fast_metal"])
def test_vmap_says_what_to_do(host: EmulatedMlxHost, backend: str) -> None:
    """MLX cannot map a kernel that is given as text, but the pure backend; or the mapped axis may join the batch."""
    many = [mx.stack([x, x * 2]) for x in arrays()]
    for function in (attend(backend), mx.grad(loss_of(attend(backend)))):
        with pytest.raises(NotImplementedError, match=r'na2d: mx\.vmap over fast_metal .* use backend="pure"'):
            mx.vmap(function)(*many)
    found = mx.vmap(attend("pure"))(*many)
    assert mx.allclose(found[1], attend()(*(x[1] for x in many)), rtol=0, atol=0.01)
    before, together = len(host.ran), attend(backend)(*(x.flatten(0, 1) for x in many))
    assert mx.allclose(found.flatten(0, 1), together, rtol=0, atol=0.01)
    assert host.templates[before:] == FORWARD


def test_second_derivative_and_forward_mode_raise(host: EmulatedMlxHost) -> None:
    given = arrays()
    loss = loss_of(attend())
    with pytest.raises(NotImplementedError, match="second derivatives"):
        mx.grad(lambda *x: mx.grad(loss)(*x).sum())(*given)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        mx.jvp(loss, given, given)


def test_a_model(host: EmulatedMlxHost, tmp_path: File) -> None:
    """The gradients of a module, on kernels of the last case; and its export, which contains no kernels."""
    case, dtype = BY_NAME[FUSED[2][0]], mx.bfloat16
    model = natten_mlx.NeighborhoodAttention3D(16, 2, case.kernel_size, rel_pos_bias=True)
    model.set_dtype(dtype)
    x = mx.random.normal((1, *case.shape, 16)).astype(dtype)
    step = nn.value_and_grad(model, lambda model, x: (model(x).astype(mx.float32) ** 2).sum())
    found = {}
    for backend in ("fast_metal", "dense"):
        with natten_mlx.use_backend(backend):
            found[backend] = dict(tree_flatten(step(model, x)))
            mx.eval(found)
    assert set(host.templates) == {*FORWARD, *GRADIENT, "na_rpb", "na_sum"}
    for name, wanted in found["dense"].items():
        assert mx.abs(found["fast_metal"][name] - wanted).max() <= 0.03 * mx.abs(wanted).max(), name
    launches, file = len(host.ran), str(tmp_path / "model.mlxfn")
    with natten_mlx.use_backend("fast_metal"):
        natten_mlx.export_function(file, model, x)
    (out,) = mx.import_function(file)(x)
    with natten_mlx.use_backend("pure"):
        assert mx.allclose(out, model(x), rtol=0, atol=0.01)
    assert len(host.ran) == launches


# --- failures ----------------------------------------------------------------------------------------


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (EmulatedMlxHost(breaks="na_fwd"), r"na_fwd_r2_\w+ does not run: .*planted"),
        (EmulatedMlxHost(max_threads=32), r"na_fwd_r2_\w+ does not run: Thread group size \(96\) is greater than"),
    ],
)
def test_a_failure_is_one_warning_and_the_pure_backend(
    install: Install,
    caplog: pytest.LogCaptureFixture,
    broken: EmulatedMlxHost,
    words: str,
) -> None:
    install(broken)
    given = arrays()
    with MLX.watch() as ran:
        found = [attend("auto")(*given), attend("auto")(*given), attend("auto", dilation=(1, 2))(*given)]
        mx.eval(found)
    assert ran == {"fast_metal", "pure"} and not broken.ran
    assert all(mx.array_equal(a, attend("pure")(*given)) for a in found[:2])
    text = natten_mlx.explain("na2d", *given, kernel_size=3)
    assert re.search(rf"^backend: pure \(.*fast_metal: {words}", text, re.MULTILINE)
    (warning,) = warnings_of(caplog)
    assert re.search(words, warning) and "`natten-mlx doctor`" in warning
    assert re.search(r"The plan was: kernel na_fwd_r2_\w+: [\d x]+ threadgroups of \d+ threads$", warning)
    for _ in range(2):
        with pytest.raises(KernelFailure, match=words):
            attend()(*given)


def test_a_failure_of_the_gradient_alone(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    broken, given = install(EmulatedMlxHost(breaks="na_bwd_dkv")), arrays("float16")
    found, gradient = mx.compile(mx.value_and_grad(loss_of(attend("auto"))))(*given)
    mx.eval(found, gradient)
    assert set(broken.templates) == {"na_fwd", "na_delta", "na_bwd_dq"}
    (warning,) = warnings_of(caplog)
    assert re.search(r"The plan was: kernel na_bwd_dkv_r2_\w+: [\d x]+ threadgroups of \d+ threads$", warning)
    assert mx.allclose(gradient, mx.grad(loss_of(attend("dense")))(*given), rtol=0, atol=0.02)
    with pytest.raises(KernelFailure, match="planted"):
        mx.grad(loss_of(attend()))(*given)


def test_without_a_stand_in_there_are_no_kernels_on_a_cpu() -> None:
    """MLX's own host says why."""
    given = arrays()
    reason = "run on a GPU stream; this one is on the CPU" if mx.metal.is_available() else "MLX has no Metal back-end"
    with pytest.raises(NotImplementedError, match=reason):
        natten_mlx.na2d(*given, 3, backend="metal", stream=mx.cpu)


# --- the text ----------------------------------------------------------------------------------------


def test_the_text_is_one_kernel_with_the_strides_it_reads(host: EmulatedMlxHost) -> None:
    mx.eval(mx.grad(loss_of(attend()))(*arrays()))
    for kernel in machine().fast_metal.kernels.values():
        if not isinstance(kernel, Kernel) or kernel.host is not host:
            continue
        (source,) = kernel.sources.values()
        assert source.isascii() and not lint(source)
        signature = source[source.index("[[kernel]]") :].partition(") {")[0]
        assert re.findall(r"(\w+)_strides \[\[", signature) == [
            name for name in ("q", "k", "v", "out_grad") if name in kernel.input_names
        ]
        assert "_shape" not in signature and "_ndim" not in signature
        assert set(re.findall(r"\[\[(\w+)\]\]", signature)) - {"kernel"} == {
            "threadgroup_position_in_grid",
            "simdgroup_index_in_threadgroup",
            "thread_index_in_simdgroup",
        }
        assert signature.count("constant") == signature.count("_strides [[")
