"""natten-mps as a planner of calls that are only described."""

import torch

from .._backends import BACKENDS
from .._device import device_of, machine
from .._metal.plan import matrix_units
from .._metal.plan.backend import NATIVE
from .._metal.plan.device import Device, missing_backends
from .._metal.tools.plan import CPU, Target


def _device(name: str | None) -> Device:
    if name is None or name == CPU:
        on_gpu = name is None and torch.backends.mps.is_available()
        return device_of(torch.device("mps" if on_gpu else "cpu"))
    reasons = {NATIVE.name: machine().native.missing(torch.device("mps"))}
    missing = matrix_units.missing_in(name)
    return Device("gpu", name, missing_backends(reasons), float64=False, no_matrix_units=missing)


TARGET = Target(BACKENDS, machine, _device)
