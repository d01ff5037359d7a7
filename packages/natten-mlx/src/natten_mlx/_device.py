"""What MLX's arrays are computed on: the hosts that launch kernels, and the plans for them."""

from collections.abc import Callable

import mlx.core as mx

from ._backends import ORDER
from ._launch.extension import ExtensionHost
from ._launch.fast_metal_host import SMALLEST, MetalHost, MlxHost
from ._metal.caches import Cache
from ._metal.plan import matrix_units
from ._metal.plan.backend import FAST_METAL, NANOBIND
from ._metal.plan.device import Device, missing_backends
from ._metal.plan.machines import Machines
from ._metal.plan.plan import Plan
from ._metal.plan.planner import Planner
from ._metal.plan.programs import MetalLaunches
from ._metal.problem.problem import Problem

# MLX's shapes are 32-bit ints.
LONGEST = 2**31 - 1


class Machine(Planner):
    """This machine, or what stands in for it. fast_metal: compiles and launches kernels; nanobind: the extension.
    system: what the operating system says of it.
    """

    def __init__(
        self,
        fast_metal: MetalHost | None = None,
        nanobind: ExtensionHost | None = None,
        system: Callable[[], matrix_units.System] = matrix_units.this_system,
    ) -> None:
        super().__init__("natten-mlx", ORDER)
        self.system = system
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
        return Device(
            kind,
            kind,
            missing_backends(reasons),
            float64=cpu,
            smallest=SMALLEST,
            longest=LONGEST,
            no_matrix_units=reasons[FAST_METAL.name] or self._no_matrix_units(stream),
        )

    def _no_matrix_units(self, stream: mx.Stream) -> str:
        """Why kernels on ``stream`` cannot use matrix units; '' if they can. The extension compiles as this one."""

        def run(program: MetalLaunches, given: dict[str, matrix_units.Matrix]) -> list[float]:
            from ._launch import fast_metal

            with mx.stream(stream):
                dtype = fast_metal.DTYPES[program.problem.dtype]
                arrays = {name: mx.array(values, dtype=dtype) for name, values in given.items()}
                found: list[float] = fast_metal.run(program, arrays, self.fast_metal)["found"].tolist()  # type: ignore[assignment]
            return found

        return matrix_units.reason_missing(self.system(), run)

    def plan_on(self, stream: mx.Stream, problem: Problem, backend: str) -> Plan:
        """The plan of a problem on ``stream``."""
        return self.plan(problem, self.device_of(stream), backend)


machine = Machines(Machine())
on_machine = machine.on


def device_of(stream: mx.Stream) -> Device:
    """The planner's view of a stream of the current machine."""
    return machine().device_of(stream)
