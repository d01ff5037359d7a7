"""Upstream's convention of counting: a causal axis counts like any other.

:data:`WHOLE_WINDOWS` has the formulas of it that ``torch.utils.flop_counter.FlopCounterMode`` takes for the custom ops.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from .._flop_formulas import problem_counted
from .._metal.problem import mask
from .._metal.problem.ops import OPS


def _count(op: str, inputs: Any, *static: Any, out_val: Any = None) -> int:
    problem = problem_counted(op, inputs, *static)
    return mask.flops(replace(problem, is_causal=(False,) * problem.rank))


def _formula(op: str) -> Callable[..., int]:
    found: Any = partial(_count, op)
    found._get_raw = True  # FlopCounterMode's mark of a formula that takes tensors
    return found


WHOLE_WINDOWS = {getattr(torch.ops.natten_mps, f"{op}_forward"): _formula(op) for op in OPS}
