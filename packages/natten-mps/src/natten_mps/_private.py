"""The private names of torch that this package uses, each with the reason: torch has no public one for it.

A test asks every release for each of them. Nothing else in the package names them.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

# What the dispatcher would do with a call, as bits: the keys of a tensor, and those that a thread adds.
dispatch_keys: Callable[[Tensor], Any] = torch._C._dispatch_keys
thread_keys: Callable[[], Any] = torch._C._dispatch_tls_local_include_set
# What a thread has that does nothing else.
HARMLESS_KEYS: int = (
    torch._C.DispatchKeySet(torch._C.DispatchKey.BackendSelect)
    | torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)
).raw_repr()


def profiled() -> bool:
    """Whether a profiler lists ops by name."""
    return bool(torch.autograd.profiler._is_profiler_enabled)


def in_forward_mode() -> bool:
    """Whether tensors may have tangents outside of torch.func and torch.compile: in a ``forward_ad.dual_level()``."""
    return bool(forward_ad._current_level >= 0)


def is_fake(tensor: Any) -> bool:
    """Whether a tensor has a shape and no numbers, as tracers have it."""
    return isinstance(tensor, torch._subclasses.FakeTensor)


def is_wrapped_fake(tensor: Tensor) -> bool:
    """:func:`is_fake`, also inside of the wrappers of torch.func's transforms."""
    return bool(torch._subclasses.fake_tensor.is_fake(tensor))


def is_lazy_zero(tensor: Tensor) -> bool:
    """Whether a tensor is zeros without memory, as forward mode makes them."""
    return bool(tensor._is_zerotensor())


def below_autograd(op: Any, *arguments: Any) -> list[Tensor]:
    """What ``op`` gives where autograd is done: in the autograd.Function that the custom op's own autograd leads to.

    ``torch.library.register_autograd`` would do without, but fails under torch.func.
    """
    with torch._C._AutoDispatchBelowADInplaceOrView():
        found: list[Tensor] = op(*arguments)
    return found


def forward_mode() -> AbstractContextManager[None]:
    """Forward mode, on: torch turns it off for a function's ``jvp``, and a ``jvp`` of that one would find zeros."""
    switched: AbstractContextManager[None] = forward_ad._set_fwd_grad_enabled(True)
    return switched
