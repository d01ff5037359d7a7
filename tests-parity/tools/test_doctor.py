"""``natten-mps doctor`` and ``natten-mlx doctor``: what they print, and that they can fail."""

import dataclasses
import importlib
import itertools
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from doctor_cases import launches_of

from natten_mps._metal.metal import source
from natten_mps._metal.metal.op_launches import Launch, fills_words
from natten_mps._metal.metal.sizes import DIMS
from natten_mps._metal.metal.templates import MPP_TEMPLATES, NARROW, TEMPLATES
from natten_mps._metal.plan import costs, tuning
from natten_mps._metal.plan.costs import predicted
from natten_mps._metal.tools import doctor

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "doctor.md"
PACKAGES = ("natten_mps", "natten_mlx")
FEW = [case for case in doctor.CASES if case.name in ("1-D", "2-D position bias", "split 1-D half, causal")]


def patient_of(package: str) -> doctor.Patient:
    """The package under examination, with its doctor's classes in natten_mps's copy of the shared code."""
    found = importlib.import_module(f"{package}._tools.doctor").PATIENT
    return doctor.Patient(*(getattr(found, field.name) for field in dataclasses.fields(found)))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_healthy_package(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    patient = patient_of(package)
    assert doctor.examine(patient, "pure", tuple(FEW)) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "3 of 3 within bounds"
    rows = [line for line in printed.splitlines() if line.startswith("pure ")]
    assert [row[12:40].strip() for row in rows] == [case.name for case in FEW]
    for backend, reason in patient.reasons().items():
        assert f"  {backend}: {reason or 'available'}" in printed.splitlines()


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("name", ["output 0", "gradient of key"])
@pytest.mark.parametrize("wrong", [1.01, float("nan")])
def test_a_wrong_result_is_found(package: str, name: str, wrong: float, capsys: pytest.CaptureFixture[str]) -> None:
    patient = patient_of(package)

    def spoiled(case: doctor.Case, backend: str) -> dict[str, Any]:
        found = patient.run(case, backend)
        return found | {name: found[name] * wrong} if backend == "pure" else found

    ill = dataclasses.replace(patient, run=spoiled)
    assert doctor.examine(ill, "pure", tuple(FEW[:1])) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "0 of 1 within bounds; 1 WRONG: please report this table"
    assert printed[-2].endswith(f"WRONG: {name}")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_kernel_that_does_not_run(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A failing kernel costs its own row, which quotes the compiler, and no other; a wrong result is reported
    differently.
    """
    patient, broken, wrong = patient_of(package), FEW[0], FEW[1]
    verdicts = importlib.import_module(f"{package}._metal.plan.verdicts")
    op_launches = importlib.import_module(f"{package}._metal.metal.op_launches")
    source = importlib.import_module(f"{package}._metal.metal.source")
    launch = op_launches.Launch(source.Instance("na_fwd", "float32", 1, 32, 32), (1, 1, 1), 128, (), (), ())

    def run(case: doctor.Case, backend: str) -> dict[str, Any]:
        if case == broken and backend == "pure":
            words = "error: no such\nfunction: na\nthird line\nfourth line"
            raise verdicts.KernelFailure(verdicts.Failure(launch, "compile", words))
        found = patient.run(case, backend)
        return found | {"output 0": found["output 0"] * 2} if case == wrong and backend == "pure" else found

    assert doctor.examine(dataclasses.replace(patient, run=run), "pure", tuple(FEW)) == 1
    printed = capsys.readouterr().out.splitlines()
    rows = [line for line in printed if line.startswith("pure  ")]
    assert [row[12:40].strip() for row in rows] == [case.name for case in FEW]
    words = "error: no such | function: na | third line"
    assert rows[0].split(maxsplit=2)[2] == f"float32     FAILED: {launch.instance.name} does not compile: {words}"
    assert rows[1].endswith("WRONG: output 0") and "FAILED" not in rows[2] and "WRONG" not in rows[2]
    assert printed[-1] == "1 of 3 within bounds; 1 WRONG, 1 FAILED: please report this table"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_missing_backend(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The reason is given for the backend's name and for its alias; an unknown name is reported differently."""
    patient = patient_of(package)
    missing = list(patient.reasons())
    device = importlib.import_module(f"{package}._metal.plan.device")
    away = patient.device()._replace(missing=device.missing_backends(dict.fromkeys(missing, "the GPU is on holiday")))
    ill = dataclasses.replace(patient, device=lambda: away)
    for name in (*missing, *patient.backends.aliases):
        assert doctor.examine(ill, name, tuple(FEW)) == 2
        wanted = f"nothing to examine: backend {name} is not available: the GPU is on holiday"
        assert capsys.readouterr().out.splitlines()[-1] == wanted
    assert doctor.examine(patient, "nothing", tuple(FEW)) == 2
    known = ", ".join(["auto", *missing, *patient.backends.aliases])
    assert capsys.readouterr().out.splitlines()[-1] == f"unknown backend nothing; known: {known}"
    assert "metal" in known.split(", ")


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("backend", ["pure", "dense", "auto"])
def test_requested_backends(package: str, backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All of them except dense, the reference, unless it is requested by name."""
    patient = patient_of(package)
    assert doctor.examine(patient, backend, tuple(FEW[:1])) == 0
    at_hand = [backend for backend, reason in patient.reasons().items() if reason is None and backend != "dense"]
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if FEW[0].name in line]
    assert rows == (at_hand if backend == "auto" else [backend])


@pytest.fixture
def one_case(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Command lines examine the first case only."""
    shared = importlib.import_module(f"{package}._metal.tools.doctor")
    monkeypatch.setattr(shared, "CASES", shared.CASES[:1])


@pytest.mark.parametrize("package", PACKAGES)
def test_the_command(package: str, one_case: None, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line reaches the examination, and its exit status is the examination's."""
    cli = importlib.import_module(f"{package}.cli")
    assert cli.main(["doctor", "--backend", "pure"]) == 0
    assert "1 of 1 within bounds" in capsys.readouterr().out
    assert cli.main(["doctor", "--backend", "nothing"]) == 2


@pytest.mark.parametrize("package", PACKAGES)
def test_the_example_of_the_help(package: str, one_case: None, capsys: pytest.CaptureFixture[str]) -> None:
    """One names a backend of the package: everything passes, or the reason why it cannot run is given."""
    cli = importlib.import_module(f"{package}.cli")
    with pytest.raises(SystemExit):
        cli.main(["doctor", "--help"])
    (example,) = re.findall(r"^  (\S+ doctor --backend .*)$", capsys.readouterr().out, re.MULTILINE)
    program, *arguments = example.split()
    assert program == package.replace("_", "-")
    assert arguments == ["doctor", "--backend", "metal"]
    status = cli.main(arguments)
    last = capsys.readouterr().out.splitlines()[-1]
    patient = patient_of(package)
    backend = patient.backends.aliases.get("metal", "metal")
    reason = patient.reasons()[backend]
    missing = f"nothing to examine: backend metal is not available: {reason}"
    assert (status, last) == ((0, "1 of 1 within bounds") if reason is None else (2, missing))


@pytest.mark.parametrize("package", PACKAGES)
def test_the_file(package: str, one_case: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/doctor.md lists its fields; on stdout it is alone, and the table is on stderr."""
    cli = importlib.import_module(f"{package}.cli")
    target = tmp_path / "doctor.json"
    assert cli.main(["doctor", "--backend", "pure", "--json", str(target)]) == 0
    table, found = capsys.readouterr().out, json.loads(target.read_text())
    fields = re.findall(r"^\| `(\w+)` \|", DOCUMENT.read_text().partition("Its fields:")[2], re.MULTILINE)
    assert fields == list(found)
    assert (found["schema"], found["kind"], found["status"]) == (doctor.SCHEMA, "doctor", 0)
    (row,) = found["rows"]
    assert row["problem"] == "1-D" and row["verdict"] == "good" and 0 < row["error"] <= row["bound"] and row["ms"] > 0
    assert found["backends"] == patient_of(package).reasons() and found["findings"] == []
    assert found["package"] == package.replace("_", "-") and found["versions"][found["package"]]
    assert {name: each["verdict"] for name, each in found["templates"].items()} == dict.fromkeys(NARROW, "not run")
    assert found["matrix_units"] == {"used": False, "reason": patient_of(package).device().no_matrix_units}
    assert table.startswith(f"{found['package']} doctor\n  {found['machine']['chip']}, ")
    assert cli.main(["doctor", "--backend", "pure", "--json"]) == 0
    printed = capsys.readouterr()
    again = json.loads(printed.out)
    assert list(again) == fields and again["rows"][0]["verdict"] == "good"
    assert printed.err.splitlines()[-1] == "1 of 1 within bounds"
    assert cli.main(["doctor", "--json", str(tmp_path / "nowhere" / "doctor.json")]) == 1
    assert "there is no folder" in capsys.readouterr().err


def test_what_tune_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file, one of this machine, one that is broken or cannot be read, and none wanted."""
    target = tmp_path / "tuning.json"
    monkeypatch.setenv("NATTEN_TUNING", str(target))
    assert doctor.tuning_state() == {"state": "none", "reason": None, "error": None}
    predicted = costs.predicted("Apple M1")
    tuning.write(target, tuning.content_of(predicted))
    assert doctor.tuning_state() == {"state": "in force", "reason": None, "error": predicted.error}
    target.write_text("{}")
    found = doctor.tuning_state()
    assert found["state"] == "ignored" and found["reason"].startswith("its version is None")
    monkeypatch.setenv("NATTEN_TUNING", str(tmp_path))
    assert doctor.tuning_state()["state"] == "ignored"
    monkeypatch.setenv("NATTEN_TUNING", "off")
    assert doctor.tuning_state()["state"] == "off"


def test_numbers_that_json_lacks() -> None:
    for wrong in (math.nan, math.inf):
        row = doctor.Row("pure", "1-D", "float32", doctor.WRONG, worst="output 0", error=wrong)
        assert row.as_json()["error"] is None and row.as_json()["verdict"] == "wrong"


def test_templates_take_the_worst_verdict() -> None:
    """A wrong row counts against all of its kernels; a failed one names the kernel that failed."""
    rows = [
        doctor.Row("metal", "a", "float32", templates=["na_fwd", "na_delta"]),
        doctor.Row("metal", "b", "float32", doctor.WRONG, "out", 1.0, templates=["na_fwd", "na_qk"]),
        doctor.Row("metal", "c", "float32", doctor.FAILED, words="no such function", templates=["na_qk"]),
    ]
    found = doctor.template_verdicts(rows)
    assert list(found) == list(NARROW)
    verdicts = {name: each["verdict"] for name, each in found.items() if each["rows"]}
    assert verdicts == {"na_fwd": "wrong", "na_delta": "good", "na_qk": "failed"}
    assert found["na_qk"]["bad"] == [str(rows[1]), str(rows[2])] and found["na_av"]["verdict"] == "not run"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_setting_that_the_kernels_cannot_use(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> Any:
        raise ValueError("the environment variable NATTEN_CPU_ISA is 'garbage'")

    framework = importlib.import_module(f"{package}.cli").FRAMEWORK
    ill = dataclasses.replace(patient_of(package), device=refuse)
    record = doctor.DoctorPackage(package.replace("_", "-"), framework, lambda: ill)
    status, found = doctor.consult(record, None)
    assert status == found["status"] == 1 and found["findings"][0]["fatal"]
    assert "NATTEN_CPU_ISA is 'garbage'\n    to do: unset or correct" in capsys.readouterr().out


@pytest.mark.parametrize("chip", ["Apple M5", "Apple M5 Max"])
def test_the_cases_cover_the_kernels_on_matrix_units(chip: str) -> None:
    """Each in both dtypes, in every rank, where columns lie and gathered, by the predicted costs of a chip."""
    launched = [launch.instance for case in doctor.CASES for launch in launches_of(case, predicted(chip))]
    used = {(i.template, i.dtype) for i in launched if i.mpp}
    assert used == set(itertools.product(MPP_TEMPLATES, ("float16", "bfloat16")))
    for template in MPP_TEMPLATES:
        walks = [i for i in launched if i.template == template]
        assert {i.rank for i in walks} == {1, 2, 3} and {i.flat for i in walks} == {True, False}, template
        assert {i.dim for i in walks} >= {32, 64, 128}, template


def test_the_cases_cover_every_kernel() -> None:
    """The claim of the comment at CASES, for the planned launches."""
    launched = [(case, launch) for case in doctor.CASES for launch in launches_of(case)]
    used = {(launch.instance.template, launch.instance.dtype) for _, launch in launched}
    assert used == set(itertools.product(source.TEMPLATES, doctor.BOUNDS))
    assert {(i.dtype, i.fused) for i in instances(launched, "na_rpb")} >= {
        *itertools.product(doctor.BOUNDS, [True]),
        ("float32", False),
    }
    assert {i.dtype for i in instances(launched, "na_bwd_dkv") if i.of_additional} == set(doctor.BOUNDS)
    assert any(i.empty_zero for i in instances(launched, "na_qk"))
    for template in (name for name, record in TEMPLATES.items() if record.walks):
        walks = [launch for _, launch in launched if launch.instance.template == template]
        assert {launch.instance.stage for launch in walks} == {True, False}, template
        assert {fills_words(launch) for launch in walks} == {True, False}, template
        assert {launch.instance.rank for launch in walks} == {1, 2, 3}, template
        assert any(launch.instance.heads > 1 for launch in walks) == (not TEMPLATES[template].transposed), template
    for template in ("na_fwd", "na_bwd_dq", "na_bwd_dkv"):
        staged = {(i.stage, i.rank > 1) for i in instances(launched, template)}
        assert staged == {(True, False), (True, True), (False, True)}, template
        assert {(i.dim, i.dim_v) for i in instances(launched, template)} >= {(128, 128), DIMS[-2:]}, template


def instances(launched: list[tuple[doctor.Case, Launch]], template: str) -> list[source.Instance]:
    return [launch.instance for _, launch in launched if launch.instance.template == template]


def test_the_cases_fit_the_table() -> None:
    names = [case.name for case in doctor.CASES]
    assert len(set(names)) == len(names) <= 24
    assert max(map(len, names)) < 28


@pytest.mark.parametrize(("seconds", "once"), [((0.5, 0.002), "498.0"), ((0.001, 0.002), "0.0")])
def test_the_first_call_is_timed_separately(
    seconds: tuple[float, float], once: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The row has how much longer it took than later calls, never a negative time."""
    now = 0.0
    turns = itertools.chain(seconds[:1], itertools.repeat(seconds[1]))

    def run(case: doctor.Case, backend: str) -> dict[str, Any]:
        nonlocal now
        now += next(turns) if backend == "pure" else 9
        return {"output 0": 1.0}

    monkeypatch.setattr(doctor, "time", SimpleNamespace(perf_counter=lambda: now))
    patient = dataclasses.replace(patient_of("natten_mps"), run=run, error=lambda found, wanted: 0.0)
    assert doctor.examine(patient, "pure", doctor.CASES[:1]) == 0
    header, row, _ = capsys.readouterr().out.splitlines()[-3:]
    assert header.split()[-3:] == ["once", "ms", "ms"]
    assert row.split()[-2:] == [once, "2.00"]
