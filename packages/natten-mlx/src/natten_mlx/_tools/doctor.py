"""natten-mlx on the doctor's table: MLX arrays on the default device."""

import platform
from importlib.metadata import version
from typing import Any

import mlx.core as mx

from .. import functional
from .._config import BACKENDS, ORDER
from .._device import device_of
from .._metal.tools.doctor import Case, Patient
from .._tensors import stream_of


def _machine() -> str:
    device = f"{mx.default_device()}" + ("" if mx.metal.is_available() else ": MLX finds no Apple GPU")
    return f"{platform.platform()} ({platform.machine()}), mlx {version('mlx')}, {device}"


def _missing() -> list[tuple[str, str | None]]:
    device = device_of(stream_of("doctor", None))
    return [(backend, device.reason_missing(backend)) for backend in ORDER]


def _forward(case: Case, tensors: dict[str, mx.array], backend: str) -> tuple[mx.array, ...]:
    query, key, value = (tensors[name] for name in ("query", "key", "value"))
    if case.op == "attention":
        return functional.attention(query, key, value, return_lse=True, backend=backend)
    if case.op == "na":
        given = {**tensors, **case.arguments()}
        return functional.neighborhood_attention(**given, return_lse=True, backend=backend)
    rank, options = len(case.shape), {**case.arguments(), "backend": backend}
    logits = getattr(functional, f"na{rank}d_qk")(query, key, rpb=tensors.get("rpb"), **options)
    return logits, getattr(functional, f"na{rank}d_av")(mx.softmax(logits, axis=-1), value, **options)


def _run(case: Case, backend: str) -> dict[str, mx.array]:
    dtype = getattr(mx, case.dtype)
    keys = iter(mx.random.split(mx.random.key(0), 16))
    # Made on the CPU, so that every device gets the same numbers.
    tensors = {n: mx.random.normal(s, key=next(keys), stream=mx.cpu).astype(dtype) for n, s in case.shapes().items()}

    def total(arrays: list[mx.array]) -> tuple[mx.array, list[mx.array]]:
        outputs = _forward(case, dict(zip(tensors, arrays, strict=True)), backend)
        finite = [mx.where(out == -mx.inf, mx.zeros_like(out), out) for out in outputs]
        seeds = mx.random.split(mx.random.key(1), len(finite))
        weights = [
            mx.random.normal(out.shape, key=seed, stream=mx.cpu) for out, seed in zip(finite, seeds, strict=True)
        ]
        parts = [(out.astype(mx.float32) * weight).sum() for out, weight in zip(finite, weights, strict=True)]
        return mx.add(parts[0], parts[1]), finite

    (_, outputs), gradients = mx.value_and_grad(total)(list(tensors.values()))
    found = {f"output {i}": out for i, out in enumerate(outputs)}
    found |= {f"gradient of {name}": gradient for name, gradient in zip(tensors, gradients, strict=True)}
    found = {name: array.astype(mx.float32) for name, array in found.items()}
    mx.eval(found)
    return found


def _error(found: mx.array, wanted: mx.array) -> float:
    largest = mx.maximum(mx.abs(wanted).max(), 1e-6)
    ratio: Any = (mx.abs(found - wanted).max() / largest).item()
    return float(ratio)


PATIENT = Patient(BACKENDS, _machine, _missing, _run, _error)
