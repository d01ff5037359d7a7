"""torch's side of the shared index arithmetic, and the shared description of a tensor."""

from typing import Any

import torch

from . import _launch, _launch_native
from ._metal import checks
from ._metal.device import Device
from ._metal.problem import TensorSpec

_NAMES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}


class TorchTables:
    """The array namespace of :mod:`natten_metal.blocks` on one torch device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def arange(self, count: int) -> torch.Tensor:
        return torch.arange(count, device=self.device)

    def minimum(self, a: Any, b: Any) -> torch.Tensor:
        return a.clamp(max=b) if isinstance(a, torch.Tensor) else b.clamp(max=a)

    def maximum(self, a: Any, b: Any) -> torch.Tensor:
        return a.clamp(min=b) if isinstance(a, torch.Tensor) else b.clamp(min=a)

    def where(self, condition: torch.Tensor, a: Any, b: Any) -> torch.Tensor:
        return torch.where(condition, a, b)


def spec(face: str, name: str, tensor: Any) -> TensorSpec:
    """What the rules need to know of ``tensor``; TypeError if it is not a dense floating-point tensor."""
    if not isinstance(tensor, torch.Tensor):
        checks.reject_type(face, name, tensor, "a tensor of this package's framework")
    dtype = _NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    checks.require_float(face, name, dtype)
    if tensor.layout != torch.strided or tensor.is_nested:
        raise NotImplementedError(f"{face}: {name} must be a dense tensor; use .to_dense() or the varlen ops")
    return TensorSpec(tuple(tensor.shape), dtype, str(tensor.device))


def optional_spec(face: str, name: str, tensor: Any) -> TensorSpec | None:
    """:func:`spec` of a tensor that may be None."""
    return None if tensor is None else spec(face, name, tensor)


def device_of(device: torch.device) -> Device:
    """The planner's view of a torch device."""
    kind = "cpu" if device.type == "cpu" else "gpu"
    reasons = {"metal": _launch.HOST.missing(device), "native": _launch_native.missing(device)}
    missing = tuple((tier, reason) for tier, reason in reasons.items() if reason is not None)
    return Device(kind, device.type, missing, float64=device.type != "mps")
