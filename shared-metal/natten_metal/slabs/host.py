"""What slabs need of a package besides its :class:`.Framework`: how parts of arrays become tensors, and back."""

from typing import Any, Protocol

from ..api.framework import Framework, Stream
from ..api.operations import Tensor
from ..plan.plan import Plan
from ..problem.problem import Problem


class Host(Protocol):
    """A framework and the device on which slabs are computed.

    Arrays are numpy's, in C's order; those of bfloat16 hold its bits as 16-bit integers.
    """

    @property
    def framework(self) -> Framework: ...

    @property
    def stream(self) -> Stream: ...

    @property
    def reads_in_place(self) -> bool:
        """Whether a tensor uses the memory of the array that it is made of."""

    @property
    def writes_in_place(self) -> bool:
        """Whether the array of a tensor uses the memory of the tensor."""

    def values(self, face: str, name: str, tensor: Tensor) -> Any:
        """The array in whose memory a tensor on the CPU lies; read-only if the framework's tensors are."""

    def tensor(self, part: Any, dtype: str) -> Tensor:
        """A tensor of ``dtype`` with the content of ``part``, where slabs are computed."""

    def array(self, tensor: Tensor) -> Any:
        """The content of a tensor, computed now."""

    def plan(self, problem: Problem, backend: str) -> Plan:
        """How a slab would be computed."""

    def release(self) -> None:
        """Give the system back what the framework keeps of freed tensors."""
