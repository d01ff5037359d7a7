"""What a custom op is told besides its tensors, and the problem and plan that follow from both."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._config import TIERS
from ._device import device_of
from ._metal.plan.plan import Plan, plan
from ._metal.problem.problem import INPUTS, OUTPUTS, Problem


class Call(NamedTuple):
    """What a custom op is told besides its tensors."""

    op: str
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    is_causal: tuple[bool, ...]
    scale: float
    backend: str

    @property
    def name(self) -> str:
        """The op's public name, for messages."""
        suffix = "" if self.op == "na" else f"_{self.op}"
        return "attention" if self.op == "attention" else f"na{len(self.kernel_size)}d{suffix}"


def call_of(problem: Problem, backend: str) -> Call:
    """The static arguments of a problem's custom op: none that follow from the tensors' sizes."""
    p = problem
    kernel_size = () if p.op == "attention" else p.kernel_size
    return Call(p.op, kernel_size, p.stride, p.dilation, p.is_causal, p.scale, backend)


def problem_of(call: Call, shapes: tuple[tuple[int, ...] | None, ...], dtype: torch.dtype) -> Problem:
    """The problem of a call on tensors of these shapes, in the order of ``INPUTS[call.op]``."""
    given = dict(zip(INPUTS[call.op], shapes, strict=True))
    first, key = shapes[0], given.get("key") or given["value"]
    assert first is not None and key is not None
    value, extra = given.get("value"), given.get("additional_keys")
    kernel_size = (max(first[1], key[1]),) if call.op == "attention" else call.kernel_size
    return Problem(
        call.op, first[0], first[1:-2], key[1:-2], first[-2], key[-2],
        0 if call.op == "av" else first[-1], value[-1] if value is not None else 0,
        kernel_size, call.stride, call.dilation, call.is_causal, call.scale,
        str(dtype).removeprefix("torch."), extra[1] if extra is not None else 0, given.get("rpb") is not None,
    )  # fmt: skip


_problem = lru_cache(maxsize=1024)(problem_of)


def plan_for(call: Call, tensors: list[Tensor | None], backend: str | None = None) -> Plan:
    value = tensors[1]
    assert value is not None
    shapes = tuple(None if tensor is None else tuple(tensor.shape) for tensor in tensors)
    return plan(_problem(call, shapes, value.dtype), device_of(value.device), backend or call.backend, TIERS)


def named(call: Call, tensors: list[Any]) -> dict[str, Tensor]:
    return {name: t for name, t in zip(INPUTS[call.op], tensors, strict=True) if t is not None}


def split(call: Call, tensors: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    """Gradients, inputs and outputs out of :class:`Backward`'s flat arguments."""
    grads, inputs = OUTPUTS[call.op], len(INPUTS[call.op])
    return tensors[:grads], tensors[grads : grads + inputs], tensors[grads + inputs :]


def forward_op(call: Call, tensors: Any) -> list[Tensor]:
    found: list[Tensor] = _custom_op(call, "forward")(list(tensors), *call[1:])
    return found


def backward_op(call: Call, tensors: Any) -> list[Tensor]:
    found: list[Tensor] = _custom_op(call, "backward")(*map(list, split(call, tensors)), *call[1:])
    return found


def _custom_op(call: Call, direction: str) -> Any:
    return getattr(torch.ops.natten_mps, f"{call.op}_{direction}").default


def below_autograd(op: Any, *arguments: Any) -> list[Tensor]:
    """What ``op`` gives where autograd is done: in the autograd.Function that the custom op's own autograd leads to.

    torch has no public name for this; the test of private names holds it.
    """
    with torch._C._AutoDispatchBelowADInplaceOrView():
        found: list[Tensor] = op(*arguments)
    return found


def forward_mode() -> AbstractContextManager[None]:
    """Forward mode, on: torch turns it off for a function's ``jvp``, and a ``jvp`` of that one would find zeros.

    torch has no public name for this; the test of private names holds it.
    """
    switched: AbstractContextManager[None] = forward_ad._set_fwd_grad_enabled(True)
    return switched


def primals(saved: Iterable[Tensor | None]) -> list[Tensor | None]:
    """A function's saved tensors without the tangents that its ``jvp`` is given."""
    # Torch has one level of tangents, 0; inside of torch.compile its Python side does not know that it is entered.
    return [None if tensor is None else forward_ad.unpack_dual(tensor, level=0).primal for tensor in saved]
