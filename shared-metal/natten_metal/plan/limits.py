"""What backends cannot take, and why, in one sentence."""

import math

from ..metal.sizes import DIMS, MAX_RPB
from ..problem.problem import Problem
from .backend import Work

# The largest count of anything that the kernels take, because positions and their sums with a window are 32-bit ints in
# kernels/window.h; and the most elements of a tensor, because sizes in bytes are 64-bit. cpu/natten_cpu.cpp has both.
MAX_COUNT, MAX_ELEMENTS = 2**29, 2**50


def metal_limit(problem: Problem, smallest: int = 1) -> str | None:
    """Why the Metal kernels cannot take ``problem``; None if they can.

    smallest: elements of the smallest tensor that the host passes to a kernel as device memory.
    """
    if problem.dtype == "float64":
        return "Metal has no float64"
    widest = max(problem.head_dim, problem.head_dim_v)
    if widest > DIMS[-1]:
        return f"head dims beyond {DIMS[-1]} do not fit a simdgroup's registers; got {widest}"
    entries = math.prod(2 * w - 1 for w in problem.kernel_size)
    if problem.has_rpb and entries > MAX_RPB:
        return f"an rpb of {entries} entries per head does not fit threadgroup memory (at most {MAX_RPB})"
    if problem.batch and smallest_tensor(problem) < smallest:
        return (
            f"kernels get tensors of fewer than {smallest} elements as constants, which they do not read; "
            f"got one of {smallest_tensor(problem)}"
        )
    return None


def too_large(problem: Problem) -> str | None:
    """Why ``problem`` is too large for the kernels, those for CPUs included; None if it is not."""
    p = problem
    counts = {
        "batch items": p.batch,
        "heads": p.heads,
        "channels of a head": max(p.head_dim, p.head_dim_v),
        "additional keys": p.additional,
        "tokens on an axis": max(*p.query_shape, *p.key_shape, *p.full_shape),
    }
    for what, count in counts.items():
        if count > MAX_COUNT:
            return f"the kernels take at most {MAX_COUNT} {what}; got {count}"
    tokens = math.prod(map(max, p.query_shape, p.key_shape))
    elements = (p.batch + 1) * p.heads * (p.additional + 1) * tokens * (1 + max(p.head_dim, p.head_dim_v))
    if elements >= MAX_ELEMENTS:
        return f"the kernels take tensors of fewer than {MAX_ELEMENTS} elements; got {elements}, all dimensions counted"
    return None


def too_long(problem: Problem, work: Work, longest: int) -> str | None:
    """Why an array of ``work`` would have a dimension of more than ``longest`` elements; None if none has."""
    p = problem
    rows = p.batch * max(p.queries * p.heads, p.keys * p.kv_heads)
    split = p.record.bilinear
    lengths = {f"a query's window of {p.kernel_size}": p.slots if split else 0}
    if work is Work.WALKS:
        lengths["the list of all tokens of all heads"] = rows
        lengths["the list of all window slots"] = p.batch * p.queries * p.heads * p.slots if split else 0
    elif work is Work.DENSE_OPERATIONS and p.has_rpb:
        lengths["the list of all pairs of a query and a key"] = p.queries * p.keys
    for what, length in lengths.items():
        if length > longest:
            return f"an array's dimension has at most {longest} elements here; {what} would need {length}"
    return None


def smallest_tensor(problem: Problem) -> int:
    """Elements of the smallest tensor of the problem's dtype that its programs read."""
    p = problem
    rows, keys = p.batch * p.queries * p.heads, p.batch * p.keys * p.kv_heads
    additional = p.batch * p.additional * p.kv_heads
    dims = (p.head_dim, p.head_dim_v)
    counts = [count * dim for count in (rows, keys, additional) for dim in dims]
    if p.record.bilinear:
        counts.append(rows * p.slots)
    return min((count for count in counts if count), default=0)
