"""The private names of torch that this package uses, because it has no public ones.

A test checks each of them on all supported releases. Nothing else in the package names them.

``torch.library.register_autograd`` cannot replace them: in torch 2.13, torch.func.grad of such an op, under vmap too,
is a RuntimeError, because the autograd.Function that torch makes for it has no ``setup_context``. A jvp of it, which
must be right or an error, silently gives a tangent of zeros, and forward mode outside of torch.func gives none.
"""

import inspect
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

T = TypeVar("T")

# What the dispatcher would do with a call, as bits: the keys of a tensor, and those that a thread adds.
dispatch_keys: Callable[[Tensor], Any] = torch._C._dispatch_keys
thread_keys: Callable[[], Any] = torch._C._dispatch_tls_local_include_set
_frame_callback: Callable[[], Any] = torch._C._dynamo.eval_frame.get_eval_frame_callback
# Keys of a thread that change nothing here.
HARMLESS_KEYS: int = (
    torch._C.DispatchKeySet(torch._C.DispatchKey.BackendSelect)
    | torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)
).raw_repr()


def profiled() -> bool:
    """Whether a profiler lists ops by name.

    ``_is_profiler_enabled``: torch has no public question for it, and a direct call would be missing from the list.
    """
    return bool(torch.autograd.profiler._is_profiler_enabled)


def frames_are_compiled() -> bool:
    """Whether torch.compile looks at every Python function that this thread calls now, to compile it on its own.

    That is so inside of a compiled function that torch has given up compiling as a whole, as it does where it is first
    called under a mode such as a counter of operations. The public questions only say whether it is compiling.
    """
    return _frame_callback() not in (None, False)


def in_forward_mode() -> bool:
    """Whether tensors may have tangents outside of torch.func and torch.compile: in a ``forward_ad.dual_level()``.

    ``_current_level``: torch's public way, ``unpack_dual``, asks one tensor at a time, which costs each call more.
    """
    return bool(forward_ad._current_level >= 0)


def is_fake(tensor: Any) -> bool:
    """Whether a tensor has a shape but no data, as in a trace."""
    return isinstance(tensor, torch._subclasses.FakeTensor)


def is_wrapped_fake(tensor: Tensor) -> bool:
    """:func:`is_fake`, also inside the wrappers of torch.func's transforms."""
    return bool(torch._subclasses.fake_tensor.is_fake(tensor))


def is_lazy_zero(tensor: Tensor) -> bool:
    """Whether a tensor is zeros without memory, as forward mode makes them."""
    return bool(tensor._is_zerotensor())


def below_autograd(run: Callable[..., T], *arguments: Any) -> T:
    """``run(*arguments)`` below autograd, where nothing is differentiated and nothing noted as a view.

    This is how a custom op runs inside the autograd.Function that its autograd kernel calls. With
    ``torch.library.register_autograd`` that would not be needed, but it fails under torch.func. What the pure backend
    returns is a slice of what it has computed, and torch would not let users change a view from within a Function.
    """
    with torch._C._AutoDispatchBelowADInplaceOrView():
        return run(*arguments)


def apply_to_plain(function: type[torch.autograd.Function], *arguments: Any) -> tuple[Tensor, ...]:
    """``function.apply(*arguments)`` where torch.func has wrapped none of them: ``apply`` looks at each for that."""
    applied: tuple[Tensor, ...] = super(torch.autograd.Function, function).apply(*arguments)  # type: ignore[misc]
    return applied


def forward_mode() -> AbstractContextManager[None]:
    """Turn forward mode on: torch turns it off within a ``jvp``, and a ``jvp`` of that one would find zeros.

    ``_set_fwd_grad_enabled``: the public ``dual_level`` opens a level but does not turn the mode on again.
    """
    switched: AbstractContextManager[None] = forward_ad._set_fwd_grad_enabled(True)
    return switched


def speed_up_registration(module: str) -> None:
    """Tell ``inspect`` which file a module is.

    ``torch.library.register_fake`` records where it was called from, for which ``inspect`` would look at every imported
    module, of which torch alone has some two thousand: a fifth of the time that this package takes to import.
    """
    inspect.modulesbyfile[inspect.getabsfile(sys.modules[module])] = module
