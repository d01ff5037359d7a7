"""``tune`` without a Mac: on a made-up GPU whose times follow known costs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from natten_mps._metal.caches import clear_all
from natten_mps._metal.metal.costs import MATRIX_SHARED, Cores, microseconds
from natten_mps._metal.metal.counts import counts_of
from natten_mps._metal.metal.launches import Launch
from natten_mps._metal.metal.op_launches import forward
from natten_mps._metal.metal.templates import FORWARD
from natten_mps._metal.metal.tiles import Candidate
from natten_mps._metal.metal.tiling import Target
from natten_mps._metal.plan import tuning
from natten_mps._metal.plan.backend import METAL
from natten_mps._metal.plan.costs import measured, of_matrix_units, predicted
from natten_mps._metal.plan.device import Device
from natten_mps._metal.plan.verdicts import Failure, Learned
from natten_mps._metal.problem.problem import Problem
from natten_mps._metal.tuning import cpu, measure
from natten_mps._metal.tuning.design import FITTED, HELD_OUT, Room, Trial, trials
from natten_mps._metal.tuning.measure import Timed, Timer, seconds, time_all
from natten_mps._metal.tuning.tune import as_data, judge, planned_trials, tune

PACKAGES = ("natten_mps", "natten_mlx")
GPU = Device("gpu", "mps", float64=False)
CPU = Device("cpu", "cpu", (("metal", "Metal kernels run on mps tensors; these are on cpu"),))
# A GPU that is slower than any prediction says.
PRICES = {name: 1.7 * price for name, price in predicted("Apple M2").prices.items()}
COSTS = replace(predicted("Apple M2"), prices=PRICES, cores=Cores(10, 24, 64 << 10))


def exact(trial: Trial) -> float:
    launch = trial.launch
    return microseconds(launch.instance, counts_of(trial.problem, launch), COSTS)


class Clock:
    """Time that passes only where a made-up kernel runs."""

    def __init__(self) -> None:
        self.now, self.launched = 0.0, 0

    def __call__(self) -> float:
        return self.now

    def prepare(self, problem: Problem, launch: Launch) -> Callable[[int], None]:
        taken = microseconds(launch.instance, counts_of(problem, launch), COSTS) * 1e-6

        def run(times: int) -> None:
            self.now, self.launched = self.now + times * taken, self.launched + times

        return run

    def timer(self, device: Device = GPU, prepare: Any = None) -> Timer:
        return Timer("natten-mps", lambda: device, METAL.name, prepare or self.prepare)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Clock]:
    """A made-up GPU, and a user's empty cache folder."""
    made = Clock()
    monkeypatch.setattr(measure, "seconds", lambda run: seconds(run, made))
    monkeypatch.setattr(tuning, "default_path", lambda: tmp_path / "cache" / "tuning.json")
    monkeypatch.setattr("natten_mps._metal.tuning.tune.gpu_cores", lambda: COSTS.cores.number)
    monkeypatch.delenv("NATTEN_TUNING")
    clear_all()
    yield made
    clear_all()


def test_tuning_decides_the_next_processes_plans(clock: Clock) -> None:
    """From measuring to planning: the file is written, read once, and the tiling is the one of the smallest time."""
    before, calls = forward(HELD_OUT[1]), []
    found = tune(clock.timer(), False, lambda *call: calls.append(call), tuning.default_path())
    assert calls[0][0] == 0 and calls[-1][:2] == (2 * len(found.fitted + found.held_out),) * 2
    assert not found.failed and clock.launched > len(calls)
    assert found.costs.measured and found.costs.error < 1e-3
    assert all(choice.tuned == choice.best <= choice.rule for choice in found.choices)
    assert any(choice.tuned < 0.97 * choice.rule for choice in found.choices)
    clear_all()
    read = measured(GPU)
    assert read is not None and read.prices == found.costs.prices and read.kinds == found.costs.kinds
    chosen = forward(HELD_OUT[1], Target(costs=read))[0].instance
    best = min(
        trials([HELD_OUT[1]], every=True), key=lambda trial: exact(trial) if trial.template.name == "na_fwd" else 1e9
    )
    own = Candidate(chosen.patch, chosen.heads, chosen.simdgroups, chosen.stage, chosen.flat)
    assert own == best.candidate
    assert forward(HELD_OUT[1]) == before  # without costs the rule decides, as ever


