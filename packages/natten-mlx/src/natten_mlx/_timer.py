"""How natten-mlx times launches of the Metal kernels: arrays on the Apple GPU, and MLX's own way to launch."""

import mlx.core as mx

from ._device import device_of, machine
from ._launch import fast_metal
from ._metal.metal.counts import inputs_of
from ._metal.metal.launches import Launch
from ._metal.plan.backend import FAST_METAL
from ._metal.plan.device import Device
from ._metal.problem.problem import Problem
from ._metal.tuning.measure import Run, Timer, program_of
from ._tensors import stream_of


def _device() -> Device:
    return device_of(stream_of("tune", None))


def _prepare(problem: Problem, launch: Launch) -> Run:
    names = dict(launch.inputs)
    tensors = {
        names[argument]: (0.3 * mx.random.normal(shape)).astype(fast_metal.DTYPES[dtype])
        for argument, (shape, dtype) in inputs_of(problem, launch).items()
    }
    mx.eval(tensors)
    program = program_of(problem, launch, FAST_METAL.name)

    def run(times: int) -> None:
        # Each of them is a node of its own: MLX computes equal nodes again.
        mx.eval([fast_metal.run(program, tensors, machine().fast_metal) for _ in range(times)])

    return run


TIMER = Timer("natten-mlx", _device, FAST_METAL.name, _prepare)
