"""What the doctor's cases launch: their problems, and the launches of forward and gradient."""

from __future__ import annotations

from natten_mps._metal.metal import op_launches
from natten_mps._metal.metal.op_launches import Launch
from natten_mps._metal.problem.problem import Problem
from natten_mps._metal.tools.doctor import Case


def problems_of(case: Case) -> list[Problem]:
    """One problem, or the two of the split ops."""
    rank = len(case.shape)
    window = ((case.stride,) * rank, (case.dilation,) * rank, (case.is_causal,) * rank)
    return [
        Problem(
            op,
            case.batch,
            case.shape,
            case.shape,
            case.heads,
            case.kv_heads,
            0 if op == "av" else case.dim,
            0 if op == "qk" else case.dim_v,
            case.kernel_size,
            *window,
            1.0,
            case.dtype,
            case.additional,
            case.rpb and op != "av",
        )
        for op in (("qk", "av") if case.op == "split" else (case.op,))
    ]


def launches_of(case: Case) -> list[Launch]:
    """All launches of a case and of its gradients."""
    return [
        launch
        for problem in problems_of(case)
        for launch in (*op_launches.forward(problem), *op_launches.backward(problem, problem.op in ("na", "attention")))
    ]
