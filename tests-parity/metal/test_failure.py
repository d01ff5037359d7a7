"""Failures of Metal: kernels that do not compile, do not launch, or allow fewer threads than planned."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import natten_mps
from natten_mps._device import on_machine
from natten_mps._launch import metal as _launch
from natten_mps._metal.metal import source
from natten_mps._metal.metal.templates import TEMPLATES
from natten_mps._metal.plan import backends
from natten_mps._metal.plan.verdicts import KernelFailure
from natten_mps._metal.tools import doctor
from natten_mps._tools.doctor import PATIENT

from .host import EmulatedHost, EmulatedMachine

WALKING = tuple(template.name for template in TEMPLATES.values() if template.walks)
Record = list[logging.LogRecord]


class Collector(logging.Handler):
    """Collects warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: Record = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Record]:
    """What the package logs as warnings, in a process that has not logged anything yet."""
    backends.logged.clear()
    handler = Collector()
    backends.log.addHandler(handler)
    yield handler.records
    backends.log.removeHandler(handler)


def tensors() -> list[Any]:
    torch.manual_seed(0)
    return [torch.randn(1, 13, 2, 8, requires_grad=True) for _ in range(3)]


def results(backend: str | None, given: list[Any]) -> list[Any]:
    out, lse = natten_mps.na1d(*given, 5, return_lse=True, backend=backend)
    return [out, lse, *torch.autograd.grad(out.sin().sum() + lse.sum(), given)]


def assert_pure(found: list[Any], given: list[Any]) -> None:
    """Assert that these are the pure backend's results, to the bit."""
    for a, b in zip(found, results("pure", given), strict=True):
        assert torch.equal(a, b)


def with_broken(monkeypatch: pytest.MonkeyPatch, *templates: str) -> None:
    """Break ``templates``: their entry points call a function that does not exist."""
    working = source.entry_point

    def entry_point(instance: source.Instance) -> str:
        made = working(instance)
        return made.replace("na::na_", "na::absent_na_") if instance.template in templates else made

    monkeypatch.setattr(source, "entry_point", entry_point)


def assert_one_warning(warnings: Record, face: str, what: str, template: str) -> None:
    """It names the op, the beginning of the compiler's message, how to report it, and the launch that failed."""
    (record,) = warnings
    message = record.getMessage()
    start = f"{face}: the Metal kernels failed on this machine and the pure backend runs instead. "
    assert message.startswith(start), message
    assert re.search(what, message), message
    assert ". Please report this, with the output of `natten-mps doctor`. The plan was: " in message
    plan = message.partition("The plan was: ")[2]
    assert re.fullmatch(rf"kernel {template}_r\d_\w+: \d+ x \d+ x \d+ threadgroups of \d+ threads", plan), plan
    assert len(message) < 1000


