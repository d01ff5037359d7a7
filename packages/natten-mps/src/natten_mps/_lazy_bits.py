"""Tensors whose elements differ from their memory: negated when read, or zeros without memory.

Torch's own fallbacks for these dispatch keys handle tensors and lists of tensors, but pass on unchanged a list of
optional tensors, which is what the custom ops take. So the ops have their own kernels for these keys. Tensors that have
neither key are not affected: the dispatcher never calls these kernels for them. (Conjugate tensors are complex, and no
op accepts those.)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._private import is_lazy_zero

DISPATCH_KEYS = ("Negative", "ZeroTensor")


def resolving(op: Any) -> Callable[..., Any]:
    """``op`` with the same arguments, the tensors in its lists materialised: the kernel of a lazy dispatch key."""

    def kernel(*arguments: Any) -> Any:
        return op(*([_read(t) for t in a] if _holds_tensors(a) else a for a in arguments))

    return kernel


def _holds_tensors(argument: Any) -> bool:
    return isinstance(argument, (list, tuple)) and any(isinstance(entry, Tensor) for entry in argument)


def _read(tensor: Tensor | None) -> Tensor | None:
    """A tensor with the same elements, all of them in memory."""
    if tensor is None:
        return None
    if is_lazy_zero(tensor):
        # One zero, repeated: kernels read any strides.
        return torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
    return tensor.resolve_neg()
