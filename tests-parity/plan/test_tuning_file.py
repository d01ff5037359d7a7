"""The tuning file from its writing to its end: read once, stale, broken, foreign, written by several at once."""

from __future__ import annotations

import json
import logging
import multiprocessing
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from natten_mps._metal.caches import clear_all
from natten_mps._metal.metal.costs import NECESSARY, PRICES, Cores, UnitCosts
from natten_mps._metal.plan import tuning
from natten_mps._metal.plan.costs import measured, of_matrix_units, predicted, unit_costs
from natten_mps._metal.plan.device import Device

GPU = Device("gpu", "mps", float64=False)
KINDS = {"na_fwd half staged": 1.1, "na_fwd half staged 2-D": 0.9}


def costs(price: float = 2.0) -> UnitCosts:
    return UnitCosts("some GPU", True, Cores(10, 24, 1 << 16), dict.fromkeys(PRICES, price), 0.05, KINDS)


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file in the cache folder of a user who has never tuned anything."""
    monkeypatch.delenv("NATTEN_TUNING")
    monkeypatch.setattr(tuning, "default_path", lambda: tmp_path / "cache" / "tuning.json")
    clear_all()
    yield tmp_path / "cache" / "tuning.json"
    clear_all()


class Said(logging.Handler):
    """What was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def said() -> Iterator[list[str]]:
    """The warnings that are logged."""
    handler, log = Said(), logging.getLogger("natten")
    log.addHandler(handler)
    yield handler.lines
    log.removeHandler(handler)


def sentence(path: object, reason: str) -> str:
    return (
        f"natten-mps: the tuning file {path} is ignored, because {reason}; `natten-mps tune` measures this machine, "
        "and NATTEN_TUNING=off does without"
    )


def asked(times: int = 3) -> UnitCosts | None:
    """What several plans of one process find."""
    found = [measured(GPU) for _ in range(times)]
    assert all(one is found[0] for one in found)
    return found[0]


def test_a_file_without_matrix_units_is_of_no_use_where_they_are_used(path: Path, said: list[str]) -> None:
    without = replace(costs(), prices=dict.fromkeys(NECESSARY, 2.0))
    units = GPU._replace(no_matrix_units="")
    tuning.write(path, tuning.content_of(without))
    assert measured(GPU) is not None and not said
    assert measured(units) is None and measured(units) is None
    (line,) = said
    assert "measured without matrix units is ignored while they are used; `natten-mps tune`" in line
    assert of_matrix_units(GPU) is None
    predicted_ones = of_matrix_units(units)
    assert predicted_ones is predicted("Apple M5") and not predicted_ones.measured
    clear_all()
    tuning.write(path, tuning.content_of(costs()))
    assert measured(units) is of_matrix_units(units) is not None and len(said) == 1


def test_what_was_written_is_read(path: Path, said: list[str]) -> None:
    tuning.write(path, tuning.content_of(costs(), measured="today", trials=12))
    found = asked()
    assert found is not None and found.measured and found.error == 0.05
    assert dict(found.prices) == dict.fromkeys(PRICES, 2.0) and dict(found.kinds) == KINDS
    assert found.cores == Cores(10, 24, 1 << 16)
    assert found is unit_costs(GPU) and not said
    assert path.stat().st_mode & 0o077 == 0 or sys.platform == "win32"  # mkstemp's: nobody else's business


def test_without_a_file_predictions_hold_and_nothing_is_said(said: list[str]) -> None:
    assert asked() is None and not unit_costs(GPU).measured and not said


def test_a_process_reads_it_once(path: Path) -> None:
    assert asked() is None
    tuning.write(path, tuning.content_of(costs()))
    assert asked() is None  # plans of a process do not change
    clear_all()
    assert asked() is not None
    path.unlink()
    assert asked() is not None


def test_it_is_of_the_machines_own_gpu_alone(path: Path) -> None:
    tuning.write(path, tuning.content_of(costs()))
    assert measured(Device("cpu", "cpu")) is None
    assert measured(Device("gpu", "Apple M4 Max")) is None
    assert unit_costs(Device("gpu", "Apple M4 Max")) is predicted("Apple M4 Max")
    assert measured(GPU) is not None


def test_no_file_is_read_for_a_chip_that_is_named(path: Path, said: list[str]) -> None:
    path.parent.mkdir()
    path.write_text("{")
    assert unit_costs(Device("gpu", "Apple M4 Max")) is predicted("Apple M4 Max") and not said
    assert not unit_costs(GPU).measured and said == [sentence(path, "it is not a tuning file")]


