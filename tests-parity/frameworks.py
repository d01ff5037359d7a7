"""One interface to both packages: tensors in and out, gradients, and which backend really ran.

A suite is written once and parametrised over :data:`PATHS`, package times backend. Frameworks are imported on first
use, so cases and tolerances can be imported without them.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, wraps
from types import ModuleType
from typing import Any

import numpy as np
from cases import INPUTS, Array, Case, inputs, lse_dtype, slot_inputs
from pieces import Cut

Tensor = Any

# Modules of the backends that both packages have, and the functions of any backend that compute something.
BACKEND_MODULES = {"pure": ("_launch.pure",), "dense": ("_metal.api.dense",)}
LAUNCHERS = ("run", "forward", "backward", "qk", "av", "qk_backward", "av_backward", "repeat")


class Framework:
    """A package under test and its framework. Tensors live on the CPU."""

    name: str
    package_name: str
    # The backend that runs the CPU kernels, and its module.
    compiled: str
    compiled_module: str

    def __str__(self) -> str:
        return self.name

    @cached_property
    def package(self) -> ModuleType:
        return importlib.import_module(self.package_name)

    def module(self, name: str) -> ModuleType:
        """A module of the package: ``module("_metal.plan.plan")``."""
        return importlib.import_module(f"{self.package_name}.{name}")

    def face(self, name: str) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(self.package, name)
        return found

    def tensor(self, array: Array, dtype: str = "float64") -> Tensor:
        """A tensor of ``dtype`` with the values of ``array``."""
        raise NotImplementedError

    def numpy(self, tensor: Tensor) -> Array:
        """The tensor's values, as float64."""
        raise NotImplementedError

    def dtype_of(self, tensor: Tensor) -> str:
        raise NotImplementedError

    def vjp(
        self, function: Callable[..., tuple[Tensor, ...]], given: list[Tensor], cotangents: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs of ``function(*given)`` and the gradients of every given tensor."""
        raise NotImplementedError

    def evaluate(self, *tensors: Tensor) -> None:
        """Compute lazy tensors."""

    @contextlib.contextmanager
    def watch(self) -> Iterator[set[str]]:
        """The backends whose functions run inside the context."""
        ran: set[str] = set()
        with contextlib.ExitStack() as stack:
            for backend, modules in (BACKEND_MODULES | {self.compiled: (self.compiled_module,)}).items():
                for module in map(self.module, modules):
                    for name in LAUNCHERS:
                        if hasattr(module, name):
                            stack.enter_context(_recorded(module, name, backend, ran))
            yield ran


@contextlib.contextmanager
def _recorded(module: ModuleType, name: str, backend: str, ran: set[str]) -> Iterator[None]:
    original = getattr(module, name)

    @wraps(original)
    def recording(*args: Any, **kwargs: Any) -> Any:
        ran.add(backend)
        return original(*args, **kwargs)

    setattr(module, name, recording)
    try:
        yield
    finally:
        setattr(module, name, original)


class Torch(Framework):
    name = "mps"
    package_name = "natten_mps"
    compiled, compiled_module = "native", "_launch.native"

    def tensor(self, array: Array, dtype: str = "float64") -> Tensor:
        import torch

        # A copy: torch would share memory with arrays that the suites keep.
        return torch.tensor(np.asarray(array), dtype=getattr(torch, dtype))

    def numpy(self, tensor: Tensor) -> Array:
        return tensor.detach().double().numpy()

    def dtype_of(self, tensor: Tensor) -> str:
        return str(tensor.dtype).removeprefix("torch.")

    def vjp(
        self, function: Callable[..., tuple[Tensor, ...]], given: list[Tensor], cotangents: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        import torch

        leaves = [tensor.detach().requires_grad_() for tensor in given]
        outputs = function(*leaves)
        return list(outputs), list(torch.autograd.grad(outputs, leaves, cotangents))


class Mlx(Framework):
    name = "mlx"
    package_name = "natten_mlx"
    compiled, compiled_module = "nanobind", "_launch.nanobind"

    @cached_property
    def package(self) -> ModuleType:
        import mlx.core as mx

        # pure and dense are tested on the CPU, where float64 exists, on a Mac too.
        mx.set_default_device(mx.cpu)
        return super().package

    def tensor(self, array: Array, dtype: str = "float64") -> Tensor:
        import mlx.core as mx

        array, kind = np.asarray(array), mx.bool_ if dtype == "bool" else getattr(mx, dtype)
        if array.dtype == np.float64:
            return mx.array(array, dtype=mx.float64).astype(kind, stream=mx.cpu)
        return mx.array(array).astype(kind, stream=mx.cpu)

    def numpy(self, tensor: Tensor) -> Array:
        import mlx.core as mx

        return np.array(tensor.astype(mx.float64, stream=mx.cpu))

    def dtype_of(self, tensor: Tensor) -> str:
        return str(tensor.dtype).removeprefix("mlx.core.")

    def vjp(
        self, function: Callable[..., tuple[Tensor, ...]], given: list[Tensor], cotangents: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        import mlx.core as mx

        outputs, gradients = mx.vjp(lambda *leaves: list(function(*leaves)), given, cotangents)
        mx.eval(outputs, gradients)
        return outputs, gradients

    def evaluate(self, *tensors: Tensor) -> None:
        import mlx.core as mx

        mx.eval(*tensors)


MPS, MLX = Torch(), Mlx()
FRAMEWORKS = (MPS, MLX)


@dataclass(frozen=True)
class Path:
    """A package and the backend that a test forces."""

    framework: Framework
    backend: str

    def __str__(self) -> str:
        return f"{self.framework}-{self.backend}"


PATHS = tuple(Path(framework, backend) for framework in FRAMEWORKS for backend in (framework.compiled, "pure", "dense"))
# Those with a backward of their own, which cannot be differentiated again.
OURS = tuple(path for path in PATHS if path.backend != "dense")


def planned_backend(framework: Framework, op: str, *tensors: Tensor, **arguments: Any) -> str:
    """The backend that explain() announces."""
    text = framework.package.explain(op, *tensors, **arguments)
    found = re.search(r"^backend: (\w+) \(", text, re.MULTILINE)
    assert found, text
    return found.group(1)


Found = tuple[dict[str, Array], dict[str, str]]


def _checked(
    path: Path,
    op: str,
    names: tuple[str, ...],
    arrays: dict[str, Array],
    dtype: str,
    arguments: dict[str, Any],
    outputs: dict[str, str],
    cut: Cut | None = None,
) -> Found:
    """Run ``op`` and its gradients, and assert which backend runs: values and dtypes of outputs and gradients by name.

    outputs: the dtype of each output, in the order of the op's results; its cotangent's name is "d_" and its own. cut:
    the piece of the problem to compute; arrays are those of the whole.
    """
    if cut is not None:
        arrays, arguments = cut.of(arrays), arguments | cut.arguments
    framework, names = path.framework, tuple(name for name in names if name in arrays)
    given = [framework.tensor(arrays[name], dtype) for name in names]
    if "key_mask" in arrays:
        arguments = arguments | {"key_mask": framework.tensor(arrays["key_mask"], "bool")}
    cotangents = [framework.tensor(arrays[f"d_{name}"], kind) for name, kind in outputs.items()]
    many = len(outputs) > 1

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        by_name = dict(zip(names, tensors, strict=True))
        flags = {"return_lse": True} if many else {}
        result = framework.face(op)(**by_name, **arguments, **flags, backend=path.backend)
        return result if many else (result,)

    announced = dict(zip(names, given, strict=True))
    if "attn" in announced:  # explain() calls an op's tensors query, key and value, whatever the op calls them
        announced = {"query": announced["attn"], "key": announced["value"]}
    assert planned_backend(framework, op, **announced, **arguments, backend=path.backend) == path.backend
    with framework.watch() as ran:
        results, gradients = framework.vjp(call, given, cotangents)
    # An empty batch needs no backend at all.
    empty = not arrays[names[0]].size
    assert ran == {path.backend} or (empty and not ran), f"{path} was requested, {ran} ran"
    tensors = dict(zip(outputs, results, strict=True)) | dict(zip(names, gradients, strict=True))
    values = {name: framework.numpy(tensor) for name, tensor in tensors.items()}
    return values, {name: framework.dtype_of(tensor) for name, tensor in tensors.items()}


@cache
def run(path: Path, case: Case, dtype: str, cut: Cut | None = None) -> Found:
    """Fused attention of a case: out, lse and all gradients by name (float64), and their dtypes."""
    arguments, outputs = case.window | {"scale": case.scale}, {"out": dtype, "lse": lse_dtype(dtype)}
    return _checked(path, case.face, INPUTS, inputs(case, dtype), dtype, arguments, outputs, cut)


@cache
def run_qk(path: Path, case: Case, dtype: str, cut: Cut | None = None) -> Found:
    """The split op qk of a case: logits and gradients. The cotangents of slots that hold no key are NaN."""
    arrays = inputs(case, dtype)
    arrays["d_logits"] = np.where(held_slots(case), slot_inputs(case, dtype)["d_logits"], np.nan)
    arguments = case.window | {"scale": case.scale}
    return _checked(path, f"{case.face}_qk", ("query", "key", "rpb"), arrays, dtype, arguments, {"logits": dtype}, cut)


@cache
def run_av(path: Path, case: Case, dtype: str, cut: Cut | None = None) -> Found:
    """The split op av of a case: out and gradients. Slots that hold no key are NaN."""
    arrays = inputs(case, dtype)
    attn = np.where(held_slots(case), slot_inputs(case, dtype)["attn"], np.nan)
    given = {"attn": attn, "value": arrays["value"], "d_out": arrays["d_out"]}
    return _checked(path, f"{case.face}_av", ("attn", "value"), given, dtype, case.window, {"out": dtype}, cut)


def held_slots(case: Case) -> Array:
    """``[1, *shape, 1, W]`` bool: whether the window slot holds a key."""
    from natten_mps._metal.problem.mask import slot_keys

    _, held = slot_keys(case.problem())
    return held.reshape(1, *case.shape, 1, -1)
