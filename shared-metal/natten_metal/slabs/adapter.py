"""What slabs need from a package besides its :class:`.Framework`: how parts of arrays become tensors, and back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..api.framework import Framework, Stream
from ..api.operations import Tensor
from ..plan.plan import Plan
from ..problem.problem import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A framework and where slabs are computed.

    Arrays are numpy's, in C's order; those of bfloat16 hold its bits as 16-bit integers.

    reads_in_place: whether a tensor uses the memory of the array that it is made of; writes_in_place: the reverse.
    values(face, name, tensor): the array in whose memory a tensor on the CPU lies, read-only if the framework's tensors
    are. tensor(part, dtype): a tensor with the content of an array, where slabs are computed. array(tensor): the
    content of a tensor, computed now. release(): give the memory that the framework keeps after tensors are freed back
    to the system.
    """

    framework: Framework
    stream: Stream
    reads_in_place: bool
    writes_in_place: bool
    values: Callable[[str, str, Tensor], Any]
    tensor: Callable[[Any, str], Tensor]
    array: Callable[[Tensor], Any]
    release: Callable[[], object]

    def plan(self, problem: Problem, backend: str) -> Plan:
        """How a slab would be computed."""
        import numpy

        somewhere = self.tensor(numpy.empty(0, "f4"), "float32")
        return self.framework.plan_on(somewhere, self.stream, problem, backend)
