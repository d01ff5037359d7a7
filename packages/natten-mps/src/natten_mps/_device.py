"""The planner's view of where torch's tensors lie."""

import torch

from ._launch import metal, native
from ._metal.plan.device import Device


def device_of(device: torch.device) -> Device:
    """The planner's view of a torch device."""
    kind = "cpu" if device.type == "cpu" else "gpu"
    reasons = {"metal": metal.HOST.missing(device), "native": native.missing(device)}
    missing = tuple((tier, reason) for tier, reason in reasons.items() if reason is not None)
    return Device(kind, device.type, missing, float64=device.type != "mps")
