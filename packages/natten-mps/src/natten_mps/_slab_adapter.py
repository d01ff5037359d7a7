"""Parts of numpy's arrays as tensors of torch, and back."""

from typing import Any

import torch
from torch import Tensor

from . import _framework
from ._metal.problem.checks import slabs as rules
from ._metal.slabs.adapter import Adapter


def on_device(device: torch.device) -> Adapter:
    """Slabs are computed on ``device``."""
    on_cpu = device.type == "cpu"
    return Adapter(
        framework=_framework,
        stream=None,
        reads_in_place=on_cpu,
        writes_in_place=on_cpu,
        values=_shared,
        tensor=lambda part, dtype: _wrapped(part, dtype).to(device),
        array=lambda tensor: _bits(tensor.cpu().contiguous()),
        release=torch.mps.empty_cache if device.type == "mps" else lambda: None,
    )


def _shared(face: str, name: str, tensor: Tensor) -> Any:
    if tensor.device.type != "cpu":
        rules.reject_device(face, name, str(tensor.device))
    return _bits(tensor.detach())


def _bits(tensor: Tensor) -> Any:
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _wrapped(part: Any, dtype: str) -> Tensor:
    wrapped = torch.from_numpy(part)
    return wrapped.view(torch.bfloat16) if dtype == "bfloat16" else wrapped
