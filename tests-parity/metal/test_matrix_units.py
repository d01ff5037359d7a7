"""Matrix units in both packages: when they are used, what runs then, and that everything else stays as it was."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import frameworks
import numpy as np
import pytest
import tolerances
from cases import Case
from frameworks import MLX, MPS, Framework, Path

from natten_mps._metal.plan import matrix_units
from natten_mps._metal.plan.matrix_units import DTYPES, SIDE, System, expected, reason_missing, self_test

from .conftest import installed, installed_mlx
from .host import MATRIX_UNITS, NO_MATRIX_UNITS, EmulatedHost
from .launch import SCHEDULES, compiled
from .mlx_host import EmulatedMlxHost

pytestmark = pytest.mark.usefixtures("emulator")

# Rows of at least 16 columns, so that columns can be read where they lie; heads are grouped.
CASE = Case("units", (6, 33), (3, 9), (1, 2), (1, 1), (False, False), 1, 4, 2, 32, 32)
WALKS = ("na_fwd", "na_bwd_dq", "na_bwd_dkv")
ON_MATRIX_UNITS = [f"{name}_mpp" for name in WALKS]
# The text by which kernels ask where an element belongs, and one by which rows and columns change places.
PLACE = "return {ushort(valid ? at[1] : 0), ushort(valid ? at[0] : 0)};"
WRONG_PLACE = "return {ushort(valid ? at[0] : 0), ushort(valid ? at[1] : 0)};"


class Altered(EmulatedHost):
    """A host that changes sources before it compiles them."""

    alter: Callable[[str], str] = staticmethod(str)

    def compile_shader(self, source: str) -> Any:
        return super().compile_shader(self.alter(source))


@dataclass
class OnGpu:
    """A package on an emulated GPU that calls itself ``system``."""

    framework: Framework
    backend: str
    host: Any

    def run(self, case: Case = CASE) -> dict[str, Any]:
        found, _ = frameworks.run.__wrapped__(Path(self.framework, self.backend), case, "float16")
        return dict(found)

    def explain(self, case: Case = CASE, dtype: str = "float16") -> str:
        shape, kv = (
            (case.batch, *case.shape, case.heads, case.head_dim),
            (case.batch, *case.shape, case.kv_heads, case.head_dim),
        )
        given = [self.framework.tensor(np.zeros(each), dtype) for each in (shape, kv, kv)]
        text: str = self.framework.package.explain(case.face, *given, **case.window)
        return text

    def walked(self) -> list[str]:
        """Templates of the walks that ran."""
        names = [each.name for each in self.host.ran] if self.framework is MLX else self.host.names
        return list(dict.fromkeys(name.rpartition("_r2")[0] for name in names if name.startswith(WALKS)))


def torch_gpu(monkeypatch: pytest.MonkeyPatch, alter: Callable[[str], str], system: System) -> Any:
    host = Altered()
    host.alter = alter
    return installed(monkeypatch, host, system), MPS, "metal"


def mlx_gpu(monkeypatch: pytest.MonkeyPatch, alter: Callable[[str], str], system: System) -> Any:
    return installed_mlx(monkeypatch, EmulatedMlxHost(alter=alter), system), MLX, "fast_metal"


HOSTS = (torch_gpu, mlx_gpu)


@contextmanager
def on(
    host: Any, monkeypatch: pytest.MonkeyPatch, system: System = MATRIX_UNITS, alter: Callable[[str], str] = str
) -> Iterator[OnGpu]:
    context, framework, backend = host(monkeypatch, alter, system)
    with context as made:
        yield OnGpu(framework, backend, made)


# --- where they are ----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", HOSTS)
def test_calls_run_on_them(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with on(host, monkeypatch) as gpu:
        found, text = gpu.run(), gpu.explain()
        assert text.splitlines()[-1] == "matrix units: used" and "kernel na_fwd_mpp_r2_float16" in text
        assert gpu.walked() == ON_MATRIX_UNITS
        tolerances.assert_within(found, tolerances.fused(CASE, "float16"), "on matrix units")


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    ("case", "dtype", "reason"),
    [
        (CASE, "float32", "matrix units multiply float16 and bfloat16, not float32"),
        (
            Case("wide", (6, 33), (3, 9), (1, 1), (1, 1), (False, False), 1, 1, 1, 136, 136),
            "float16",
            "head dims up to",
        ),
        (Case("few", (4, 512), (1, 8), (1, 1), (4, 64), (False, False), 32, 8, 8, 128, 128), "float16", "to be faster"),
    ],
    ids=["float32", "wide", "few"],
)
def test_what_stays_on_other_kernels(
    host: Any, case: Case, dtype: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with on(host, monkeypatch) as gpu:
        assert reason in gpu.explain(case, dtype).splitlines()[-1]


@pytest.mark.parametrize(("schedule", "seed"), list(itertools.product(SCHEDULES, range(8))))
def test_the_self_test_is_right_in_every_layout(schedule: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    host = EmulatedHost()
    host.schedule, host.seed = schedule, seed
    with installed(monkeypatch, host, MATRIX_UNITS):
        device = MPS.module("_device").device_of(MPS.tensor(np.zeros(1), "float32").device)
        assert device.no_matrix_units == ""
    checks = [launch for launch in host.launches if launch.name.startswith("na_mpp_check")]
    assert len(checks) == len(DTYPES)


# --- where they are not ------------------------------------------------------------------------------


def broken(part: str) -> Callable[[str], str]:
    """Sources that have this name of a kernel do not compile."""
    return lambda source: source + "#error planted\n" if f"C_{part}_r" in source else source


def misplaced(source: str) -> str:
    """Matrix units whose elements are elsewhere than they say."""
    return source.replace(PLACE, WRONG_PLACE)


FAILURES = {
    "chip": (NO_MATRIX_UNITS, str, "Apple M4 has none; Apple M5 and later have"),
    "macos": (System("Apple M5 Pro", "26.2.1"), str, "they need macOS 26.3 or later, and this is 26.2.1"),
    "compiler": (MATRIX_UNITS, broken("na_mpp_check"), "the self-test failed: na_mpp_check_r1_float16"),
    "result": (MATRIX_UNITS, misplaced, "the self-test in float16 gave "),
    "kernel": (MATRIX_UNITS, broken("na_fwd_mpp"), "na_fwd_mpp_r2_float16"),
}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", FAILURES)
def test_without_them_all_is_as_it_was(
    host: Any, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernels of other GPUs run, their results are the same bits, and ``explain`` says why."""
    system, alter, reason = FAILURES[name]
    with on(host, monkeypatch, NO_MATRIX_UNITS) as gpu:
        wanted = gpu.run()
    with on(host, monkeypatch, system, alter) as gpu:
        found, text = gpu.run(), gpu.explain()
        (line,) = [line for line in text.splitlines() if line.startswith("matrix units: ")]
        assert line.startswith(f"matrix units: not used ({reason}"), line
        forward = found["out"], wanted["out"]
        assert forward[0].tobytes() == forward[1].tobytes() and "kernel na_fwd_r2_float16" in text
        walked = gpu.walked()
        if name == "kernel":  # gradients have kernels of their own
            assert walked == ["na_fwd", *ON_MATRIX_UNITS[1:]]
            tolerances.assert_within(found, tolerances.fused(CASE, "float16"), "gradients on matrix units")
        else:
            assert walked == list(WALKS)
            assert all(values.tobytes() == wanted[key].tobytes() for key, values in found.items())
    said = [record.message for record in caplog.records if "matrix units" in record.message]
    assert len(said) == (name in ("compiler", "result", "kernel")), said


