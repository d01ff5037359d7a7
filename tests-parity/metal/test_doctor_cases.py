"""The doctor itself on emulated Metal, in both packages: what a Mac's user sees, and that it was Metal that ran."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from doctor_cases import launches_of

from natten_mps._metal.metal import source
from natten_mps._metal.tools import doctor

from .host import EmulatedHost
from .mlx_host import EmulatedMlxHost

# Cases that run by default; together they cover every template. The whole table, in both packages, runs with --all.
GATE = {"1-D half, keys and bias": "torch", "split 2-D, bias": "mlx"}


def cases_of(framework: str) -> Any:
    """The index of every case, as the parameter ``place``."""
    marked = [
        pytest.param(place, id=case.name, marks=[] if GATE.get(case.name) == framework else [pytest.mark.all])
        for place, case in enumerate(doctor.CASES)
    ]
    return pytest.mark.parametrize("place", marked)


TURNS = 2  # the first call and one more


def examine(package: str, place: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of the package's own doctor, which examines the case at ``place`` of its table."""
    own: Any = importlib.import_module(f"{package}._metal.tools.doctor")
    monkeypatch.setattr(own, "REPEATS", TURNS - 1)
    patient = importlib.import_module(f"{package}._tools.doctor").PATIENT
    status: int = own.examine(patient, backend, own.CASES[place : place + 1])
    return status


def assert_well(printed: str, backend: str, case: doctor.Case) -> None:
    """One row, for that case on that backend, and a verdict."""
    *_, row, verdict = printed.splitlines()
    assert row[:50].split() == [backend, *case.name.split(), case.dtype]
    assert "WRONG" not in row and "FAILED" not in row
    assert verdict == "1 of 1 within bounds"


def test_the_gate_spans_every_kernel() -> None:
    launched = {case.name: {launch.instance.template for launch in launches_of(case)} for case in doctor.CASES}
    assert set().union(*(launched[name] for name in GATE)) == set(source.TEMPLATES)


@cases_of("torch")
def test_torch(
    place: int, metal: EmulatedHost, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = doctor.CASES[place]
    assert examine("natten_mps", place, "metal", monkeypatch) == 0
    assert_well(capsys.readouterr().out, "metal", case)
    planned = [launch.instance.template for launch in launches_of(case)]
    assert sorted(name.rpartition("_r")[0] for name in metal.names) == sorted(planned * TURNS)
    assert all(launch.written_once for launch in metal.launches)


@cases_of("mlx")
def test_mlx(
    place: int, mlx_metal: EmulatedMlxHost, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Requested by the name that the help's example uses."""
    case = doctor.CASES[place]
    assert examine("natten_mlx", place, "metal", monkeypatch) == 0
    assert_well(capsys.readouterr().out, "fast_metal", case)
    planned = [launch.instance.template for launch in launches_of(case)]
    proofs = [name.rpartition("_r")[0] for name in {launch.name for launch in mlx_metal.ran}]
    assert sorted(mlx_metal.templates) == sorted(planned * TURNS + proofs)
