"""Runs the CPU kernels on CPU tensors, through ctypes.

The library (``shared-metal/cpu``) reads any strides, so nothing of the user's tensors is copied; it releases
the interpreter's lock while it runs. It uses as many threads as torch would: torch's own where those are of GNU OpenMP,
because these keep the cores busy for milliseconds after each of torch's operations, else the library's.
"""

import ctypes
import platform
import sys
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from .._metal.cpu.library import FILE, FOLDER, CpuLibrary
from .._metal.plan.programs import CpuCall
from .._metal.problem import checks
from .._metal.problem.ops import KEY_MASK, RPB, sum_dtype
from .._metal.problem.problem import Problem

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}

CPU = torch.device("cpu")
# What the kernels read only if it is contiguous. All other tensors may have any strides.
FLAT = RPB.name, KEY_MASK.name


class NativeHost:
    """The library that was built with this package, looked for once. file: its name; folders: where it may be."""

    def __init__(self, file: str = FILE, folders: list[str] | None = None) -> None:
        self.file, self.folders = file, folders

    @cached_property
    def _found(self) -> CpuLibrary | str:
        # An editable install keeps compiled files apart from the sources; the package's __path__ names both folders.
        folders = self.folders or sys.modules["natten_mps"].__path__
        for path in (Path(folder) / FOLDER / self.file for folder in folders):
            if path.exists():
                try:
                    library = CpuLibrary(path)
                except OSError as error:
                    return f"the compiled CPU kernel does not load ({error})"
                library.use_region(_region_of_torch())
                return library
        return (
            f"this install of natten-mps has no compiled CPU kernel for {platform.system()} {platform.machine()}; "
            "a wheel for this platform has one, and so has an install from source where CMake finds a C++17 compiler"
        )

    def missing(self, device: torch.device) -> str | None:
        """Why the CPU kernels cannot run on tensors of ``device``; None if they can."""
        if device.type != "cpu":
            return f"the CPU kernel runs on cpu tensors; these are on {device.type}"
        return self._found if isinstance(self._found, str) else None

    @property
    def library(self) -> CpuLibrary:
        """The loaded library; RuntimeError with the reason if there is none."""
        if isinstance(self._found, str):
            raise RuntimeError(self._found)
        return self._found


def _region_of_torch() -> int | None:
    """The address of ``GOMP_parallel`` of the OpenMP that torch computes with; None where torch uses another one.

    torch loads its libraries for all to see, so the process's own names have it, or what was loaded in its place.
    """
    if sys.platform != "linux" or "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return None
    found = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    return ctypes.cast(found, ctypes.c_void_p).value if found else None


def run(
    program: CpuCall, tensors: dict[str, Tensor], host: NativeHost, into: list[Tensor] | None = None
) -> dict[str, Tensor]:
    """Call the program's function; its outputs by name. into: where to write the first of them, of any strides."""
    made = {output.name: tensor for output, tensor in zip(program.outputs, into or (), strict=False)}
    for output in program.outputs[len(made) :]:
        made[output.name] = torch.empty(*output.shape, dtype=DTYPES[output.dtype], device=CPU)
    passed = tensors | made
    for name in FLAT:
        if name in tensors:
            passed[name] = _contiguous(program.problem, name, tensors[name])
    addresses = {}
    for name, tensor in passed.items():
        address = tensor.data_ptr()
        if not address:
            _require_memory(program.problem, name, tensor)
        addresses[name] = address, tensor.stride()
    host.library.call(program.function, program.problem, addresses, torch.get_num_threads())
    return made


def _contiguous(problem: Problem, name: str, tensor: Tensor) -> Tensor:
    """One of :data:`FLAT` as the kernels read it: rpb in the dtype of sums, a mask in the bytes of its bools."""
    return (tensor.to(DTYPES[sum_dtype(problem.dtype)]) if name == RPB.name else tensor).contiguous()


def _require_memory(problem: Problem, name: str, tensor: Tensor | None) -> None:
    """ValueError if the tensor has elements but no memory. Lazy ones were resolved before (:mod:`._lazy_bits`)."""
    if tensor is not None and tensor.numel():
        checks.reject_freed(problem.name, name, tensor.numel())
