"""What the doctor's cases launch, forward and gradient."""

from __future__ import annotations

from natten_mps._metal.metal import op_launches
from natten_mps._metal.metal.op_launches import Launch
from natten_mps._metal.tools.doctor import Case


def launches_of(case: Case) -> list[Launch]:
    """All launches of a case and of its gradients."""
    return [
        launch
        for problem in case.problems()
        for launch in (*op_launches.forward(problem), *op_launches.backward(problem, problem.op in ("na", "attention")))
    ]
