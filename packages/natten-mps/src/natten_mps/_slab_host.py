"""torch as slabs need it: what :class:`natten_metal.slabs.host.Host` describes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import _framework
from ._metal.plan.plan import Plan
from ._metal.problem import checks
from ._metal.problem.problem import Problem


@dataclass(frozen=True, slots=True)
class SlabHost:
    """The device on which slabs are computed."""

    device: torch.device

    framework = _framework
    stream = None

    @property
    def reads_in_place(self) -> bool:
        return self.device.type == "cpu"

    writes_in_place = reads_in_place

    def values(self, face: str, name: str, tensor: Tensor) -> Any:
        if tensor.device.type != "cpu":
            checks.slabs.reject_device(face, name, str(tensor.device))
        plain = tensor.detach()
        return (plain.view(torch.uint16) if plain.dtype == torch.bfloat16 else plain).numpy()

    def tensor(self, part: Any, dtype: str) -> Tensor:
        found = torch.from_numpy(part)
        return (found.view(torch.bfloat16) if dtype == "bfloat16" else found).to(self.device)

    def array(self, tensor: Tensor) -> Any:
        return self.values("", "", tensor.cpu().contiguous())

    def plan(self, problem: Problem, backend: str) -> Plan:
        return _framework.plan_on(torch.empty(0, device=self.device), None, problem, backend)

    def release(self) -> None:
        if self.device.type == "mps":
            torch.mps.empty_cache()
