"""``natten-mps bench``, ``natten-mlx bench`` and ``report``: small runs from end to end, and how they end."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bench_runs import RESULTS

from natten_mps._metal.bench import results
from natten_mps._metal.tools import command_line

PACKAGES = ("natten_mps", "natten_mlx")
# The smallest problem, for as short as can be.
SMALL = ("--quick", "--problem", "tokens-16", "--cpu", "--seconds", "0.01", "--limit", "600")


@pytest.fixture(autouse=True)
def small_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The framework's peak is looked for among small products: MLX's take long on a CPU."""
    for package in PACKAGES:
        measure = importlib.import_module(f"{package}._metal.bench.measure")
        monkeypatch.setattr(measure, "SIDES", (64, 128))
        monkeypatch.setattr(measure, "COPIED", 1 << 16)


def run(package: str, *arguments: str) -> int:
    status: int = importlib.import_module(f"{package}.cli").main(["bench", *arguments])
    return status


def report(package: str, *arguments: str) -> int:
    status: int = importlib.import_module(f"{package}.cli").main(["report", *arguments])
    return status


@pytest.mark.parametrize("package", PACKAGES)
def test_a_run_from_end_to_end(package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, name = tmp_path / "times.json", package.replace("_", "-")
    assert run(package, *SMALL, "--backward", "--json", str(path)) == 0
    printed = capsys.readouterr().out
    found = results.load(path)
    assert (found.package, found.machine.device, list(found.peaks)) == (name, "cpu", ["float32"])
    assert [row.direction for row in found.rows] == [results.FORWARD, results.TRAINING]
    told = {"quick": "True", "seconds": "0.01", "limit": "600", "backend": "auto", "cpu": "True"}
    described = (Path(__file__).resolve().parents[2] / "docs" / "bench.md").read_text()
    assert all(f"`{name}`" in described.partition("`settings`")[2].partition("|\n")[0] for name in found.settings)
    assert found.settings == told | {"against": "sdpa, sdpa-masked, gathered"}
    for row in found.rows:
        assert (row.problem, row.shape, row.quick, row.backend) == ("tokens-16", (16, 16), True, row.backend)
        assert row.backend == {"natten_mps": "native", "natten_mlx": "nanobind"}[package]
        assert [entry.name for entry in row.entries] == [name, "sdpa", "sdpa-masked", "gathered"]
        assert {entry.state for entry in row.entries} == {results.TIMED}
        rounds = {len(entry.times_us) for entry in row.entries}
        assert len(rounds) == 1 and min(rounds) >= 5
        assert all(entry.difference is not None and entry.difference < 1e-4 for entry in row.entries[2:])
        assert row.entries[1].difference is None, "dense attention computes something else"
        assert row.own.peak_bytes is not None and row.own.peak_bytes < row.entries[3].peak_bytes
        assert row.predicted_us is None, "CPU kernels have no model"
    assert found.rows[1].flops == found.rows[0].flops * 7 // 2
    assert f"  {name} ({found.rows[0].backend})" in printed and "tokens-16, float32, training" in printed
    assert report(package, str(path)) == 0
    told = capsys.readouterr().out
    assert f"## {name} on" in told and "seconds 0.01; limit 600; backend auto; cpu True; against sdpa, " in told


def test_the_file_goes_to_stdout_and_the_table_to_stderr(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(package, *SMALL, "--against", "--json") == 0
    captured = capsys.readouterr()
    (row,) = results.from_json(captured.out.encode(), "stdout").rows
    assert [entry.name for entry in row.entries] == [package.replace("_", "-")] and "tokens-16" in captured.err


@pytest.mark.parametrize(
    ("shape", "kernel_size", "more"),
    [
        ((40,), (9,), {"is_causal": True, "heads": 4, "kv_heads": 2, "dilation": 2}),
        ((12, 10), (4, 5), {"stride": (2, 3), "dilation": (3, 2)}),
        ((5, 6, 7), (3, 2, 5), {"batch": 2}),
    ],
)
def test_all_ways_compute_the_same(
    package: str, shape: tuple[int, ...], kernel_size: tuple[int, ...], more: dict[str, Any]
) -> None:
    """With causal axes, strides, dilation and grouped heads; in training, too."""
    parts = (importlib.import_module(f"{package}._metal.bench.{name}") for name in ("problems", "measure", "results"))
    problems, measure, own = parts
    subject = importlib.import_module(f"{package}._tools.bench").subject(True)
    given = {"dim": 16, "heads": 2} | more
    named = problems.Named("small", "a test's", "here", shape, kernel_size, **given)
    rows = measure.Rows(subject, "auto", measure.Limits(0.01, 10.0, 1 << 30), ("sdpa", "sdpa-masked", "gathered"))
    with subject.on_device():
        for direction in (own.FORWARD, own.TRAINING):
            row = rows.row(named, False, "float32", direction, own.Peak(100.0, 10.0))
            assert {entry.name: entry.state for entry in row.entries[1:]} == dict.fromkeys(
                ("sdpa", "sdpa-masked", "gathered"), "timed"
            )
            differences = {entry.name: entry.difference for entry in row.entries}
            assert differences.pop("sdpa") is None and max(differences.values()) < 1e-5


def test_the_metal_kernels_have_a_prediction() -> None:
    from natten_mps._metal.bench import measure
    from natten_mps._metal.bench.problems import BY_NAME
    from natten_mps._metal.plan.device import Device
    from natten_mps._metal.plan.plan import plan

    planned = plan(BY_NAME["hdit"].problem("float16"), Device("gpu", "Apple M4 Max"), "auto", ("metal",))
    forward, training = (measure._predicted(planned, each) for each in (results.FORWARD, results.TRAINING))
    assert forward is not None and training is not None and 10 < forward < training < 1e5


def subject_class(package: str) -> Any:
    return getattr(
        importlib.import_module(f"{package}._tools.bench"),
        {"natten_mps": "Torch", "natten_mlx": "Mlx"}[package] + "Subject",
    )


@pytest.fixture(params=PACKAGES)
def package(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def failing(error: BaseException) -> Callable[..., Any]:
    def call(*given: Any) -> Any:
        raise error

    return call


def entries(path: Path) -> dict[str, results.Entry]:
    return {entry.name: entry for entry in results.load(path).rows[0].entries}


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("out of memory:\ntried to allocate 9 TB")])
def test_an_alternative_that_fails_is_a_row(
    package: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "times.json"
    monkeypatch.setattr(subject_class(package), "dense", failing(error))
    assert run(package, *SMALL, "--against", "sdpa", "gathered", "--json", str(path)) == 0
    found = entries(path)
    assert (found["sdpa"].state, found["sdpa"].times_us) == (results.FAILED, ())
    assert found["sdpa"].reason == str(error).replace("\n", " | ") or found["sdpa"].reason == "MemoryError"
    assert found["gathered"].state == results.TIMED


def test_an_alternative_that_computes_something_else(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, kind = tmp_path / "times.json", subject_class(package)
    dense = kind.dense
    monkeypatch.setattr(kind, "dense", lambda *given: dense(*given) * 1.5)
    assert run(package, *SMALL, "--against", "sdpa-masked", "--json", str(path)) == 1
    wrong = entries(path)["sdpa-masked"]
    assert (wrong.state, wrong.times_us) == (results.WRONG, ())
    assert wrong.reason == "its output differs by 0.5 of the largest number"


def test_the_package_itself_fails(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "times.json"
    monkeypatch.setattr(subject_class(package), "attend", failing(RuntimeError("no such kernel")))
    assert run(package, *SMALL, "--against", "sdpa", "--json", str(path)) == 1
    found = entries(path)
    assert found[package.replace("_", "-")].reason == "no such kernel" and found["sdpa"].state == results.TIMED


def test_limits(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A way that is too slow or too large is left out, before it is tried where that can be known."""
    path = tmp_path / "times.json"
    assert run(package, *SMALL, "--against", "--limit", "1e-9", "--json", str(path)) == 0
    own = entries(path)[package.replace("_", "-")]
    said = r"takes about \S+ s at the speed measured first, over 16 times the limit of 0\.000000001 \(--limit\)"
    assert own.state == results.LEFT_OUT and re.fullmatch(said, own.reason)
    memory = importlib.import_module(f"{package}._metal.bench.memory")
    monkeypatch.setattr(memory, "machine_bytes", lambda: 8 << 20)
    assert run(package, *SMALL, "--against", "gathered", "--json", str(path)) == 0
    found = entries(path)["gathered"]
    assert found.state == results.LEFT_OUT and found.reason == "needs at least 0.0223 GB, and there is room for 0.00419"


@pytest.mark.parametrize(("times_the_limit", "state"), [(4, results.TIMED), (6, results.LEFT_OUT)])
def test_the_first_call_decides_unless_the_speed_measured_first_is_far_too_low(
    package: str, times_the_limit: int, state: str
) -> None:
    """Other work may have slowed down the peaks: dense attention takes milliseconds, not as long as they say."""
    rows, named = small_rows(package, subject_class(package)(True), "auto", "sdpa")
    flops = 4 * named.heads * (16 * 16) ** 2 * named.dim
    slow = results.Peak(flops / (times_the_limit * rows.limits.longest) / 1e9, 100.0)
    with rows.subject.on_device():
        own, dense = rows.row(named, True, "float32", results.FORWARD, slow).entries
    assert (own.state, dense.state) == (results.TIMED, state)
    said = "takes about 60 s at the speed measured first, over 5 times the limit of 10 (--limit)"
    assert dense.reason == ("" if state == results.TIMED else said)


def small_rows(package: str, subject: Any, backend: str, *against: str) -> tuple[Any, Any]:
    """What measures rows for as short as can be, and the smallest problem."""
    measure, problems = (importlib.import_module(f"{package}._metal.bench.{name}") for name in ("measure", "problems"))
    limits = measure.Limits(0.01, 10.0, 1 << 30)
    return measure.Rows(subject, backend, limits, against), problems.BY_NAME["tokens-16"].form(True)


@pytest.mark.parametrize("asked", [False, True], ids=["auto", "metal"])
def test_a_row_names_what_ran_when_a_kernel_fails_in_it(package: str, asked: bool) -> None:
    """On a GPU whose compiler takes no Metal kernel, which is learned from the first call."""
    framework, planner, device, verdicts, backends = (
        importlib.import_module(f"{package}.{name}")
        for name in ("_framework", "_metal.plan.planner", "_metal.plan.device", "_metal.plan.verdicts", "_backends")
    )
    plans, gpu = planner.Planner(package, backends.ORDER), device.Device("gpu", "Apple M1")
    metal, ran = backends.ORDER[0], []

    subject = subject_class(package)(True)
    compute = subject.attend

    def attend(query: Any, key: Any, value: Any, window: dict[str, Any], backend: str) -> Any:
        def launch(plan: Any) -> Any:
            if plan.backend == metal:
                raise verdicts.Learned(verdicts.Failure(plan.forward.launches[0], "compile", "no registers"))
            ran.append(plan.backend)
            return compute(query, key, value, window, "auto")

        return plans.run(plans.plan(named.problem("float32"), gpu, backend), launch)

    subject.attend = attend
    subject.framework = SimpleNamespace(
        operations=framework.operations,
        stream_of=framework.stream_of,
        plan_on=lambda tensor, stream, problem, backend: plans.plan(problem, gpu, backend),
    )
    rows, named = small_rows(package, subject, metal if asked else "auto")
    with rows.subject.on_device():
        assert rows.plan(named.problem("float32")).backend == metal
        row = rows.row(named, True, "float32", results.FORWARD, results.Peak(1.0, 1.0))
    assert "does not compile: no registers" in row.plan and row.predicted_us is None
    if asked:
        assert (ran, row.backend, row.own.state, row.own.reason) == ([], metal, results.FAILED, row.plan)
    else:
        assert set(ran) == {row.backend} == {"pure"} and row.own.state == results.TIMED


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("out of memory")])
def test_a_way_that_fails_in_its_turn_is_a_row(
    package: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone it ran, four times; when all hold tensors there is no room for it."""
    path, kind, made = tmp_path / "times.json", subject_class(package), []
    dense = kind.dense

    def limited(*given: Any) -> Any:
        made.append(1)
        if len(made) > 5:
            raise error
        return dense(*given)

    monkeypatch.setattr(kind, "dense", limited)
    assert run(package, *SMALL, "--against", "sdpa", "gathered", "--json", str(path)) == 0
    own, failed, gathered = entries(path).values()
    assert (failed.name, failed.state, failed.times_us) == ("sdpa", results.FAILED, ())
    assert failed.reason == (str(error) or "MemoryError") and len(made) == 6
    assert own.state == gathered.state == results.TIMED and len(own.times_us) == len(gathered.times_us) >= 5


def test_a_later_problem_that_cannot_be_planned_is_said_before_anything_is_measured(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    framework, measure = (
        importlib.import_module(f"{package}.{name}") for name in ("_framework", "_metal.bench.measure")
    )
    plan_on, measured = framework.plan_on, []

    def refusing(tensor: Any, stream: Any, problem: Any, backend: str) -> Any:
        if problem.kernel_size == (5, 5):
            raise NotImplementedError("no window of 5 here")
        return plan_on(tensor, stream, problem, backend)

    monkeypatch.setattr(framework, "plan_on", refusing)
    monkeypatch.setattr(measure, "peak", lambda *given: measured.append(given))
    assert run(package, "--quick", "--cpu", "--problem", "windows-3", "windows-5") == 1
    assert capsys.readouterr().err == f"{package.replace('_', '-')} bench: no window of 5 here\n" and not measured


def test_an_interrupt(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subject_class(package), "attend", failing(KeyboardInterrupt()))
    assert run(package, *SMALL, "--json", str(tmp_path / "times.json")) == command_line.INTERRUPTED
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"{package.replace('_', '-')} bench: interrupted\n")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--problem", "no-such"), "there is no problem no-such; there are nat, dinat, hdit, "),
        (
            ("--against", "sdpa", "sdpa-maskd"),
            "no way 'sdpa-maskd' to compare with here; there are sdpa, sdpa-masked, gathered, flex_attention",
        ),
        (("--json", "missing/times.json"), "missing/times.json: there is no folder missing"),
        (("--backend", "metal", *SMALL), "Metal kernels run on mps tensors"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(
    arguments: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("natten_mps", *arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("natten-mps bench: ") and message in captured.err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is always full")
def test_a_full_disk(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("natten_mps", *SMALL, "--against", "--json", "/dev/full") == 1
    assert capsys.readouterr().err == "natten-mps bench: /dev/full: cannot be written: No space left on device\n"


# --- report ---------------------------------------------------------------------------------------------


def test_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every picture that the results have something for, each a PNG of a size that shows something."""
    from PIL import Image

    path, out = tmp_path / "times.json", tmp_path / "out"
    path.write_bytes(results.to_json(RESULTS))
    assert report("natten_mps", str(path), str(path), "--out", str(out)) == 0
    drawn = {"window.png", "sparsity.png", "roofline.png", "memory.png"}
    assert set(os.listdir(out)) == drawn | {"report.md"}, "there is no series of tokens to draw"
    text = (out / "report.md").read_text()
    for name in drawn:
        assert f"]({name})" in text
        picture = Image.open(out / name).convert("RGB")
        colors = picture.getcolors(1 << 20)
        assert min(picture.size) > 300 and colors is not None and len(colors) > 20
        assert any(color == (0x1F, 0x4E, 0x8C) for _, color in colors), "the package's own color"
    assert capsys.readouterr().out.startswith(f"wrote {out / 'report.md'}, with ")


def test_report_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "times.json"
    path.write_bytes(results.to_json(RESULTS))
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert report("natten_mlx", str(path)) == 0
    assert "# Times of neighborhood attention" in capsys.readouterr().out
    assert report("natten_mlx", str(path), "--out", str(tmp_path / "out")) == 1
    said = "pictures need matplotlib, which is not installed: pip install 'natten-mlx[tools]'"
    assert capsys.readouterr().err == f"natten-mlx report: {said}\n" and not (tmp_path / "out").exists()


def test_a_file_that_is_not_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.json").write_text("{}")
    assert report("natten_mps", str(tmp_path / "other.json")) == 1
    assert "not a file of `bench --json`" in capsys.readouterr().err
    assert report("natten_mps", str(tmp_path / "missing.json")) == 1
    assert capsys.readouterr().err.endswith("missing.json: cannot be read: No such file or directory\n")
    (tmp_path / "times.json").write_bytes(results.to_json(RESULTS))
    assert report("natten_mps", str(tmp_path / "times.json"), "--out", str(tmp_path / "a" / "b")) == 1
    assert "cannot be made: No such file or directory" in capsys.readouterr().err
