"""What the doctor's cases launch, forward and gradient."""

from __future__ import annotations

from natten_mps._metal.metal import op_launches
from natten_mps._metal.metal.costs import UnitCosts
from natten_mps._metal.metal.op_launches import Launch
from natten_mps._metal.metal.tiling import Target
from natten_mps._metal.tools.doctor import Case


def launches_of(case: Case, matrix_units: UnitCosts | None = None) -> list[Launch]:
    """All launches of a case and of its gradients. matrix_units: of a chip that has them, its unit costs."""
    target, found = Target(matrix_units=matrix_units), list[Launch]()
    for problem in case.problems():
        found += op_launches.forward(problem, target)
        found += op_launches.backward(problem, problem.op in ("na", "attention"), target)
    return found
