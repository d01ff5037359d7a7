"""The guardrail of ``./dev.sh bench --guard``: what it judges, by a clock that calls move; nothing is measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import guard  # noqa: E402

from natten_mps._metal.bench.problems import BY_NAME  # noqa: E402

KEY = guard.Key("natten-mps", "avx512", "nat", "forward")


@pytest.mark.parametrize(
    ("found", "said"),
    [(1.0, ""), (1.7, ""), (0.6, ""), (1.8, "SLOWER: 1.80"), (0.4, "FASTER: 2.50"), (float("nan"), "SLOWER")],
)
def test_the_band(found: float, said: str) -> None:
    assert guard.verdict(found, 1.0).startswith(said) and bool(guard.verdict(found, 1.0)) == bool(said)
    lines, status = guard.judge({KEY: found}, {KEY: 1.0})
    assert status == bool(said) and said in lines[0]


def test_what_the_table_lacks_is_not_judged_and_not_passed() -> None:
    lines, status = guard.judge({KEY: 1.0, KEY._replace(problem="ltx"): 1.0}, {KEY: 1.0})
    assert status == 1 and lines[-1] == "1 of 2 rows are not in the table"


def test_the_table_survives_its_file(tmp_path: Path) -> None:
    ratios = {KEY: 1.23, KEY._replace(package="natten-mlx"): 0.00456}
    (tmp_path / "guard.tsv").write_text(guard.table(ratios))
    assert guard.read(tmp_path / "guard.tsv") == ratios


def test_the_committed_table_is_complete() -> None:
    """Each of its packages and kernels has every problem in both directions."""
    committed = guard.read(guard.TABLE)
    kernels = {key[:2] for key in committed}
    assert {
        ("natten-mps", "avx512"),
        ("natten-mlx", "avx512"),
        ("natten-mps", "avx2"),
        ("natten-mlx", "avx2"),
    } <= kernels
    expected = {guard.Key(*each, name, way) for each in kernels for name in guard.PROBLEMS for way in guard.DIRECTIONS}
    assert committed.keys() == expected and set(guard.PROBLEMS) <= BY_NAME.keys()
    assert all(0 < ratio < 1000 for ratio in committed.values())


@pytest.mark.parametrize("slower", [1.0, 3.0])
def test_a_slower_kernel_has_a_larger_ratio(slower: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that each call moves by the operations that it stands for, the ratio is how much slower they are."""
    from natten_mps._metal.bench import measure
    from natten_mps._tools.bench import subject

    now = [0.0]

    def takes(seconds: float) -> Any:
        def call(*given: Any) -> float:
            now[0] += seconds
            return seconds

        return call

    named, rows = BY_NAME["nat"].form(True), 300
    operations = 4 * 56 * 56 * 49 * 2 * 32
    assert rows == round(operations / (2 * guard.INNER**2))
    monkeypatch.setattr(guard.time, "process_time", lambda: now[0])
    monkeypatch.setattr(measure, "product", lambda *given: takes(2 * rows * guard.INNER**2 * 1e-10))
    one = subject(True)
    monkeypatch.setattr(one, "attend", takes(slower * operations * 1e-10))
    assert guard.measured(one, named, "forward") == pytest.approx(slower)
