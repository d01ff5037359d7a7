"""How natten-mps times launches of the Metal kernels: tensors on the Apple GPU, and torch's own way to launch."""

import torch

from ._device import device_of, machine
from ._launch import metal
from ._metal.metal.counts import inputs_of
from ._metal.metal.launches import Launch
from ._metal.plan.backend import METAL
from ._metal.plan.device import Device
from ._metal.problem.problem import Problem
from ._metal.tuning.measure import Run, Timer, program_of


def _torch_device() -> torch.device:
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _device() -> Device:
    return device_of(_torch_device())


def _prepare(problem: Problem, launch: Launch) -> Run:
    device, names = _torch_device(), dict(launch.inputs)
    tensors = {
        names[argument]: (0.3 * torch.randn(shape)).to(device, metal.DTYPES[dtype])
        for argument, (shape, dtype) in inputs_of(problem, launch).items()
    }
    once = metal.repeatable(program_of(problem, launch, METAL.name), tensors, machine().metal)

    def run(times: int) -> None:
        for _ in range(times):
            once()
        if device.type == "mps":
            torch.mps.synchronize()

    return run


TIMER = Timer("natten-mps", _device, METAL.name, _prepare)
