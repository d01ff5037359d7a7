"""Whether torch's dispatcher would do nothing with a call but pass it to autograd and to the kernel of its device.

That is so for plain tensors in an eager program, which is most calls; then the dispatcher can be skipped, which saves
much of a small call's time. Anything else (a transform of torch.func, a mode such as an operation counter or fake
tensors, a wrapper tensor, a lazily negated one) has a dispatch key in the tensor or in the thread, and gets the custom
op.
"""

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor

_KEYS, _THREAD = torch._C._dispatch_keys, torch._C._dispatch_tls_local_include_set
_Key, _Set = torch._C.DispatchKey, torch._C.DispatchKeySet
# The keys of a thread in which nothing else is active.
_NOTHING_ELSE = (_Set(_Key.BackendSelect) | _Set(_Key.ADInplaceOrView)).raw_repr()


@cache
def _plain(device: str) -> int:
    """The keys of a plain tensor, as bits; none for a device whose tensors hold no data."""
    if device == "meta":
        return 0
    bits: int = _KEYS(torch.empty(0, device=device)).raw_repr()
    return bits


def goes_directly(tensors: Iterable[Tensor | None]) -> bool:
    """Whether the custom op can be skipped. A profiler lists ops by name, so it gets the op too."""
    if torch.compiler.is_compiling() or torch.autograd.profiler._is_profiler_enabled:
        return False
    if _THREAD().raw_repr() & ~_NOTHING_ELSE:
        return False
    return not any(t is not None and _KEYS(t).raw_repr() & ~_plain(t.device.type) for t in tensors)
