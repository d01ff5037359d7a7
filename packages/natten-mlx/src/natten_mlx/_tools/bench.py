"""natten-mlx and what one would use in MLX instead of it, for the ``bench`` command."""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version
from typing import Any

import mlx.core as mx

from .. import _framework, functional
from .._device import machine
from .._metal.bench.problems import Named
from .._metal.bench.subject import Call, Forward, Subject


class MlxSubject:
    """A :class:`Subject` on MLX's default device, or on the CPU if it is asked for."""

    package = "natten-mlx"
    framework = _framework

    def __init__(self, on_cpu: bool) -> None:
        self.place = mx.Device(mx.cpu) if on_cpu else mx.default_device()
        on_gpu = self.place != mx.Device(mx.cpu)
        self.title, self.device = f"mlx {version('mlx')}", "gpu" if on_gpu else "cpu"
        self.threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        extension = machine().nanobind.found
        self.instruction_set = "" if on_gpu or isinstance(extension, str) else extension.instruction_set()
        self.stores_logits = not on_gpu

    def tensors(self, shapes: Sequence[tuple[int, ...]], dtype: str) -> list[mx.array]:
        keys = mx.random.split(mx.random.key(0), len(shapes))
        found = [
            mx.random.normal(shape, key=key).astype(getattr(mx, dtype)) for shape, key in zip(shapes, keys, strict=True)
        ]
        mx.eval(found)
        return found

    def heads_first(self, tensor: mx.array) -> mx.array:
        found = mx.contiguous(tensor.flatten(1, -3).swapaxes(1, 2))
        mx.eval(found)
        return found

    def wait(self, results: Any) -> None:
        mx.eval(results)

    def on_device(self) -> AbstractContextManager[Any]:
        return mx.stream(self.place)

    def attend(self, query: mx.array, key: mx.array, value: mx.array, window: dict[str, Any], backend: str) -> mx.array:
        return functional.neighborhood_attention(query, key, value, **window, backend=backend)

    def dense(self, query: mx.array, key: mx.array, value: mx.array, mask: mx.array | None) -> mx.array:
        scale = query.shape[-1] ** -0.5
        return mx.fast.scaled_dot_product_attention(query, key, value, scale=scale, mask=mask)

    def training(self, forward: Forward, inputs: Sequence[mx.array], flow: mx.array) -> Call:
        return lambda: mx.vjp(forward, list(inputs), [flow])

    def others(self, named: Named) -> dict[str, Callable[[Sequence[mx.array], Call], Forward]]:
        return {}

    def peak_bytes(self, call: Call) -> int | None:
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(call())
        return max(0, mx.get_peak_memory() - before)

    def difference(self, found: mx.array, wanted: mx.array) -> float:
        largest = mx.maximum(mx.abs(wanted).max().astype(mx.float32), 1e-6)
        ratio: Any = (mx.abs(found - wanted).max() / largest).item()
        return float(ratio)

    def copy(self, elements: int) -> Call:
        (source,) = self.tensors([(elements,)], "float32")
        return lambda: mx.negative(source)


def subject(on_cpu: bool) -> Subject:
    """The subject of this process."""
    return MlxSubject(on_cpu)
