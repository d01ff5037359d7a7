"""What this process learned of its machine: Metal kernels that did not compile, launch or run.

The launcher that meets a failure records it, once. The planner, ``explain``, the support matrix and the launchers read
it here, so that what they say is what runs.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace

from ..metal.source import Instance
from ..metal.steps import Step
from .backends import KernelFailure

# Kernel -> its launch, what it did not do, and the host's words.
_failures: dict[Instance, tuple[Step, str, str]] = {}
_lock = threading.Lock()
# What was planned in ignorance.
_caches: list[Callable[[], None]] = []


def _kernel(instance: Instance) -> Instance:
    """The kernel without the choices that only a launch makes."""
    return replace(instance, simdgroups=0, stage=False, wide=False)


def record(step: Step, event: str, words: str) -> KernelFailure:
    """Keep that the kernel of ``step`` does not ``event``, and forget every plan; the failure, to be raised."""
    with _lock:
        _failures.setdefault(_kernel(step.instance), (step, event, words))
    for clear in _caches:
        clear()
    return KernelFailure(step, event, words)


def failure_of(steps: Iterable[Step]) -> KernelFailure | None:
    """The failure of the first of ``steps`` whose kernel failed; None if none did."""
    if not _failures:
        return None
    found = (_failures.get(_kernel(step.instance)) for step in steps)
    return next((KernelFailure(*known) for known in found if known is not None), None)


def failures() -> list[KernelFailure]:
    """All of them."""
    return [KernelFailure(*known) for known in _failures.values()]


def depends(clear: Callable[[], None]) -> None:
    """``clear`` empties a cache of what was planned; it is called whenever something is learned."""
    _caches.append(clear)


def forget() -> None:
    """Learn anew, as for another machine."""
    _failures.clear()
    for clear in _caches:
        clear()