@pytest.mark.parametrize("host", HOSTS)
def test_the_switch(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATTEN_MATMUL2D", "0")
    with on(host, monkeypatch) as gpu:
        assert gpu.explain().splitlines()[-1] == "matrix units: not used (NATTEN_MATMUL2D=0 turns them off)"
        gpu.run()
        assert gpu.walked() == list(WALKS)
        assert "na_mpp_check" not in str(gpu.host.names if gpu.framework is MPS else gpu.host.ran)
    monkeypatch.setenv("NATTEN_MATMUL2D", "no")
    with (
        on(host, monkeypatch) as gpu,
        pytest.raises(ValueError, match="NATTEN_MATMUL2D is 'no'; 0 turns the kernels on"),
    ):
        gpu.explain()


# --- the questions -----------------------------------------------------------------------------------


def right(program: Any, given: Any) -> list[float]:
    return expected(given["rows"], given["columns"])


def test_each_question_is_asked_only_if_the_last_one_went_well() -> None:
    def never(program: Any, given: Any) -> list[float]:
        raise AssertionError("no kernel should run")

    for system in (System("Apple M4 Max", "26.4"), System("AMD EPYC", ""), System("Apple M5", "15.6"), System("", "")):
        assert reason_missing(system, never)
    assert reason_missing(System("Apple M6 Ultra", "27.0"), right) == ""
    assert matrix_units.missing_in("Apple M10") == "" and matrix_units.missing_in("Apple M1 Max")


def test_every_wrong_number_is_noticed() -> None:
    """Of both products, of the rows' values, of how many elements there are; and what is missing, or no number."""
    wanted = expected(**matrix_units.matrices())
    count, end = len(wanted), 2 * SIDE + 2  # the rows' values and the numbers of elements come last
    for at in (*range(0, count, 7), *range(count // 2 - end, count // 2), *range(count - end, count)):
        found = list(wanted)
        found[at] += (0.5, float("nan"))[at % 2]
        assert f"at {at} of {count}" in self_test(lambda program, given, found=found: found)  # type: ignore[misc]
    assert "gave nothing" in self_test(lambda program, given: right(program, given)[:-1])


def failing(program: Any, given: Any) -> list[float]:
    raise RuntimeError("the GPU does not answer")


def test_an_error_of_the_gpu_is_a_reason() -> None:
    assert self_test(failing) == "the self-test failed: the GPU does not answer"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (PLACE, WRONG_PLACE),
        ("reduction_operation::max, -MAXFLOAT", "reduction_operation::max, 0.0f"),
        ("if (op.template is_compatible_as_left_input<float, T, float>(w)) {", "if (true) {"),
        ("mode::multiply_accumulate", "mode::multiply"),
    ],
    ids=["places", "largest", "conversion", "accumulate"],
)
def test_the_self_test_notices_other_units(right: str, wrong: str, dtype: str) -> None:
    """Units that answer otherwise than Metal's documents say: a wrong number, or a fault, in some layout."""
    program = matrix_units.program(dtype)
    (launch,) = program.launches
    from natten_mps._metal.metal.source import library

    source = library((launch.instance,))
    assert source.count(right) == 1
    kernel = compiled(source.replace(right, wrong)).kernel(launch.instance.name)
    assert any(outcome(kernel, launch, program, seed) for seed in range(8))


def outcome(kernel: Any, launch: Any, program: Any, seed: int) -> str:
    """What the self-test says of a kernel, or the emulator of its launch; '' if both find nothing."""
    from metal_emulator import EmulatorFault

    from .launch import run

    def launched(program: Any, given: Any) -> list[float]:
        tensors = {name: np.array(values, float) for name, values in given.items()}
        return [float(value) for value in run(launch, kernel, tensors, seed=seed).outputs["found"].values]

    try:
        return self_test(launched)
    except EmulatorFault as fault:
        return str(fault)
