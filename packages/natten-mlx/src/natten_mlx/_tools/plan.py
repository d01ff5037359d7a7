"""natten-mlx as a planner of calls that are only described."""

import mlx.core as mx

from .._backends import BACKENDS
from .._device import LONGEST, device_of, machine
from .._launch.fast_metal_host import SMALLEST
from .._metal.plan import matrix_units
from .._metal.plan.backend import NANOBIND
from .._metal.plan.device import Device, missing_backends
from .._metal.tools.plan import CPU, Target
from .._tensors import stream_of


def _device(name: str | None) -> Device:
    if name is None or name == CPU:
        return device_of(stream_of("plan", mx.cpu if name == CPU else None))
    reasons = {NANOBIND.name: machine().nanobind.unavailable_reason()}
    return Device(
        "gpu",
        name,
        missing_backends(reasons),
        float64=False,
        smallest=SMALLEST,
        longest=LONGEST,
        no_matrix_units=matrix_units.missing_in(name),
    )


TARGET = Target(BACKENDS, machine, _device)