def test_a_kernel_that_does_not_compile(metal: EmulatedHost, warnings: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """auto: one warning and the pure result, forward and backward; a second call neither warns nor compiles."""
    with_broken(monkeypatch, "na_fwd")
    given = tensors()
    assert "backend: metal" in natten_mps.explain("na1d", *given, kernel_size=5)
    out = natten_mps.na1d(*given, 5)
    assert torch.equal(out, natten_mps.na1d(*given, 5, backend="pure"))
    assert_one_warning(
        warnings, "na1d", r"na_fwd\w+ does not compile: failed to compile source code: .*absent_na_fwd", "na_fwd"
    )
    tried = len(metal.compilations)
    assert torch.equal(natten_mps.na1d(*given, 5), out)
    assert len(warnings) == 1 and len(metal.compilations) == tried == 1 and not metal.launches


def test_a_gradient_that_does_not_compile(
    metal: EmulatedHost, warnings: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward ran on Metal; its gradients come from the pure backend, and only those are warned about."""
    with_broken(monkeypatch, "na_bwd_dkv")
    given = tensors()
    for _ in range(2):
        found = results(None, given)
        for a, b in zip(found, results("pure", given), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)
    words = r"na_bwd_dkv\w+ does not compile: failed to compile source code: .*absent_na_bwd_dkv"
    assert_one_warning(warnings, "na1d", words, "na_bwd_dkv")
    assert [name.partition("_r1")[0] for name in metal.names] == ["na_fwd"] * 2


def matrix() -> dict[str, Any]:
    """The support matrix's entry of Metal, with the emulated GPU posing as the CPU."""
    return natten_mps.get_support_matrix()["metal"]


def test_explain_says_what_runs(metal: EmulatedHost, warnings: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a kernel has failed, plans avoid it and say why; problems that need only other kernels still use Metal."""
    with_broken(monkeypatch, "na_fwd")
    given, image = tensors(), [torch.randn(1, 5, 5, 1, 8) for _ in range(3)]
    assert "failed" not in matrix()["limits"]
    natten_mps.na1d(*given, 5)
    text = natten_mps.explain("na1d", *given, kernel_size=5)
    assert re.search(
        r"^backend: pure \(metal: na_fwd_r1_\w+ does not compile: .*absent_na_fwd.*\)$", text, re.MULTILINE
    )
    with pytest.raises(KernelFailure, match=r"na_fwd_r1_\w+ does not compile"):
        natten_mps.explain("na1d", *given, kernel_size=5, backend="metal")
    assert re.match(r"na_fwd_r1_\w+ does not compile", matrix()["limits"]["failed"])
    assert "backend: metal" in natten_mps.explain("na2d", *image, kernel_size=3)  # this kernel has not been tried yet
    assert "backend: metal" in natten_mps.explain("na1d_qk", *given[:2], kernel_size=5)
    assert len(warnings) == 1 and not metal.launches


def test_explain_names_a_gradient_that_failed(
    metal: EmulatedHost, warnings: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_broken(monkeypatch, "na_bwd_dkv")
    given = tensors()
    assert "gradients" not in natten_mps.explain("na1d", *given, kernel_size=5)
    results(None, given)
    text = natten_mps.explain("na1d", *given, kernel_size=5)
    assert "backend: metal" in text
    assert re.search(r"^gradients: pure \(na_bwd_dkv_r1_\w+ does not compile: ", text, re.MULTILINE)
    assert matrix()["forward"] and "na_bwd_dkv" in matrix()["limits"]["failed"]


def test_another_shape_does_not_warn_again(
    metal: EmulatedHost, warnings: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What failed is the kernel, and other shapes use it too."""
    with_broken(monkeypatch, "na_fwd")
    for length in (9, 10, 11):
        query = torch.randn(1, length, 1, 8)
        natten_mps.na1d(query, query, query, 3)
    assert len(metal.compilations) == 1
    assert_one_warning(warnings, "na1d", "does not compile", "na_fwd")


def test_each_op_warns_once(metal: EmulatedHost, warnings: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    with_broken(monkeypatch, "na_fwd", "na_qk")
    query = torch.randn(1, 9, 1, 8)
    for _ in range(2):
        natten_mps.na1d(query, query, query, 3)
        natten_mps.na1d_qk(query, query, 3)
    assert [record.getMessage().partition(":")[0] for record in warnings] == ["na1d", "na1d_qk"]


def test_metal_that_was_requested_raises(
    metal: EmulatedHost, warnings: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same message each time, and no second compilation."""
    with_broken(monkeypatch, "na_fwd")
    given = tensors()
    words = []
    for _ in range(2):
        with pytest.raises(KernelFailure, match="does not compile") as caught:
            natten_mps.na1d(*given, 5, backend="metal")
        words.append(str(caught.value))
    assert words[0] == words[1] and len(metal.compilations) == 1
    assert not warnings


def test_a_source_that_is_not_ascii(metal: EmulatedHost, warnings: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    working = source.entry_point
    monkeypatch.setattr(source, "entry_point", lambda instance: working(instance) + "// \N{MICRO SIGN}\n")
    query = torch.randn(1, 9, 1, 8)
    natten_mps.na1d(query, query, query, 3)
    assert_one_warning(warnings, "na1d", r"na_fwd\w+ does not compile: program source must be ASCII", "na_fwd")


@pytest.mark.parametrize("backend", [None, "metal"])
def test_a_launch_that_is_refused(backend: str | None, metal: EmulatedHost, warnings: Record) -> None:
    given = tensors()
    metal.refuses = "command buffer exited with error status\nline 2\nline 3\nline 4"
    words = r"na_fwd\w+ does not launch: command buffer exited with error status \| line 2 \| line 3"
    if backend:
        with pytest.raises(KernelFailure, match=f"^{words}$"):
            natten_mps.na1d(*given, 5, backend=backend)
        assert not warnings
        return
    for _ in range(2):
        assert_pure(results(None, given), given)
    assert_one_warning(warnings, "na1d", words, "na_fwd")


def test_a_defect_that_the_emulator_finds_is_no_fallback(metal: EmulatedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect of a kernel is an AssertionError, which no launcher takes for a failure of Metal."""
    monkeypatch.setattr(
        _launch, "_params_tensor", lambda host, launch, bound, device: torch.zeros(8, dtype=torch.int64)
    )
    query = torch.randn(1, 9, 1, 8)
    with pytest.raises(AssertionError, match="out of bounds"):
        natten_mps.na1d(query, query, query, 3)


@pytest.mark.parametrize("backend", [None, "metal"])
def test_the_doctor_of_broken_kernels(
    backend: str | None, metal: EmulatedHost, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says which cases fail and why, goes on with the others, and returns 1."""
    with_broken(monkeypatch, "na_qk")
    monkeypatch.setattr(doctor, "REPEATS", 1)
    names = ("1-D", "split 1-D half, causal", "2-D odd head dims")
    cases = tuple(case for name in names for case in doctor.CASES if case.name == name)
    assert doctor.examine(PATIENT, backend, cases) == 1
    printed = capsys.readouterr().out.splitlines()
    rows = [line for line in printed if line.startswith("metal  ")]
    assert [row[12:40].strip() for row in rows] == list(names)
    assert "FAILED" not in rows[0] + rows[2]
    assert re.match(r".{40}float16 +FAILED: na_qk\w+ does not compile: failed to compile .*absent_na_qk", rows[1])
    total = len(cases) * (
        1 if backend else sum(reason is None for name, reason in PATIENT.reasons().items() if name != "dense")
    )
    assert printed[-1] == f"{total - 1} of {total} within bounds; 1 FAILED: please report this table"
    assert {name.rpartition("_r")[0] for name in metal.names} == {"na_fwd", "na_delta", "na_bwd_dq", "na_bwd_dkv"}


# --- fewer threads than planned ----------------------------------------------------------------------


def long_tensors() -> list[Any]:
    torch.manual_seed(1)
    return [torch.randn(1, 64, 1, 16, requires_grad=True) for _ in range(3)]


def test_smaller_threadgroups_are_planned(metal: EmulatedHost, warnings: Record) -> None:
    """Kernels that allow fewer simdgroups than planned run with as many as they allow, and give correct results."""
    given = long_tensors()
    wanted = results("pure", given)
    threads = {}
    for most in (1024, 96, 32):
        # Kernels that walk use many registers; the others always have room.
        metal.allowed_threads = lambda name, most=most: most if name.startswith(WALKING) else 1024
        metal.launches.clear()
        with on_machine(EmulatedMachine(metal)):  # one that has learned nothing yet
            for a, b in zip(results("metal", given), wanted, strict=True):
                torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)
        walks = [launch for launch in metal.launches if launch.executed]
        assert len(walks) == 3 and all(launch.written_once for launch in metal.launches)
        threads[most] = max(launch.threads for launch in walks)
    assert threads[1024] > 96 >= threads[96] > 32 == threads[32]
    assert not warnings
