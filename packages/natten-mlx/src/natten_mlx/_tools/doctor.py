"""natten-mlx on the doctor's table: MLX arrays on the default device."""

from typing import Any

import mlx.core as mx

from .. import _operations, functional
from .._backends import BACKENDS
from .._device import device_of, machine
from .._metal.tools.doctor import Case, Patient, outputs
from .._tensors import stream_of


def _place() -> str:
    return f"{mx.default_device()}" + ("" if mx.metal.is_available() else ": MLX finds no Apple GPU")


def _stream() -> mx.Stream:
    return stream_of("doctor", None)


def _run(case: Case, backend: str) -> dict[str, mx.array]:
    dtype = getattr(mx, case.dtype)
    keys = iter(mx.random.split(mx.random.key(0), 16))
    # Made on the CPU, so that every device gets the same numbers.
    tensors = {n: mx.random.normal(s, key=next(keys), stream=mx.cpu).astype(dtype) for n, s in case.shapes().items()}

    def total(arrays: list[mx.array]) -> tuple[mx.array, list[mx.array]]:
        outs = outputs(functional, case, dict(zip(tensors, arrays, strict=True)), _operations.softmax, backend)
        finite = [mx.where(out == -mx.inf, mx.zeros_like(out), out) for out in outs]
        seeds = mx.random.split(mx.random.key(1), len(finite))
        weights = [
            mx.random.normal(out.shape, key=seed, stream=mx.cpu) for out, seed in zip(finite, seeds, strict=True)
        ]
        parts = [(out.astype(mx.float32) * weight).sum() for out, weight in zip(finite, weights, strict=True)]
        return mx.add(parts[0], parts[1]), finite

    (_, outs), gradients = mx.value_and_grad(total)(list(tensors.values()))
    found = {f"output {i}": out for i, out in enumerate(outs)}
    found |= {f"gradient of {name}": gradient for name, gradient in zip(tensors, gradients, strict=True)}
    found = {name: array.astype(mx.float32) for name, array in found.items()}
    mx.eval(found)
    return found


def _error(found: mx.array, wanted: mx.array) -> float:
    largest = mx.maximum(mx.abs(wanted).max(), 1e-6)
    ratio: Any = (mx.abs(found - wanted).max() / largest).item()
    return float(ratio)


PATIENT = Patient(
    BACKENDS,
    _place,
    lambda: device_of(_stream()),
    lambda problem, backend: machine().plan_on(_stream(), problem, backend),
    _run,
    _error,
)
