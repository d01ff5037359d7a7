"""What the Metal kernels cannot take, and why, in one sentence."""

import math

from .problem import Problem
from .source import TRANSPOSED, WALKING
from .steps import MOST_TABLE, Step, backward, forward
from .tiles import DIMS

# Elements of one batch item that a kernel which counts them in 32 bits can tell apart are fewer than this.
TOO_MANY = 1 << 31


def obstacle(problem: Problem, smallest: int = 1, counted: bool = False) -> str | None:
    """Why the Metal kernels cannot take ``problem``; None if they can.

    smallest: elements of the smallest tensor that the host hands to a kernel as device memory. counted: whether the
    host itself counts every tensor's elements in 32 bits.
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
    return _too_long(problem, counted)


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


def _too_long(problem: Problem, counted: bool) -> str | None:
    """Why an offset inside one batch item would not fit 32 bits; None if all do."""
    elements = item_elements(problem)
    if max(elements.values()) < TOO_MANY:
        return None
    steps = (*forward(problem), *backward(problem, True))
    names = elements if counted else [name for step in steps for name in counted_tensors(step)]
    name = next((name for name in names if elements[name] >= TOO_MANY), None)
    if name is None:
        return None
    return f"{name} has {elements[name]} elements of one item: the Metal kernels count them in 32 bits here"


def item_elements(problem: Problem) -> dict[str, int]:
    """Elements that one batch item has of each tensor that programs read, by its name there."""
    p = problem
    rows, keys, extra = p.queries * p.heads, p.keys * p.kv_heads, p.additional * p.kv_heads
    slots = rows * p.slots if p.op in ("qk", "av") else 0
    return {
        "query": rows * p.head_dim, "key": keys * p.head_dim, "value": keys * p.head_dim_v,
        "additional_keys": extra * p.head_dim, "additional_values": extra * p.head_dim_v,
        "out_grad": rows * p.head_dim_v, "lse": rows, "delta": rows, "attn": slots, "logits_grad": slots,
    }  # fmt: skip


def counted_tensors(step: Step) -> list[str]:
    """The tensors whose elements inside a box the kernel counts in 32 bits (``box_offset`` of kernels/walk.h).

    Those are the columns if they are not staged; and where queries are the columns, what has values for each of them.
    """
    i = step.instance
    if i.template not in (*WALKING, "na_bias"):
        return []
    columns = ("q", "out_grad", "x") if i.template in TRANSPOSED else ("k", "v", "extra_k", "extra_v")
    values = ("lse", "delta", "attn") if i.template in TRANSPOSED else ()
    counted = (*values, *(() if i.stage else columns))
    return [name for argument, name in step.inputs if argument in counted]
