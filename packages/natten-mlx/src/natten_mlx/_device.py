"""What MLX's arrays are computed on: the hosts that launch kernels, and the plans for them."""

import mlx.core as mx

from ._backends import ORDER
from ._launch.extension import ExtensionHost
from ._launch.fast_metal_host import SMALLEST, MetalHost, MlxHost
from ._metal.caches import Cache
from ._metal.plan.backend import FAST_METAL, NANOBIND
from ._metal.plan.device import Device, missing_backends
from ._metal.plan.machines import Machines
from ._metal.plan.plan import Plan
from ._metal.plan.planner import Planner
from ._metal.problem.problem import Problem

# MLX's shapes are 32-bit ints.
LONGEST = 2**31 - 1


class Machine(Planner):
    """This machine, or what stands in for it. fast_metal: compiles and launches kernels; nanobind: the extension."""

    def __init__(self, fast_metal: MetalHost | None = None, nanobind: ExtensionHost | None = None) -> None:
        super().__init__("natten-mlx", ORDER)
        self.fast_metal = fast_metal or MlxHost()
        self.nanobind = nanobind or ExtensionHost()
        self._devices = Cache("devices", 2)

    def device_of(self, stream: mx.Stream) -> Device:
        """The planner's view of the device that a stream runs on."""
        found: Device = self._devices.get_or_make(stream.device == mx.cpu, lambda: self._view_of(stream))
        return found

    def _view_of(self, stream: mx.Stream) -> Device:
        cpu = stream.device == mx.cpu
        reasons = {NANOBIND.name: self.nanobind.missing(stream), FAST_METAL.name: self.fast_metal.missing(stream)}
        kind = "cpu" if cpu else "gpu"
        return Device(kind, kind, missing_backends(reasons), float64=cpu, smallest=SMALLEST, longest=LONGEST)

    def plan_on(self, stream: mx.Stream, problem: Problem, backend: str) -> Plan:
        """The plan of a problem on ``stream``."""
        return self.plan(problem, self.device_of(stream), backend)


machine = Machines(Machine())
on_machine = machine.on


def device_of(stream: mx.Stream) -> Device:
    """The planner's view of a stream of the current machine."""
    return machine().device_of(stream)
