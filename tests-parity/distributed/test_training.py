"""The training examples: several processes have the losses of one."""

from __future__ import annotations

from pathlib import Path

import pytest
from distributed_launch import run_program

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def losses(framework: str, count: int) -> list[float]:
    ended = run_program([str(EXAMPLES / f"train_on_shards_{framework}.py")], count)
    assert [each.status for each in ended] == [0] * count, "\n".join(each.errors[-3000:] for each in ended)
    assert all(each.reports == [] for each in ended[1:])
    assert [report["step"] for report in ended[0].reports] == list(range(12))
    return [report["loss"] for report in ended[0].reports]


@pytest.mark.parametrize(
    ("framework", "count"),
    [("torch", 3), ("mlx", 2), *(pytest.param(f, n, marks=pytest.mark.all) for f in ("torch", "mlx") for n in (2, 4))],
)
def test_losses_are_those_of_one_process(framework: str, count: int) -> None:
    alone, shared = losses(framework, 1), losses(framework, count)
    assert shared == pytest.approx(alone, rel=1e-4)
    assert alone[-1] < 0.7 * alone[0], "nothing was learned"
    assert len(set(alone)) == len(alone)
