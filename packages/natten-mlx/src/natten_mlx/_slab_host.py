"""MLX as slabs need it: what :class:`natten_metal.slabs.host.Host` describes."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from . import _framework
from ._device import machine
from ._metal.plan.plan import Plan
from ._metal.problem.problem import Problem


@dataclass(frozen=True, slots=True)
class SlabHost:
    """The stream on which slabs are computed."""

    stream: mx.Stream

    framework = _framework
    reads_in_place, writes_in_place = False, True

    def values(self, face: str, name: str, tensor: mx.array) -> Any:
        found = self.array(tensor)
        found.flags.writeable = False
        return found

    def tensor(self, part: Any, dtype: str) -> mx.array:
        stored = "uint16" if dtype == "bfloat16" else dtype
        with mx.stream(self.stream):
            found = mx.array(part, dtype=getattr(mx, stored)).view(getattr(mx, dtype))
            mx.eval(found)
        return found

    def array(self, tensor: mx.array) -> Any:
        import numpy

        with mx.stream(self.stream):
            found = mx.contiguous(tensor.view(mx.uint16) if tensor.dtype == mx.bfloat16 else tensor)
            mx.eval(found)
        return numpy.array(found, copy=False)

    def plan(self, problem: Problem, backend: str) -> Plan:
        return machine().plan_on(self.stream, problem, backend)

    def release(self) -> None:
        mx.clear_cache()
