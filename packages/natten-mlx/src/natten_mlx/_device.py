"""The planner's view of where MLX computes."""

import mlx.core as mx

from ._launch import fast_metal, nanobind
from ._metal.plan.device import Device

# MLX's shapes are 32-bit ints.
LONGEST = 2**31 - 1


def device_of(stream: mx.Stream) -> Device:
    """The planner's view of the device that a stream runs on."""
    cpu = stream.device == mx.cpu
    reasons = {
        "nanobind": nanobind.missing(stream),
        "fast_metal": fast_metal.HOST.missing(stream),
    }
    missing = tuple((tier, reason) for tier, reason in reasons.items() if reason is not None)
    kind = "cpu" if cpu else "gpu"
    return Device(kind, kind, missing, float64=cpu, smallest=fast_metal.SMALLEST, longest=LONGEST)
