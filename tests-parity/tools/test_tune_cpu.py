"""``tune --cpu``: which settings are timed, which are worth setting, and what is said of those that do not run."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from natten_mps._metal.tuning import cpu

PACKAGES = ("natten_mps", "natten_mlx")


def command(*arguments: str) -> int:
    status: int = import_module("natten_mps.cli").main(["tune", *arguments])
    return status


def cpu_times(monkeypatch: pytest.MonkeyPatch, factors: dict[str, float]) -> None:
    """Processes that would take as long as the factors of their settings say; those not named do not run."""

    def in_a_process(module: str, setting: cpu.Setting) -> dict[str, float] | str:
        if setting.words not in factors:
            return "ValueError: NATTEN_CPU_ISA: this machine has no such thing"
        return {name: factors[setting.words] * number for number, name in enumerate(cpu.PROBLEMS, 1)}

    monkeypatch.setattr(cpu, "in_a_process", in_a_process)
    wanted = [cpu.Setting(), cpu.Setting("avx2"), cpu.Setting("sse"), cpu.Setting("", 2)]
    monkeypatch.setattr(cpu, "settings", lambda: wanted)


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        ({"default": 1.0, "NATTEN_CPU_ISA=avx2": 0.8}, "worth setting: NATTEN_CPU_ISA=avx2"),
        ({"default": 1.0, "NATTEN_CPU_ISA=avx2": 0.99}, "no setting is worth more than the default"),
        ({"default": 1.0, "NATTEN_NUM_THREADS=2": 0.5}, "worth setting: NATTEN_NUM_THREADS=2"),
    ],
)
def test_what_is_worth_setting_is_said(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    factors: dict[str, float],
    said: str,
) -> None:
    cpu_times(monkeypatch, factors)
    assert command("--cpu", "--json", str(tmp_path / "cpu.json")) == 0
    out = capsys.readouterr().out
    assert out.rstrip().endswith(said)
    assert "NATTEN_CPU_ISA=sse does not run here: ValueError: NATTEN_CPU_ISA: this machine has no such thing" in out
    data = json.loads((tmp_path / "cpu.json").read_text())
    assert set(data["milliseconds"]) == set(factors) and bool(data["best"]) == ("worth setting" in said)
    assert "NATTEN_CPU_ISA=sse" in data["failed"] and not set(data["failed"]) & set(factors)


def test_a_setting_that_fails_in_a_later_round_has_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first round was not slower than the others', so it would be the best; it does not run, so it is not."""
    rounds: list[str] = []

    def in_a_process(module: str, setting: cpu.Setting) -> dict[str, float] | str:
        rounds.append(setting.words)
        if setting.instruction_set == "avx2":
            return "it was killed" if rounds.count(setting.words) == 2 else dict.fromkeys(cpu.PROBLEMS, 0.5)
        return dict.fromkeys(cpu.PROBLEMS, 1.0)

    avx2 = cpu.Setting("avx2")
    monkeypatch.setattr(cpu, "in_a_process", in_a_process)
    monkeypatch.setattr(cpu, "settings", lambda: [cpu.Setting(), avx2])
    found = cpu.tune_cpu("natten_mps", lambda *_: None, 3)
    assert set(found.times) == {cpu.Setting()} and found.failed == {avx2: "it was killed"}
    assert found.best == cpu.Setting() and rounds.count(avx2.words) == 2 and rounds.count("default") == 3


@pytest.mark.parametrize("first", [1, 2])
def test_without_the_default_there_is_nothing_to_compare_with(
    first: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds: list[str] = []

    def in_a_process(module: str, setting: cpu.Setting) -> dict[str, float] | str:
        rounds.append(setting.words)
        failed = setting == cpu.Setting() and rounds.count("default") == first
        return "ImportError: no kernels" if failed else dict.fromkeys(cpu.PROBLEMS, 1.0)

    monkeypatch.setattr(cpu, "in_a_process", in_a_process)
    assert command("--cpu") == 1
    said = capsys.readouterr()
    reason = "nothing to tune: the CPU kernels do not run: ImportError: no kernels"
    assert (said.out, said.err) == ("", f"natten-mps tune: {reason}\n")
    assert rounds.count("default") == first and rounds[-1] == "default"


def test_settings_are_told_apart_by_their_environment() -> None:
    assert cpu.Setting().environment == {} and cpu.Setting().words == "default"
    assert cpu.Setting("", 3).environment == {"NATTEN_NUM_THREADS": "3", "OMP_NUM_THREADS": "3"}
    found = cpu.settings()
    assert found[0] == cpu.Setting() and len(set(found)) == len(found) > 1


@pytest.mark.all
@pytest.mark.parametrize("package", PACKAGES)
def test_a_setting_is_timed_in_a_process_of_its_own(package: str) -> None:
    module = import_module(f"{package}._metal.tuning.cpu")
    found = module.in_a_process(package, module.Setting("", 1))
    assert set(found) == set(cpu.PROBLEMS) and all(time > 0 for time in found.values()), found
    assert "NATTEN_CPU_ISA" in module.in_a_process(package, module.Setting("mmx"))
