"""Cases of the table cut into slabs: their results side by side, and their gradients added up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tolerances
from cases import Case
from frameworks import Path, run, run_av, run_qk
from pieces import OF_QUERIES, Cut, slabs

Runner = Callable[[Path, Case, str, Cut | None], Any]
RUNS: dict[str, tuple[Runner, Any]] = {
    "na": (run, tolerances.fused),
    "qk": (run_qk, tolerances.split_qk),
    "av": (run_av, tolerances.split_av),
}


def joined(path: Path, case: Case, dtype: str, op: str, axis: int, parts: int) -> dict[str, Any]:
    """Results of slabs side by side, and their gradients added up."""
    runner, expected = RUNS[op]
    found = {name: np.zeros(each.truth.shape) for name, each in expected(case, dtype).items()}
    times = {name: np.zeros(array.shape, int) for name, array in found.items() if name in OF_QUERIES}
    for cut in slabs(case, axis, parts):
        values, _ = runner.__wrapped__(path, case, dtype, cut)  # type: ignore[attr-defined]  # not kept
        assert values.keys() == found.keys()
        for name, value in values.items():
            found[name][cut.at(name)] += value
            if name in times:
                times[name][cut.at(name)] += 1
    assert all((count == 1).all() for count in times.values())
    return found


def ways(case: Case) -> list[tuple[int, int]]:
    """The ways to cut a case: the axis, and the number of slabs."""
    return [(axis, parts) for axis, n in enumerate(case.shape) for parts in range(2, min(n, 5) + 1)]


def check_slabs(path: Path, case: Case, dtype: str, op: str, way: tuple[int, int]) -> None:
    expected = RUNS[op][1](case, dtype)
    tolerances.assert_within(joined(path, case, dtype, op, *way), expected, f"{path}, {case}, {op}, {dtype}, {way}")
