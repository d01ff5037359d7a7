"""What the Metal kernels cannot take, and why, in one sentence."""

import math

from .problem import Problem
from .steps import MOST_TABLE
from .tiles import DIMS


def obstacle(problem: Problem, smallest: int = 1) -> str | None:
    """Why the Metal kernels cannot take ``problem``; None if they can.

    smallest: elements of the smallest tensor that the host hands to a kernel as device memory.
    """
    if problem.dtype == "float64":
        return "Metal has no float64"
    widest = max(problem.head_dim, problem.head_dim_v)
    if widest > DIMS[-1]:
        return f"head dims beyond {DIMS[-1]} do not fit a simdgroup's registers; got {widest}"
    entries = math.prod(2 * w - 1 for w in problem.kernel_size)
    if problem.has_rpb and entries > MOST_TABLE:
        return f"a bias table of {entries} entries does not fit threadgroup memory (at most {MOST_TABLE})"
    if problem.batch and smallest_tensor(problem) < smallest:
        return (
            f"kernels get tensors of fewer than {smallest} elements as constants, which they do not read; "
            f"got one of {smallest_tensor(problem)}"
        )
    return None


def smallest_tensor(problem: Problem) -> int:
    """Elements of the smallest tensor of the problem's dtype that its programs read."""
    p = problem
    rows, keys = p.batch * p.queries * p.heads, p.batch * p.keys * p.kv_heads
    extra = p.batch * p.additional * p.kv_heads
    dims = (p.head_dim, p.head_dim_v)
    counts = [count * dim for count in (rows, keys, extra) for dim in dims]
    if p.op in ("qk", "av"):
        counts.append(rows * p.slots)
    return min((count for count in counts if count), default=0)
