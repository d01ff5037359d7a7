"""natten_mlx's C++ primitives on a GPU stream, except for the last step: the emulator runs what they would launch.

The plans, the text that a GPU would compile, and the parameters, which the extension itself fills in, are real; only
the encoding of a launch (``csrc/metal.cpp``) has a stand-in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import tolerances
from cases import BY_NAME, INPUTS, Case, inputs, slot_inputs
from frameworks import MLX
from metal_emulator import Buffer

from natten_mlx import _autodiff
from natten_mlx._device import Machine, machine, on_machine
from natten_mlx._launch import nanobind_metal
from natten_mlx._launch.extension import ExtensionHost
from natten_mlx._launch.extension import specs as extension_specs
from natten_mlx._metal.plan.backend import NANOBIND, PURE
from natten_mlx._metal.plan.device import Device
from natten_mlx._metal.plan.verdicts import KernelFailure

from .launch import compiled
from .mlx_host import poisoned_copy

pytestmark = [pytest.mark.usefixtures("emulator"), pytest.mark.xdist_group("nanobind-launches")]

Tensor = tuple[str, tuple[int, ...], mx.Dtype]
# The error of float32 sums over at most a few hundred terms of about 1.
LIMIT = 2e-5


@dataclass(frozen=True)
class Launch:
    """The arguments of the extension's Launch, and the Launch itself."""

    kernel: tuple[str, str]
    grid: tuple[int, int, int]
    threads: int
    params: list[int]
    buffers: list[tuple[int, bool]]
    strided: list[tuple[int, int, int]]
    real: Any


@dataclass(frozen=True)
class Plan:
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    scratch: Sequence[Tensor]
    launches: Sequence[Launch]