def test_tuning_where_there_are_matrix_units(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Both kinds of kernels are timed, those of matrix units get prices, and the planner chooses among all of them."""
    prices = {name: 1.7 * price for name, price in predicted("Apple M5").prices.items()}
    monkeypatch.setattr(sys.modules[__name__], "COSTS", replace(COSTS, prices=prices))
    device = GPU._replace(no_matrix_units="")
    found = tune(clock.timer(device), True, lambda *call: None, tuning.default_path())
    assert {one.trial.candidate.mpp for one in found.fitted} == {True, False} and found.costs.error < 1e-2
    assert all(found.costs.prices[name] == pytest.approx(prices[name], rel=0.1) for name in MATRIX_SHARED)
    assert all(choice.tuned <= 1.01 * choice.best for choice in found.choices)
    clear_all()
    read = of_matrix_units(device)
    assert read is not None and read is measured(device)
    (launch,) = forward(HELD_OUT[0], Target(costs=read, matrix_units=read))
    every = (exact(t) for t in trials([HELD_OUT[0]], True, Room(matrix_units=True)) if t.template is FORWARD)
    time = microseconds(launch.instance, counts_of(HELD_OUT[0], launch), COSTS)
    assert launch.instance.mpp and min(every) >= 0.99 * time


def test_trials_are_the_same_every_time_and_none_judges_itself() -> None:
    fitted, held_out = planned_trials(Clock().timer(), False)
    assert (fitted, held_out) == planned_trials(Clock().timer(), False)
    assert len(set(fitted)) == len(fitted) < 1800 and not {t.problem for t in fitted} & {t.problem for t in held_out}
    quick, _ = planned_trials(Clock().timer(), True)
    assert set(quick) < set(fitted) and len(quick) < 0.6 * len(fitted)
    assert {t.problem for t in fitted} == set(FITTED)


def test_kernels_that_do_not_run_are_left_out_and_named(clock: Clock) -> None:
    def prepare(problem: Problem, launch: Launch) -> Callable[[int], None]:
        if launch.instance.stage and launch.instance.simdgroups == 8:
            raise Learned(Failure(launch, "compile", "too many registers"))
        if launch.instance.stage and launch.instance.simdgroups == 4:
            raise RuntimeError("the GPU ran out of too many registers")
        return clock.prepare(problem, launch)

    found = tune(clock.timer(prepare=prepare), True, lambda *_: None, None)
    assert found.failed and all(
        one.trial.candidate.stage and "too many registers" in one.reason for one in found.failed
    )
    assert found.costs.error < 1e-3 and found.path is None
    assert as_data(found)["failed"] == len(found.failed)


def test_the_median_of_many_launches_counts() -> None:
    clock, slow = Clock(), [1e-5, 1e-5, 1e-5, 9e-3, 1e-5]

    def run(times: int) -> None:
        clock.launched += 1
        clock.now += times * slow[clock.launched % len(slow)]

    assert seconds(run, clock) == pytest.approx(1e-5)


def test_the_fastest_round_of_a_trial_counts(clock: Clock) -> None:
    """A machine that is slow in the first round: the second one counts."""
    some, turn = list(trials(FITTED[:1]))[:4], {"slow": 3.0}

    def prepare(problem: Problem, launch: Launch) -> Callable[[int], None]:
        run, factor = clock.prepare(problem, launch), turn["slow"]
        return lambda times: run(int(factor * times))

    def progress(done: int, total: int, name: str) -> None:
        turn["slow"] = 3.0 if done < total / 2 else 1.0

    timed = time_all(clock.timer(prepare=prepare), some, 2, progress)
    assert [one.microseconds for one in timed] == pytest.approx([exact(trial) for trial in some])


def test_choices_are_judged_by_measured_times() -> None:
    """Costs that are wrong choose a slow tiling, and the report says so."""
    group = [trial for trial in trials(HELD_OUT[:1]) if trial.template.name == "na_fwd"]
    times = [100.0 + 10 * number for number in range(len(group))]
    (choice,) = judge(COSTS, [Timed(t, us) for t, us in zip(group, times, strict=True)], 8)
    assert choice.best == 100 and choice.tuned == times[min(range(len(group)), key=lambda n: exact(group[n]))]
    assert choice.predicted == pytest.approx(min(map(exact, group)))


# --- the command -----------------------------------------------------------------------------------


def command(package: str, *arguments: str) -> int:
    status = import_module(f"{package}.cli").main(["tune", *arguments])
    assert isinstance(status, int)
    return status


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder that caches go to."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("package", PACKAGES)
def test_without_a_gpu_the_command_says_why(package: str, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(package) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"{package.replace('_', '-')} tune: nothing to tune: ") and "Metal" in said
    assert not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_dry_run_writes_nothing(package: str, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(package, "--dry-run") == 0
    said = capsys.readouterr().out
    assert (
        "launches timed to fit unit costs" in said and "tuning.json" in said and "but there is nothing to tune" in said
    )
    assert not list(cache.rglob("*"))


@pytest.mark.parametrize("package", PACKAGES)
def test_the_function_raises_what_the_command_says(package: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Metal"):
        import_module(package).tune(path=tmp_path / "new.json")
    assert not list(tmp_path.iterdir())


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command("natten_mps", "--help")
    said = " ".join(capsys.readouterr().out.split())
    assert "examples: `natten-mps tune`" in said and "--dry-run" in said


@pytest.fixture
def made_up(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr("natten_mps._timer.TIMER", clock.timer())
    return clock


def test_the_command_measures_and_writes(made_up: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everything = tmp_path / "all.json"
    assert command("natten_mps", "--quick", "--json", str(everything)) == 0
    said = capsys.readouterr()
    assert "problems that were not fitted" in said.out and f"written to {tuning.default_path()}" in said.out
    assert "tuned: within 5 % of the fastest tiling in 9 of 9 kernels, at worst 0% slower" in said.out
    assert "rule: within" in said.out and not said.err
    data = json.loads(everything.read_text())
    assert data["fit"]["trials"] == len(data["trials"]["fitted"]) > 100 and data["path"] == str(tuning.default_path())
    assert tuning.read(tuning.default_path()).measured


def test_what_would_be_done_as_a_document(made_up: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To stdout, while the words go to stderr; to a file; and for the CPU kernels."""
    assert command("natten_mps", "--quick", "--dry-run", "--json") == 0
    said, document = capsys.readouterr(), tmp_path / "dry.json"
    found = json.loads(said.out)
    assert set(found) == {"kernels", "fitted", "held out", "path", "reason missing"}
    assert found["path"] == str(tuning.default_path()) and found["reason missing"] is None
    assert f"{found['kernels']} kernels would be compiled, {found['fitted']} launches timed" in said.err
    assert command("natten_mps", "--cpu", "--dry-run", "--json", str(document)) == 0
    wanted = [setting.words for setting in cpu.settings()]
    assert json.loads(document.read_text()) == {"settings": wanted} and wanted[-1] in capsys.readouterr().out
    assert made_up.launched == 0 and not tuning.default_path().exists()


def test_another_file_is_written_instead(made_up: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "here.json"
    assert command("natten_mps", "--quick", "--output", str(other)) == 0
    assert not tuning.default_path().exists()
    monkeypatch.setenv("NATTEN_TUNING", str(other))
    clear_all()
    assert measured(GPU) is not None


def test_a_home_that_cannot_be_written_to_is_found_first(
    made_up: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file stands where the cache folder should be: nothing is measured in vain."""
    (tmp_path / "cache").write_text("")
    assert command("natten_mps", "--quick") == 1
    said = capsys.readouterr().err
    assert "tuning.json: cannot be written: " in said and "--output FILE writes the result elsewhere" in said
    assert made_up.launched == 0


def test_it_can_be_interrupted(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C leaves no file and no traceback."""

    def prepare(problem: Problem, launch: Launch) -> Callable[[int], None]:
        if clock.launched > 1000:
            raise KeyboardInterrupt
        return clock.prepare(problem, launch)

    monkeypatch.setattr("natten_mps._timer.TIMER", clock.timer(prepare=prepare))
    assert command("natten_mps", "--quick") == 130
    assert capsys.readouterr().err == "natten-mps tune: interrupted\n"
    assert os.listdir(tuning.default_path().parent) == []


def test_what_is_missing_is_named(
    made_up: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("natten_mps._metal.tools.tune.find_spec", lambda name: None if name == "scipy" else name)
    assert command("natten_mps") == 1
    assert capsys.readouterr().err == (
        "natten-mps tune: scipy must be installed for this: pip install 'natten-mps[tools]'\n"
    )


def test_a_cpu_is_not_timed_as_a_gpu(clock: Clock) -> None:
    with pytest.raises(RuntimeError, match="these are on cpu"):
        tune(clock.timer(CPU), True, lambda *_: None, None)
    assert clock.launched == 0
