"""The doctor itself on emulated Metal, in both packages: what a user of a Mac sees, and that Metal ran."""

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
DEFAULT = {"1-D half, keys and bias": "torch", "split 2-D, bias": "mlx"}


def cases_of(framework: str) -> Any:
    """All cases by index, as the parameter ``index``."""
    marked = [
        pytest.param(index, id=case.name, marks=[] if DEFAULT.get(case.name) == framework else [pytest.mark.all])
        for index, case in enumerate(doctor.CASES)
    ]
    return pytest.mark.parametrize("index", marked)


TURNS = 2  # the first call and one more


def examine(package: str, index: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of the package's doctor when it examines one case of its table."""
    own: Any = importlib.import_module(f"{package}._metal.tools.doctor")
    monkeypatch.setattr(own, "REPEATS", TURNS - 1)
    patient = importlib.import_module(f"{package}._tools.doctor").PATIENT
    case, name = own.CASES[index], patient.backends.aliases.get(backend, backend)
    assert set(patient.templates(case, name)) == {launch.instance.template for launch in launches_of(case)}
    status: int = own.examine(patient, backend, own.CASES[index : index + 1])
    return status


def assert_well(printed: str, backend: str, case: doctor.Case) -> None:
    """Assert that the report has one row, for that case on that backend, and the last line."""
    *_, row, last = printed.splitlines()
    assert row[:50].split() == [backend, *case.name.split(), case.dtype]
    assert "WRONG" not in row and "FAILED" not in row
    assert last == "1 of 1 within bounds"


def test_the_default_run_covers_every_template() -> None:
    launched = {case.name: {launch.instance.template for launch in launches_of(case)} for case in doctor.CASES}
    assert set().union(*(launched[name] for name in DEFAULT)) == set(source.TEMPLATES)


@cases_of("torch")
def test_torch(
    index: int, metal: EmulatedHost, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = doctor.CASES[index]
    assert examine("natten_mps", index, "metal", monkeypatch) == 0
    assert_well(capsys.readouterr().out, "metal", case)
    planned = [launch.instance.template for launch in launches_of(case)]
    assert sorted(name.rpartition("_r")[0] for name in metal.names) == sorted(planned * TURNS)
    assert all(launch.written_once for launch in metal.launches)


@cases_of("mlx")
def test_mlx(
    index: int, mlx_metal: EmulatedMlxHost, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Requested by the name that the help's example uses."""
    case = doctor.CASES[index]
    assert examine("natten_mlx", index, "metal", monkeypatch) == 0
    assert_well(capsys.readouterr().out, "fast_metal", case)
    planned = [launch.instance.template for launch in launches_of(case)]
    probes = [name.rpartition("_r")[0] for name in {launch.name for launch in mlx_metal.ran}]
    assert sorted(mlx_metal.templates) == sorted(planned * TURNS + probes)
