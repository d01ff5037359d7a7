"""Which calls may skip torch's dispatcher, which makes small calls faster.

Most calls are of plain tensors in an eager program: torch's dispatcher would take them only to autograd and to
the kernel of their device, so they can go there directly. Anything else (a transform of torch.func, a mode such as a
counter of operations or fake tensors, a tensor that is a wrapper or not yet negated) has a dispatch key, in the tensor
or in the thread, and takes the custom op.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from ._metal.caches import cached
from ._private import HARMLESS_KEYS, dispatch_keys, frames_are_compiled, in_forward_mode, profiled, thread_keys


@cached("keys of plain tensors", 32)
def _plain(device: str) -> int:
    """The keys of a plain tensor, as bits; 0 for meta tensors, which have no data."""
    if device == "meta":
        return 0
    bits: int = dispatch_keys(torch.empty(0, device=device)).raw_repr()
    return bits


def goes_directly(tensors: Iterable[Tensor | None]) -> bool:
    """Whether the custom op can be skipped. A profiler lists ops by name, so it gets the op too, and so does
    torch.compile, which cannot compile what the direct way calls.
    """
    if torch.compiler.is_compiling() or profiled() or frames_are_compiled():
        return False
    if thread_keys().raw_repr() & ~HARMLESS_KEYS:
        return False
    accepted = None  # most calls have tensors of one kind, and its keys need to be looked at once
    for tensor in tensors:
        if tensor is not None and (keys := dispatch_keys(tensor).raw_repr()) != accepted:
            if keys & ~_plain(tensor.device.type):
                return False
            accepted = keys
    return True


def differentiated(tensors: Iterable[Tensor | None]) -> bool:
    """Whether a call of such tensors may be differentiated, in reverse or by a tangent."""
    if in_forward_mode():
        return True
    if not torch.is_grad_enabled():
        return False
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)
