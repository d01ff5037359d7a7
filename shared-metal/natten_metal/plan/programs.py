"""Programs: all that a launcher does for an op or its gradient, as frozen data.

A launcher is ``run(program, tensors, ...) -> tensors by name``. It looks at the program's type and decides nothing.
Tensors are named as in the op's record (:mod:`..problem.ops`), and their gradients with ``_grad``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ..problem.ops import Op
from ..problem.problem import Problem
from .blocks import Blocks
from .verdicts import Failure

if TYPE_CHECKING:
    from ..metal.launches import Launch

T = TypeVar("T")  # a framework's tensor


class Made(NamedTuple):
    """A tensor that a program makes: its name, shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str


# The only dataclass here, with the fields of all programs: each further one would add a millisecond to the import.
@dataclass(frozen=True, slots=True)
class Program:
    """What all programs have. backend: the one that runs it. function: what it computes, by its name in the op's
    record (``forward`` or ``backward`` there). outputs: what it makes, in the order of the record.

    why: why that backend, if it is not the plan's. failed: the failed kernel that keeps 'auto' from a
    faster backend; missing: why a CPU has no kernels for 'auto'. Whoever launches the program warns of both.
    no_matrix_units: of Metal kernels on a GPU, why none of them is on matrix units, and a kernel that failed there, if
    that is the reason: whoever launches the program warns of it too.

    launches: of :class:`MetalLaunches`. queries, keys: the walks of :class:`Walks`, the second one for the split ops'
    gradients.
    """

    problem: Problem
    backend: str
    function: str
    outputs: tuple[Made, ...]
    why: str = ""
    failed: Failure | None = None
    missing: str = ""
    no_matrix_units: "str | Failure" = ""
    launches: "tuple[Launch, ...]" = ()
    queries: Blocks | None = None
    keys: Blocks | None = None

    @property
    def in_rows(self) -> bool:
        """Whether products of matrix units read tokens where they lie (:attr:`..metal.source.Instance.in_rows`)."""
        return any(launch.instance.in_rows for launch in self.launches)


class Blank(Program):
    """Nothing to compute: a batch without items. The outputs are zeros."""

    __slots__ = ()


class MetalLaunches(Program):
    """Metal kernels, one after another."""

    __slots__ = ()


class CpuCall(Program):
    """The function of the CPU kernels' C interface."""

    __slots__ = ()


class Walks(Program):
    """The pure backend's function."""

    __slots__ = ()


class DenseOperations(Program):
    """The dense backend's function; the gradient is the framework's."""

    __slots__ = ()


class Refused(Program):
    """A gradient that cannot run: its kernel failed, and its backend was requested. Launching it raises ``failed``."""

    __slots__ = ()


def gradient_tensors(
    record: Op, grads: Sequence[T | None], inputs: Mapping[str, T], outputs: Sequence[T]
) -> dict[str, T]:
    """What a gradient's program reads, by name: gradients of outputs where given, inputs, saved outputs."""
    given = {operand.gradient: grad for operand, grad in zip(record.outputs, grads, strict=True) if grad is not None}
    saved = {} if record.bilinear else dict(zip(record.output_names, outputs, strict=True))
    return {**given, **inputs, **saved}
