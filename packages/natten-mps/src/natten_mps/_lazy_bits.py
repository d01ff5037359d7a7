"""Tensors whose elements are not what lies in their memory: negated when read, or zeros without memory.

Torch's own fallbacks for these dispatch keys look at tensors and lists of tensors, and pass a list of optional tensors,
which is what the custom ops take, on as it is. So the ops have kernels of their own for the keys. Nothing is asked of a
tensor that has neither: the dispatcher does not come here. (Conjugate tensors are complex, and no op takes those.)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

DISPATCH_KEYS = ("Negative", "ZeroTensor")


def resolving(op: Any) -> Callable[..., Any]:
    """``op`` of the same arguments, with tensors in its lists as they are read: the kernel of a lazy dispatch key."""

    def kernel(*arguments: Any) -> Any:
        return op(*([_read(t) for t in a] if _holds_tensors(a) else a for a in arguments))

    return kernel


def _holds_tensors(argument: Any) -> bool:
    return isinstance(argument, (list, tuple)) and any(isinstance(entry, Tensor) for entry in argument)


def _read(tensor: Tensor | None) -> Tensor | None:
    """A tensor with the same elements, all of them in memory."""
    if tensor is None:
        return None
    if tensor._is_zerotensor():
        # One zero, repeated: kernels read any strides.
        return torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
    return tensor.resolve_neg()
