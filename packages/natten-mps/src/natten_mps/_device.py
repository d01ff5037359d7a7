"""What torch's tensors are computed on: the hosts that launch kernels, and the plans for them."""

from collections.abc import Callable

import torch

from ._backends import ORDER
from ._launch.metal_host import MetalHost, MpsHost
from ._launch.native import NativeHost
from ._metal.caches import Cache
from ._metal.plan import matrix_units
from ._metal.plan.backend import METAL, NATIVE
from ._metal.plan.device import Device, missing_backends
from ._metal.plan.machines import Machines
from ._metal.plan.plan import Plan
from ._metal.plan.planner import Planner
from ._metal.plan.programs import MetalLaunches
from ._metal.problem.problem import Problem


class Machine(Planner):
    """This machine, or what stands in for it. metal: compiles and launches kernels; native: has the CPU's. system: what
    the operating system says of it.
    """

    def __init__(
        self,
        metal: MetalHost | None = None,
        native: NativeHost | None = None,
        system: Callable[[], matrix_units.System] = matrix_units.this_system,
    ) -> None:
        super().__init__("natten-mps", ORDER)
        self.system = system
        self.metal = metal or MpsHost()
        self.native = native or NativeHost()
        self._devices = Cache("devices", 64)

    def device_of(self, device: torch.device) -> Device:
        """The planner's view of a torch device."""
        found: Device = self._devices.get_or_make(device, lambda: self._view_of(device))
        return found

    def _view_of(self, device: torch.device) -> Device:
        kind = "cpu" if device.type == "cpu" else "gpu"
        reasons = {METAL.name: self.metal.missing(device), NATIVE.name: self.native.missing(device)}
        missing = reasons[METAL.name] or self._no_matrix_units(device)
        return Device(
            kind,
            device.type,
            missing_backends(reasons),
            float64=device.type != "mps",
            no_matrix_units=missing,
        )

    def _no_matrix_units(self, device: torch.device) -> str:
        """Why kernels on ``device`` cannot use matrix units; '' if they can."""

        def run(program: MetalLaunches, given: dict[str, matrix_units.Matrix]) -> list[float]:
            from ._launch import metal

            dtype = metal.DTYPES[program.problem.dtype]
            tensors = {name: torch.tensor(values, dtype=dtype).to(device) for name, values in given.items()}
            found: list[float] = metal.run(program, tensors, self.metal)["found"].cpu().tolist()
            return found

        return matrix_units.reason_missing(self.system(), run)

    def plan_on(self, device: torch.device, problem: Problem, backend: str) -> Plan:
        """The plan of a problem whose tensors are on ``device``."""
        return self.plan(problem, self.device_of(device), backend)


machine = Machines(Machine())
on_machine = machine.on


def device_of(device: torch.device) -> Device:
    """The planner's view of a torch device of the current machine."""
    return machine().device_of(device)