def test_the_variable_names_another_file_or_none(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    tuning.write(path, tuning.content_of(costs(1)))
    other = tmp_path / "other.json"
    tuning.write(other, tuning.content_of(costs(3)))
    for value, price in (("off", None), (str(other), 3.0), ("", 1.0)):
        monkeypatch.setenv("NATTEN_TUNING", value)
        clear_all()
        found = asked()
        assert (found and found.prices["mask"]) == price
    assert not said


def test_a_named_file_that_is_missing_is_mentioned(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    monkeypatch.setenv("NATTEN_TUNING", "/no/such/file.json")
    assert asked() is None
    assert said == [sentence("/no/such/file.json", "it does not exist")]


def changed(**fields: Any) -> str:
    return json.dumps(tuning.content_of(costs()) | fields)


PRICE = dict.fromkeys(PRICES, 1.0)
NO_FIGURE = "one of its figures is not a number, below zero, or too large"
UNUSABLE = {
    "": "it is not a tuning file",
    "{": "it is not a tuning file",
    "[" * 100_000: "it is not a tuning file",
    "[1, 2]": "it is not a tuning file",
    " " * (1 << 21): "it is not a tuning file",
    "{}": "its version is None, and this package reads 2",
    changed(version=1): "its version is 1, and this package reads 2",
    changed(prices={}): "its prices are not those of this package's model",
    changed(prices=[1]): "its prices are not those of this package's model",
    changed(prices=PRICE | {"new": 1}): "its prices are not those of this package's model",
    changed(prices=PRICE | {"mask": -1}): NO_FIGURE,
    changed(prices=PRICE | {"mask": "1"}): NO_FIGURE,
    changed(prices=PRICE | {"mask": True}): NO_FIGURE,
    changed(prices=PRICE | {"mask": float("nan")}): NO_FIGURE,
    changed(prices=PRICE | {"mask": float("inf")}): NO_FIGURE,
    changed(prices=PRICE | {"mask": 10**400}): NO_FIGURE,
    changed(prices=PRICE | {"mask": 1e308}): NO_FIGURE,
    changed(kinds={"na_fwd half staged": 10**400}): NO_FIGURE,
    changed(cores={"number": 10**400, "slots": 24, "memory": 1}): NO_FIGURE,
    changed(error=None): NO_FIGURE,
    '{"version": ' + 5000 * "1" + "}": "it is not a tuning file",
    changed(prices=dict.fromkeys(PRICES, 0)): "its prices, a kind or its cores are zero",
    changed(kinds={"na_fwd half staged": 0}): "its prices, a kind or its cores are zero",
    changed(kinds={"na_fwd half staged": None}): NO_FIGURE,
    changed(kinds=None): "it lacks the kinds of kernels, or the cores",
    changed(cores={"number": 10}): "it lacks the kinds of kernels, or the cores",
    changed(cores={"number": 0, "slots": 24, "memory": 1}): "its prices, a kind or its cores are zero",
}


@pytest.mark.parametrize("text", UNUSABLE, ids=lambda text: text[:20])
def test_a_broken_file_is_ignored_with_one_sentence(path: Path, said: list[str], text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    assert asked() is None
    assert said == [sentence(path, UNUSABLE[text])]


@pytest.mark.parametrize("name", ["package", "package version", "chip", "system", "kernels"])
def test_a_stale_file_is_ignored_with_one_sentence(path: Path, said: list[str], name: str) -> None:
    """Of another package, release, chip, operating system, or other kernels."""
    assert set(tuning.identity()) == {"package", "package version", "chip", "system", "kernels"}
    tuning.write(path, tuning.content_of(costs(), **{name: "another"}))
    assert asked() is None and len(said) == 1
    assert f"because it was measured with {name} 'another', and this is {tuning.identity()[name]!r};" in said[0]


def test_what_is_no_file_is_ignored_with_one_sentence(path: Path, said: list[str]) -> None:
    path.mkdir(parents=True)
    assert asked() is None and len(said) == 1 and "because it cannot be read: Is a directory;" in said[0]


def test_the_packages_do_not_read_each_others_files(path: Path, said: list[str]) -> None:
    from natten_mlx._metal.plan import tuning as of_mlx

    assert tuning.PACKAGE == "natten-mps" and of_mlx.PACKAGE == "natten-mlx"
    tuning.write(path, of_mlx.content_of(costs()))  # type: ignore[arg-type]
    assert asked() is None and "it was measured with package 'natten-mlx', and this is 'natten-mps'" in said[0]


def test_the_file_is_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = tuning.default_path()
    assert found.name == "tuning.json" and found.parent.name == "natten-mps"
    if sys.platform == "linux":
        assert found.parent.parent == tmp_path


def write_often(path: str, price: float) -> None:
    for _ in range(100):
        tuning.write(Path(path), tuning.content_of(costs(price)))


def test_several_writers_leave_a_whole_file(path: Path) -> None:
    """Each of them replaces it at once, so that a reader finds one or the other, and nothing else is left behind."""
    writers = [multiprocessing.get_context("fork").Process(target=write_often, args=(str(path), n)) for n in (1, 2, 3)]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            assert set(tuning.read(path).prices.values()) in ({1.0}, {2.0}, {3.0})
            reads += 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert reads and [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_write_that_fails_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning.write(path, tuning.content_of(costs(1)))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        tuning.write(path, tuning.content_of(costs(2)))
    assert set(tuning.read(path).prices.values()) == {1.0}
    assert [file.name for file in path.parent.iterdir()] == [path.name]
