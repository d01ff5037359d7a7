"""natten-mps on the doctor's table: torch tensors on the Apple GPU if there is one, else on the CPU."""

import torch
from torch import Tensor

from .. import _operations, functional
from .._backends import BACKENDS
from .._device import device_of, machine
from .._metal.tools.doctor import Case, Patient, outputs


def _device() -> torch.device:
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _place() -> str:
    return "mps" if _device().type == "mps" else "cpu: torch finds no Apple GPU"


def _run(case: Case, backend: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    # Made on the CPU, so that every device gets the same numbers.
    tensors = {name: torch.randn(shape).to(_device(), dtype).requires_grad_() for name, shape in case.shapes().items()}
    outs = outputs(functional, case, tensors, _operations.softmax, backend)
    finite = [torch.where(out == -torch.inf, 0, out) for out in outs]
    weights = [torch.randn(out.shape).to(out) for out in finite]
    total = sum((out * weight).float().sum() for out, weight in zip(finite, weights, strict=True))
    gradients = torch.autograd.grad(total, list(tensors.values()))  # type: ignore[arg-type]
    found = {f"output {i}": out.detach() for i, out in enumerate(finite)}
    found |= {f"gradient of {name}": gradient for name, gradient in zip(tensors, gradients, strict=True)}
    return {name: tensor.float().cpu() for name, tensor in found.items()}


def _error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6))


PATIENT = Patient(
    BACKENDS,
    _place,
    lambda: device_of(_device()),
    lambda problem, backend: machine().plan_on(_device(), problem, backend),
    _run,
    _error,
)
