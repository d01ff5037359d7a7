"""The custom ops' static arguments, and the problem and plan that follow from them and the tensors.

Plain eager calls pass their plan on (:mod:`._autodiff`). Where torch's dispatcher, torch.compile or torch.func calls an
op, it brings these arguments and tensors whose sizes are known only then, so the problem is stated again from both.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._device import machine
from ._metal.plan.plan import Plan
from ._metal.problem.ops import ADDITIONAL_KEYS, KEY, KEY_MASK, OPS, RPB, VALUE, Op
from ._metal.problem.problem import Piece, Problem

# The fields of a call but its op, as the custom ops take them.
STATIC = "int[] kernel_size, int[] stride, int[] dilation, bool[] is_causal, float scale, str backend, int[] piece=[]"


class Call(NamedTuple):
    """What a custom op is given besides its tensors: none of it follows from the tensors' sizes.

    piece: full_shape, query_start and key_start of all axes in one list, which is empty for a whole problem.
    """

    op: str
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    is_causal: tuple[bool, ...]
    scale: float
    backend: str
    piece: tuple[int, ...] = ()

    @classmethod
    def of_static(cls, op: str, *static: Any) -> "Call":
        """The call that a custom op is given as :data:`STATIC`: torch hands over lists."""
        fields: list[Any] = [tuple(each) if isinstance(each, list) else each for each in static]
        return cls(op, *fields)

    @property
    def record(self) -> Op:
        """The op's record."""
        return OPS[self.op]

    @property
    def name(self) -> str:
        """The op's public name, for messages."""
        return self.record.faces[len(self.is_causal)]


def call_of(problem: Problem, backend: str) -> Call:
    """The static arguments of a problem's custom op."""
    p = problem
    kernel_size = p.kernel_size if p.record.has_window else ()
    piece = () if p.piece is None else (*p.full_shape, *p.query_start, *p.key_start)
    return Call(p.op, kernel_size, p.stride, p.dilation, p.is_causal, p.scale, backend, piece)


def _piece_of(call: Call) -> Piece | None:
    rank = len(call.is_causal)
    return Piece(*(call.piece[part * rank : (part + 1) * rank] for part in range(3))) if call.piece else None


def problem_of(call: Call, inputs: Sequence[Tensor | None]) -> Problem:
    """The problem of a call on ``inputs``, in the order of the op's record."""
    given = dict(zip(call.record.input_names, inputs, strict=False))
    first, value, additional = inputs[0], given.get(VALUE.name), given.get(ADDITIONAL_KEYS.name)
    key = given.get(KEY.name, value)
    assert first is not None and key is not None
    kernel_size = call.kernel_size if call.record.has_window else (max(first.shape[1], key.shape[1]),)
    return Problem(
        call.op,
        first.shape[0],
        tuple(first.shape[1:-2]),
        tuple(key.shape[1:-2]),
        first.shape[-2],
        key.shape[-2],
        first.shape[-1] if call.record.reads(KEY) else 0,
        0 if value is None else value.shape[-1],
        kernel_size,
        call.stride,
        call.dilation,
        call.is_causal,
        call.scale,
        str(key.dtype).removeprefix("torch."),
        0 if additional is None else additional.shape[1],
        given.get(RPB.name) is not None,
        _piece_of(call),
        given.get(KEY_MASK.name) is not None,
    )


def plan_of(call: Call, inputs: Sequence[Tensor | None]) -> Plan:
    """The plan of a call on ``inputs``: made when a custom op runs, because only then the sizes are known."""
    second = inputs[1]
    assert second is not None
    return machine().plan_on(second.device, problem_of(call, inputs), call.backend)


def split(op: str, tensors: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    """Gradients, inputs and outputs out of :class:`Backward`'s flat arguments."""
    outputs = len(OPS[op].outputs)
    return tensors[:outputs], tensors[outputs:-outputs], tensors[-outputs:]


def forward_op(call: Call, tensors: Any) -> list[Tensor]:
    found: list[Tensor] = _custom_op(call, "forward")(list(tensors), *call[1:])
    return found


def backward_op(call: Call, tensors: Any) -> list[Tensor]:
    found: list[Tensor] = _custom_op(call, "backward")(*map(list, split(call.op, tensors)), *call[1:])
    return found


def _custom_op(call: Call, direction: str) -> Any:
    return getattr(torch.ops.natten_mps, f"{call.op}_{direction}").default


def primals(saved: Iterable[Tensor | None]) -> list[Tensor | None]:
    """A function's saved tensors without the tangents that its ``jvp`` is given."""
    # Torch has one level of tangents, 0; inside of torch.compile its Python side does not know that it is entered.
    return [None if tensor is None else forward_ad.unpack_dual(tensor, level=0).primal for tensor in saved]
