"""torch's side of the shared index arithmetic, and the shared description of a tensor."""

from typing import Any, NoReturn

import torch

from ._metal.problem import checks, faces
from ._metal.problem.ops import FULL
from ._metal.problem.problem import TensorSpec

_NAMES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}


# Wrappers of torch's that hold more than one plain tensor's elements, and what to do instead.
_WRAPPERS = {
    "DTensor": "Use .to_local() for this rank's own part (whole windows, whole heads) or .full_tensor() for all of it",
    "MaskedTensor": "Use .get_data(), and the varlen ops for items of different sizes",
}


class TorchTables:
    """The array namespace of :mod:`natten_metal.plan.blocks` on one torch device."""

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
    """What the rules need to know about ``tensor``; TypeError if it is not a dense floating-point tensor."""
    if not isinstance(tensor, torch.Tensor):
        checks.reject_type(face, name, tensor, "a tensor of this package's framework")
    if type(tensor) is not torch.Tensor and type(tensor) is not torch.nn.Parameter:
        _reject_wrapper(face, name, tensor)
    dtype = _NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    checks.require_dtype(face, name, dtype)
    if tensor.layout != torch.strided or tensor.is_nested:
        _reject_layout(face, name, tensor)
    return TensorSpec(tuple(tensor.shape), dtype, str(tensor.device))


def _reject_wrapper(face: str, name: str, tensor: torch.Tensor) -> None:
    """NotImplementedError for torch's own wrappers that no backend can look into, whatever the backend.

    Other subclasses pass: how they handle an op is up to them.
    """
    # By name: torch.distributed is large, and need not be imported to see that a tensor is not one of its.
    for kind in type(tensor).__mro__:
        if kind.__name__ in _WRAPPERS and kind.__module__.startswith("torch."):
            checks.reject_wrapper(face, name, kind.__name__, _WRAPPERS[kind.__name__])


def _reject_layout(face: str, name: str, tensor: torch.Tensor) -> NoReturn:
    if not tensor.is_nested:
        checks.reject_layout(face, name, str(tensor.layout).removeprefix("torch."))
    checks.reject_nested(face, name, faces.rank_of(face), packs=face in FULL.faces)
