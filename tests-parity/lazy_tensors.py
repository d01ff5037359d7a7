"""Tensors whose elements differ from their memory, and calls that must read them correctly.

Each check runs on the default backend and compares a call on lazy tensors with one on the same numbers in memory, to
the bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from frameworks import MPS
from torch import Tensor

SHAPE = (2, 6, 7, 2, 8)


def negated(*shape: int) -> Tensor:
    """A tensor whose elements are the negatives of what is in memory."""
    tensor = torch.randn(*shape, dtype=torch.complex64).conj().imag
    assert tensor.is_neg()
    return tensor


def zeros(*shape: int) -> Tensor:
    """Zeros without memory."""
    tensor: Tensor = torch._efficientzerotensor(shape)
    assert tensor._is_zerotensor()
    return tensor


def in_memory(tensor: Tensor) -> Tensor:
    plain = tensor.resolve_neg() + torch.zeros(tensor.shape)
    assert not plain.is_neg() and not plain._is_zerotensor()
    return plain


KINDS: dict[str, Callable[..., Tensor]] = {"negated": negated, "zeros": zeros}


def fused(query: Tensor, key: Tensor, value: Tensor, more: Tensor, rpb: Tensor) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = MPS.face("na2d")(
        query, key, value, 3, additional_keys=more, additional_values=more, rpb=rpb, return_lse=True
    )
    return found


def given_to_fused(make: Callable[..., Tensor]) -> list[Tensor]:
    return [*(make(*SHAPE) for _ in range(3)), make(2, 3, 2, 8), make(2, 5, 5)]


def split(query: Tensor, key: Tensor, value: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    return MPS.face("na2d_qk")(query, key, 3), MPS.face("na2d_av")(weights, value, 3)


def given_to_split(make: Callable[..., Tensor]) -> list[Tensor]:
    return [*(make(*SHAPE) for _ in range(3)), make(*SHAPE[:-1], 9)]


def full(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = MPS.face("attention")(query, key, value, return_lse=True)
    return found


def given_to_full(make: Callable[..., Tensor]) -> list[Tensor]:
    return [make(2, 9, 2, 8) for _ in range(3)]


CALLS = {"fused": (fused, given_to_fused), "split": (split, given_to_split), "full": (full, given_to_full)}


def check_inputs(op: str, kind: str) -> None:
    """Lazy inputs, and gradients for them."""
    call, make = CALLS[op]
    lazy = make(KINDS[kind])
    wanted = call(*map(in_memory, lazy))
    for found, expected in zip(call(*lazy), wanted, strict=True):
        assert torch.equal(found, expected)
    leaves = [tensor.requires_grad_() for tensor in lazy]
    plain = [in_memory(tensor.detach()).requires_grad_() for tensor in lazy]
    cotangents = [torch.randn(out.shape) for out in wanted]
    gradients = torch.autograd.grad(call(*leaves), leaves, cotangents)
    for found, expected in zip(gradients, torch.autograd.grad(call(*plain), plain, cotangents), strict=True):
        assert torch.equal(found, expected)


def check_gradients(op: str, kind: str) -> None:
    """Lazy incoming gradients."""
    call, make = CALLS[op]
    leaves = [tensor.requires_grad_() for tensor in make(torch.randn)]
    outputs = call(*leaves)
    lazy = [KINDS[kind](*out.shape) for out in outputs]
    found = torch.autograd.grad(outputs, leaves, lazy, retain_graph=True)
    wanted = torch.autograd.grad(outputs, leaves, [in_memory(each) for each in lazy])
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