@dataclass
class Extension:
    """The extension with an emulated GPU, which computes immediately."""

    real: Any
    ran: list[str] = field(default_factory=list)

    def Kernel(self, name: str, source: str) -> tuple[str, str]:
        return name, source

    def Launch(self, kernel: tuple[str, str], *rest: Any) -> Launch:
        return Launch(kernel, *rest, self.real.Launch(self.real.Kernel(*kernel), *rest))

    def plan(
        self, problem: Any, function: str, inputs: Any, outputs: Any, scratch: Any, launches: Any, call: bytes
    ) -> Plan:
        return Plan(inputs, outputs, scratch, launches)

    def apply(self, plan: Plan, arrays: Sequence[mx.array], stream: Any) -> list[mx.array]:
        for array, (name, shape, dtype) in zip(arrays, plan.inputs, strict=True):
            assert (array.shape, array.dtype) == (shape, dtype), name
        made = [np.full(shape, np.nan, str(dtype).split(".")[-1]) for _, shape, dtype in [*plan.outputs, *plan.scratch]]
        mx.eval(*arrays)
        tensors = [*arrays, *(mx.zeros(array.shape) for array in made)]
        mx.eval(*tensors)
        for launch in plan.launches:
            self.launch(launch, arrays, tensors, made)
        return [mx.array(array) for array in made[: len(plan.outputs)]]

    def launch(self, launch: Launch, arrays: Sequence[mx.array], tensors: list[mx.array], made: list[Any]) -> None:
        params = np.array(launch.real.parameters(tensors), np.int64)
        bound = []
        for tensor, written in launch.buffers:
            if tensor == -1:
                bound.append(Buffer(params))
            elif tensor < len(arrays):
                assert not written
                view = np.asarray(memoryview(arrays[tensor]))
                strides = [stride // view.itemsize for stride in view.strides]
                bound.append(poisoned_copy((view.ctypes.data, list(view.shape), strides), view.itemsize))
            else:
                bound.append(Buffer(made[tensor - len(arrays)].reshape(-1), initialised=not written))
        name, source = launch.kernel
        x, y, z = launch.grid
        report = compiled(source).kernel(name).launch(bound, (x * launch.threads, y, z), (launch.threads, 1, 1))
        assert all(report.written_once(index) for index, (_, written) in enumerate(launch.buffers) if written), name
        self.ran.append(name)


class EmulatedHost(ExtensionHost):
    """A host that has the extension with an emulated GPU."""

    def __init__(self, extension: Extension) -> None:
        super().__init__()
        self.__dict__["found"] = extension


class EmulatedMachine(Machine):
    """A machine whose CPU stream passes for a GPU's. no_matrix_units: '' where it has such units."""

    no_matrix_units = "this GPU has none"

    def _view_of(self, stream: mx.Stream) -> Device:
        return Device("gpu", "gpu", float64=False, no_matrix_units=self.no_matrix_units)


@pytest.fixture
def gpu() -> Iterator[Extension]:
    """Arrays of the CPU get the plans and launches of a GPU stream."""
    MLX.package  # noqa: B018 - selects the CPU
    extension = Extension(machine().nanobind.found)
    with on_machine(EmulatedMachine(nanobind=EmulatedHost(extension))):
        yield extension


def apart(array: mx.array) -> mx.array:
    """The same values with strided channels and another order of axes."""
    spread = mx.repeat(mx.swapaxes(array, 1, -2), 2, axis=-1)
    return mx.swapaxes(spread[..., ::2], 1, -2)


def tensors_of(case: Case) -> dict[str, mx.array]:
    """Every tensor of the fused op, in float32 but for the mask, and cotangents."""
    arrays = inputs(case, "float32")
    return {n: MLX.tensor(a, "bool" if n == "key_mask" else "float32") for n, a in arrays.items()}


def node(kind: Any, case: Case, op: str, names: Sequence[str], backend: str = NANOBIND.name) -> Any:
    stream = mx.default_stream(mx.cpu)
    return kind(machine().plan_on(stream, case.problem("float32", op), backend), stream, tuple(names))


def close(found: Sequence[mx.array], wanted: Sequence[mx.array]) -> None:
    for a, b in zip(found, wanted, strict=True):
        values, reference = MLX.numpy(a), MLX.numpy(b)
        held = np.isfinite(reference)
        np.testing.assert_array_equal(values[~held], reference[~held])
        assert np.abs(values[held] - reference[held]).max() <= LIMIT * max(np.abs(reference[held]).max(), 1.0)


@pytest.mark.parametrize("name", ["seq-additional-everything", "img-rpb", "img-masked-rpb"])
@pytest.mark.parametrize("lay", [mx.array, apart], ids=["packed", "apart"])
def test_fused(gpu: Extension, name: str, lay: Any) -> None:
    case = BY_NAME[name]
    arrays = tensors_of(case)
    given = {n: arrays[n] if n in ("rpb", "key_mask") else lay(arrays[n]) for n in (*INPUTS, "key_mask") if n in arrays}
    forward, backward = (node(k, case, "na", given) for k in (_autodiff.Forward, _autodiff.Backward))
    found = forward(tuple(given.values()))
    grads = [lay(arrays["d_out"]), arrays["d_lse"]]
    gradients = backward((*grads, *given.values(), *found))
    options = case.window | {"scale": case.scale, "return_lse": True, "backend": "pure"}
    options |= {n: given.pop(n) for n in ("key_mask",) if n in given}
    call = lambda *a: list(MLX.face(case.face)(**dict(zip(given, a, strict=True)), **options))  # noqa: E731
    wanted = mx.vjp(call, [arrays[n] for n in given], [arrays["d_out"], arrays["d_lse"]])
    close(found, wanted[0])
    close(gradients, wanted[1])
    templates = {"na_fwd", "na_delta", "na_bwd_dq", "na_bwd_dkv", "na_sum"} | ({"na_rpb"} if case.rpb else set())
    assert {ran.rpartition("_r")[0] for ran in gpu.ran} == templates


@pytest.mark.parametrize("lay", [mx.array, apart], ids=["packed", "apart"])
@pytest.mark.parametrize(("shape", "window"), [((2, 48), (2, 33)), ((5, 9), (5, 9))], ids=["in rows", "gathered"])
def test_on_matrix_units(gpu: Extension, lay: Any, shape: tuple[int, int], window: tuple[int, int]) -> None:
    """Columns that are read where they lie are made contiguous first, and such a plan is not recalled for others."""
    case = Case("units", shape, window, (1, 1), (1, 1), (False, False), 1, 4, 2, 64, 64)
    machine().no_matrix_units = ""  # type: ignore[attr-defined]
    arrays = {n: MLX.tensor(a, "float16") for n, a in inputs(case, "float16").items()}
    given = {n: lay(arrays[n]) for n in ("query", "key", "value")}
    planned = machine().plan_on(mx.default_stream(mx.cpu), case.problem("float16"), NANOBIND.name)
    walks = [i for i in (launch.instance for launch in planned.forward.launches + planned.backward.launches) if i.mpp]
    assert len(walks) == 3 and {i.flat for i in walks} == {shape[-1] < 16}
    stream = mx.default_stream(mx.cpu)
    forward, backward = (kind(planned, stream, tuple(given)) for kind in (_autodiff.Forward, _autodiff.Backward))
    out, lse = forward(tuple(given.values()))
    lse_grad = arrays["d_lse"].astype(mx.float32)
    gradients = backward((lay(arrays["d_out"]), lse_grad, *given.values(), out, lse))
    named = {"out": out, "lse": lse} | dict(zip(("query", "key", "value"), gradients, strict=True))
    found = {name: MLX.numpy(array) for name, array in named.items()}
    tolerances.assert_within(found, tolerances.fused(case, "float16"), "on matrix units")
    ran = (name.rpartition("_r2")[0] for name in gpu.ran if "_mpp_" in name)
    assert list(dict.fromkeys(ran)) == [i.template for i in walks]  # each was tried first
    signature = object()
    host: Any = machine().nanobind  # type: ignore[attr-defined]
    call = SimpleNamespace(program=planned.forward, key=signature)
    host.plans.get_or_make((signature, extension_specs(given)), lambda: "a plan")
    host.remember(signature, call, given)
    recalled = host.remembered.get_or_make(signature, lambda: None)
    assert recalled == (None if shape[-1] >= 16 else "a plan")


def test_a_mask_that_was_packed(gpu: Extension) -> None:
    """A primitive gives its derivatives the words that it read: kernels read them as they are, pure as bools."""
    case = BY_NAME["img-masked-rpb"]
    arrays = tensors_of(case)
    given = {n: arrays[n] for n in (*INPUTS, "key_mask") if n in arrays}
    words = nanobind_metal.packed(given["key_mask"], mx.default_stream(mx.cpu))
    assert words.dtype == mx.int32 and words is nanobind_metal.packed(words, mx.default_stream(mx.cpu))
    for backend in (NANOBIND.name, PURE.name):
        forward, backward = (node(k, case, "na", given, backend) for k in (_autodiff.Forward, _autodiff.Backward))
        outputs = forward(tuple(given.values()))
        found = []
        for mask in (given["key_mask"], words):
            made = tuple((given | {"key_mask": mask}).values())
            with MLX.watch() as ran:
                found.append([*forward(made), *backward((arrays["d_out"], arrays["d_lse"], *made, *outputs))])
            assert ran == {backend}
        assert len(found[0]) == 6
        assert all(mx.array_equal(a, b, equal_nan=True) for a, b in zip(*found, strict=True))


def test_split(gpu: Extension) -> None:
    case = BY_NAME["img-gqa"]
    arrays = {n: MLX.tensor(a, "float32") for n, a in (inputs(case, "float32") | slot_inputs(case, "float32")).items()}
    for op, names, cotangent in (("qk", ("query", "key"), "d_logits"), ("av", ("attn", "value"), "d_out")):
        given = {n: apart(arrays[n]) for n in names}
        forward, backward = (node(k, case, op, given) for k in (_autodiff.Forward, _autodiff.Backward))
        found = forward(tuple(given.values()))
        grad = apart(arrays[cotangent])
        gradients = backward((grad, *given.values(), grad))
        options = {"scale": case.scale} if op == "qk" else {}
        call = lambda *a, op=op, options=options: [  # noqa: E731
            MLX.face(f"{case.face}_{op}")(*a, **case.window, **options, backend="pure")
        ]
        wanted = mx.vjp(call, [arrays[n] for n in names], [arrays[cotangent]])
        close(found, wanted[0])
        close(gradients, wanted[1])


def test_a_kernel_that_does_not_run_is_found_by_its_probe(gpu: Extension, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the user's problem is launched; and the failure is recorded."""
    case, launched = BY_NAME["seq-dim3-values5"], []

    def refuse(*arguments: Any) -> None:
        launched.append(arguments)
        raise RuntimeError("[metal::Device] no such luck")

    monkeypatch.setattr(gpu, "launch", refuse)
    given = {n: MLX.tensor(a, "float32") for n, a in inputs(case, "float32").items() if n in INPUTS}
    for _ in range(2):
        with pytest.raises(KernelFailure, match="no such luck"):
            node(_autodiff.Forward, case, "na", given)(tuple(given.values()))
    assert len(launched) == 1
