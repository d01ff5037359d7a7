"""What the shared bodies need from a framework: each package has one module, ``_framework``, that provides it.

A tensor is torch's or MLX's; a stream is MLX's (torch has None).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from ..plan.backends import Backends
from ..plan.device import Device
from ..plan.plan import Plan
from ..plan.planner import Planner
from ..problem.problem import Problem, TensorSpec
from ..problem.ragged import Table
from .operations import Operations, Tensor, Tensors

Stream = Any


class Framework(Protocol):
    """One framework and the package over it."""

    @property
    def BACKENDS(self) -> Backends:
        """The package's choice of backends."""

    @property
    def operations(self) -> Operations:
        """The framework's plain operations."""

    @property
    def ORDER(self) -> tuple[str, ...]:
        """The backends, in the order in which 'auto' tries them."""

    # --- tensors -----------------------------------------------------------------------------------

    def is_tensor(self, value: Any) -> bool:
        """Whether ``value`` is a tensor of this framework."""

    def spec(self, face: str, name: str, tensor: Any) -> TensorSpec:
        """What the rules need to know about ``tensor``; TypeError if it is not a floating-point tensor."""

    def traits(self, tensor: Any) -> Any:
        """All of a tensor that the rules depend on, as a hashable value; None: check the tensor in every call."""

    def cast(self, tensors: tuple[Any, ...]) -> tuple[Any, ...]:
        """The tensors of a call in the dtype that the user's context asks for (``torch.autocast``)."""

    # --- where and how a call runs -----------------------------------------------------------------

    def stream_of(self, face: str, stream: Any) -> Stream:
        """The stream that a call with the argument ``stream`` runs on; TypeError if ``stream`` is not one."""

    def on(self, stream: Stream) -> AbstractContextManager[Any]:
        """A context in which operations run on ``stream``."""

    def device_of(self, tensor: Tensor, stream: Stream) -> Device:
        """The planner's view of where a call on ``tensor`` runs."""

    def machine(self) -> Planner:
        """The machine that calls run on."""

    def plan_on(self, tensor: Tensor, stream: Stream, problem: Problem, backend: str) -> Plan:
        """The plan of a call on ``tensor``."""

    def traced(self) -> bool:
        """Whether a tracer follows the Python code of a call, and would guard on everything that the call looks up."""

    def signature(self, face: str, backend: str, stream: Stream, tensors: tuple[Any, ...], arguments: Any) -> Any:
        """The key under which the launch of a call like this one is kept; None if it is not kept."""

    def repeat(self, signature: Any, tensors: tuple[Any, ...], stream: Stream) -> Tensors | None:
        """The outputs of repeating the launch kept under ``signature``; None if there is none."""

    def run(
        self, problem: Problem, backend: str, stream: Stream, tensors: tuple[Any, ...], signature: Any = None
    ) -> Tensors:
        """The op's outputs; ``tensors`` in the order of ``problem.record.inputs``."""

    # --- items of different sizes ------------------------------------------------------------------

    def attend(
        self,
        kind: str,
        face: str,
        problem: Problem,
        backend: str,
        stream: Stream,
        table: Any,
        tensors: tuple[Any, ...],
        rpb: Tensor | None = None,
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Outs and lses of items. tensors: queries, keys and values, lists of one tensor each or of one per item.

        problem: what all items share. table: the items', from :meth:`padded_table` and the like.
        """

    def require_values(self, face: str, name: str, *given: Any) -> None:
        """ValueError where numbers are known only when a traced graph runs."""

    def padded_table(self, face: str, name: str, sizes: Any, query: TensorSpec, window: Any) -> Any:
        """The table of a padded batch whose items have ``sizes``. name: what the face calls ``sizes``."""

    def packed_table(
        self, face: str, shapes: Sequence[tuple[int, ...]], lengths: tuple[Any, Any], packed: tuple[Any, ...]
    ) -> Any:
        """The table of concatenated sequences."""

    def kept_table(self, table: Table, rank: int) -> Any:
        """A table as the user gets it, to pass it to later calls."""


def optional_spec(fw: Framework, face: str, name: str, tensor: Any) -> TensorSpec | None:
    """The spec of a tensor that may be None."""
    return None if tensor is None else fw.spec(face, name, tensor)


def specs(fw: Framework, face: str, names: Sequence[str], tensors: Sequence[Any]) -> list[TensorSpec]:
    """The specs of tensors that are required."""
    return [fw.spec(face, name, tensor) for name, tensor in zip(names, tensors, strict=True)]
