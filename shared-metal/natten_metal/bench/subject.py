"""What ``bench`` needs from a package: its ``_tools/bench.py`` makes one subject for the device that it measures."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from ..api.framework import Framework
from .problems import Named

Tensor = Any
Call = Callable[[], Any]
Forward = Callable[..., Tensor]


class Subject(Protocol):
    """One package, and the device on which its framework computes.

    title: the framework's name and version. device: the computing device in words. threads: of the framework on a CPU.
    instruction_set: of the CPU kernels, 'avx512'; '' where they do not run. stores_logits: whether the framework's own
    attention keeps the logits of all pairs at once.
    """

    package: str
    title: str
    device: str
    threads: int
    instruction_set: str
    stores_logits: bool

    @property
    def framework(self) -> Framework:
        """The package's adapter, whose planner says what will run."""

    def tensors(self, shapes: Sequence[tuple[int, ...]], dtype: str) -> list[Tensor]:
        """Seeded normal numbers on the device, computed."""

    def heads_first(self, tensor: Tensor) -> Tensor:
        """``[B, *shape, H, D]`` as ``[B, H, tokens, D]``, contiguous and computed."""

    def wait(self, results: Any) -> None:
        """Return when the results are computed."""

    def on_device(self) -> AbstractContextManager[Any]:
        """Where all calls run; nothing in it is differentiated unless :meth:`training` asks for it."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, window: dict[str, Any], backend: str) -> Tensor:
        """The package's own neighborhood attention."""

    def dense(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """The framework's attention on heads-first tensors; mask ``[queries, keys]``, True where a pair is seen."""

    def training(self, forward: Forward, inputs: Sequence[Tensor], flow: Tensor) -> Call:
        """A call that computes ``forward(*inputs)``, and the gradients of all inputs from ``flow``, its own one."""

    def others(self, named: Named) -> dict[str, Callable[[Sequence[Tensor], Call], Forward]]:
        """Further ways to compute a problem, by name.

        From heads-first inputs, and a call that makes the mask, to a forward on them.
        """

    def peak_bytes(self, call: Call) -> int | None:
        """The most memory that ``call`` needed beyond what there was before; None where that cannot be known."""

    def difference(self, found: Tensor, wanted: Tensor) -> float:
        """The largest difference over the largest wanted number."""

    def copy(self, elements: int) -> Call:
        """A copy of float32 numbers."""
