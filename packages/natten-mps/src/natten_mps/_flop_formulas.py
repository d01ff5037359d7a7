"""Counts of this package's custom ops for torch's own counter, ``torch.utils.flop_counter.FlopCounterMode``.

Useful work, as :func:`natten_mps.flops` says: matrix products over the pairs of a query and a key that it attends to.
Imported right after the counter is (:mod:`._with_torch`), because a counter reads the formulas when it is made.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import _ops as _ops  # which registers the custom ops
from . import _varlen_ops
from ._call import Call, problem_of
from ._metal.plan.backends import log_once
from ._metal.problem import mask, ragged
from ._metal.problem.ops import OPS
from ._metal.problem.problem import Problem
from ._private import is_fake


def _sized(tensor: Tensor | None) -> Tensor | None:
    """A tensor whose sizes are numbers: symbolic ones are taken as they are in this call."""
    if tensor is None or not any(isinstance(size, torch.SymInt) for size in tensor.shape):
        return tensor
    return torch.empty([int(size) for size in tensor.shape], dtype=tensor.dtype, device="meta")


def problem_counted(op: str, inputs: Sequence[Tensor | None], *static: Any) -> Problem:
    """The problem of a custom op's call. static: as :data:`._call.STATIC` lists them."""
    return problem_of(Call.of_static(op, *static), [_sized(tensor) for tensor in inputs])


def _forward(op: str, inputs: Any, *static: Any, out_val: Any = None) -> int:
    return mask.flops(problem_counted(op, inputs, *static))


def _backward(op: str, grads: Any, inputs: Any, outputs: Any, *static: Any, out_val: Any = None) -> int:
    return mask.flops(problem_counted(op, inputs, *static), backward=True)


def _varlen(inputs: Any, table: Tensor, static: tuple[Any, ...], backward: bool) -> int:
    """The sum over items; 0, with one line in the log, where a tracer has no numbers of the items' sizes."""
    call = _varlen_ops.Ragged(*static)
    if is_fake(table):
        log_once(f"{call.name}: the sizes of the items are known only when it runs; its work is not counted here")
        return 0
    first, third = inputs[0], (len(inputs) - 1) // 3
    key, value = inputs[third], inputs[2 * third]
    batch, rank = 1, call.rank
    shared = Problem(
        call.op,
        batch,
        (1,) * rank,
        (1,) * rank,
        first.shape[-2],
        key.shape[-2],
        first.shape[-1],
        value.shape[-1],
        *((1,) * rank,) * 3,
        tuple(call.is_causal),
        call.scale,
        str(first.dtype).removeprefix("torch."),
    )
    rows = tuple(map(tuple, table.tolist()))
    found = ragged.groups(rows, rank, call.kind, None)
    return sum(mask.flops(ragged.problem_of(shared, group), backward) for group in found)


def _varlen_forward(inputs: Any, table: Tensor, *static: Any, out_val: Any = None) -> int:
    return _varlen(inputs, table, static, False)


def _varlen_backward(grads: Any, table: Tensor, inputs: Any, outputs: Any, *static: Any, out_val: Any = None) -> int:
    return _varlen(inputs, table, static, True)


def _register() -> None:
    ops = torch.ops.natten_mps
    for op in OPS:
        register_flop_formula(getattr(ops, f"{op}_forward"), get_raw=True)(partial(_forward, op))
        register_flop_formula(getattr(ops, f"{op}_backward"), get_raw=True)(partial(_backward, op))
    register_flop_formula(ops.varlen_forward, get_raw=True)(_varlen_forward)
    register_flop_formula(ops.varlen_backward, get_raw=True)(_varlen_backward)


_register()
