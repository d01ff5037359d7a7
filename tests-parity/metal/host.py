"""A stand-in for torch's MPS backend: compiles and launches Metal kernels on CPU tensors, in the emulator.

It keeps to the contract of ``torch.mps.compile_shader``, pitfalls included: strides of tensors are ignored, integers
arrive as 64 bits and floats as 32, ``threads`` counts threads and not groups, a threadgroup may not be larger than
the kernel allows, and a source that does not compile is a SyntaxError with the compiler's message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from metal_emulator import Buffer, CompileError, EmulatorFault, Kernel, Library, Report

from natten_mps._device import Machine
from natten_mps._launch.metal_host import MetalHost
from natten_mps._metal.plan.backend import NATIVE
from natten_mps._metal.plan.device import Device
from natten_mps._metal.plan.matrix_units import System

from .launch import compiled

Array = Any
DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
DEFAULT_THREADS = 1024
NO_MATRIX_UNITS, MATRIX_UNITS = System("Apple M4", "26.3"), System("Apple M5", "26.3")
# Metal's setBytes takes no more than this.
MAX_BYTES = 4096


class KernelDefect(AssertionError):
    """A fault that the emulator found in a launch. A host raises no such error, so no launcher catches it."""


@dataclass(frozen=True)
class Launch:
    """One launch that took place: the kernel's name, threads per threadgroup, its work, and what was written.

    executed, full: bricks, and those of them without a mask. multiply_accumulates: 8x8 products, as the emulator
    counted them. written_once: whether every element of the outputs was written once, and nothing else.
    """

    name: str
    threads: int
    executed: int
    full: int
    multiply_accumulates: int
    written_once: bool


class EmulatedKernel:
    """A kernel as ``torch.mps`` returns it."""

    thread_execution_width = 32

    def __init__(self, host: EmulatedHost, kernel: Kernel) -> None:
        self._host, self._kernel = host, kernel

    @property
    def max_threads_per_threadgroup(self) -> int:
        return self._host.allowed_threads(self._kernel.name)

    def __call__(
        self, *args: Any, threads: int | Sequence[int] | None = None, group_size: int | Sequence[int] | None = None
    ) -> None:
        host, name = self._host, self._kernel.name
        if host.refuses:
            raise RuntimeError(host.refuses)
        first = next((arg for arg in args if isinstance(arg, torch.Tensor)), None)
        if threads is None and first is None:
            raise RuntimeError("the number of threads is undefined: no argument is a tensor")
        total = _sizes(first.numel() if threads is None else threads)
        if not 1 <= len(total) <= 3:
            raise RuntimeError(f"threads has {len(total)} dimensions")
        most = self.max_threads_per_threadgroup
        if group_size is None:
            group = [min(total[0], most) if len(total) == 1 else most, *[1] * (len(total) - 1)]
        else:
            group = _sizes(group_size)
        if len(group) != len(total):
            raise RuntimeError(f"threads has {len(total)} dimensions and group_size {len(group)}")
        if int(np.prod(group)) > most:
            raise ValueError(f"group size {group} is larger than the most that this kernel allows, {most}")
        written = [b.index for b in self._kernel.bindings if b.source == 0 and not b.read_only]
        buffers = [_buffer(arg, made=index in written) for index, arg in enumerate(args)]
        try:
            report = self._kernel.launch(buffers, total, group, schedule=host.schedule, seed=host.seed)
        except EmulatorFault as fault:
            raise KernelDefect(str(fault)) from fault
        host.launches.append(_record(name, int(np.prod(group)), report, written))


def _record(name: str, threads: int, report: Report, written: list[int]) -> Launch:
    once = all(report.written_once(index) for index in written)
    full = report.thread_events("full_brick")
    executed = full + report.thread_events("partial_brick")
    return Launch(name, threads, executed, full, report.multiply_accumulates, once)


def _sizes(given: int | Sequence[int]) -> list[int]:
    return [given] if isinstance(given, int) else [int(size) for size in given]


def _buffer(arg: Any, made: bool) -> Buffer:
    """An argument as Metal receives it. made: the kernel may write it."""
    if isinstance(arg, torch.Tensor):
        if arg.dtype not in DTYPES:
            raise TypeError(f"Metal has no {arg.dtype}")
        storage = arg.untyped_storage()
        memory = torch.empty(0, dtype=arg.dtype).set_(storage)
        stored = {torch.bfloat16: torch.int16, torch.bool: torch.uint8}.get(arg.dtype, arg.dtype)
        fresh = made and arg.numel() * arg.element_size() == storage.nbytes()
        # Memory from torch.empty holds nothing yet, and reading it is a fault.
        return Buffer(memory.view(stored).numpy(), arg.storage_offset() * arg.element_size(), initialised=not fresh)
    values = list(arg) if isinstance(arg, (list, tuple)) else [arg]
    if not values or not isinstance(values[0], (bool, int, float)):
        raise RuntimeError(f"neither a tensor nor numbers: {arg!r}")
    # The first element of a list determines the type of all.
    whole = isinstance(values[0], (bool, int))
    if not all(isinstance(value, (bool, int) if whole else (bool, int, float)) for value in values):
        raise RuntimeError(f"not all of one kind: {arg!r}")
    array = np.array(values, np.int64 if whole else np.float32)
    if array.nbytes > MAX_BYTES:
        raise ValueError(f"{array.nbytes} bytes by value; at most {MAX_BYTES}")
    return Buffer(array)


class EmulatedLibrary:
    """A library as ``torch.mps.compile_shader`` returns it: kernels are its attributes."""

    def __init__(self, host: EmulatedHost, library: Library) -> None:
        self._host, self._library = host, library

    def __getattr__(self, name: str) -> EmulatedKernel:
        if name not in self._library.names:
            raise RuntimeError(f"Failed to create function state object for: {name}")
        return EmulatedKernel(self._host, self._library.kernel(name))

    def __dir__(self) -> list[str]:
        return list(self._library.names)


class EmulatedHost(MetalHost):
    """A host with an emulated Apple GPU.

    allowed_threads: how many threads a threadgroup may have, by the kernel's name.
    refuses: the message with which every launch fails; '' if none does. options: those of the emulator's compiler.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.allowed_threads: Callable[[str], int] = lambda name: DEFAULT_THREADS
        self.refuses = ""
        self.schedule, self.seed = "forward", 0
        self.options = options
        self.compilations: list[str] = []
        self.launches: list[Launch] = []

    def missing(self, device: torch.device) -> str | None:
        return None

    def compile_shader(self, source: str) -> EmulatedLibrary:
        self.compilations.append(source)
        if not source.isascii():
            raise SyntaxError("program source must be ASCII")
        try:
            return EmulatedLibrary(self, compiled(source, **self.options))
        except CompileError as error:
            raise SyntaxError(f"failed to compile source code: {error}") from error

    @property
    def names(self) -> list[str]:
        """The kernels that ran, in order."""
        return [launch.name for launch in self.launches]


class EmulatedMachine(Machine):
    """A machine whose CPU tensors pass for an Apple GPU's, except that they have float64.

    system: what it calls itself; by default a chip without matrix units.
    """

    metal: EmulatedHost

    def __init__(self, metal: EmulatedHost, system: System = NO_MATRIX_UNITS) -> None:
        super().__init__(metal, system=lambda: system)

    def _view_of(self, device: torch.device) -> Device:
        missing = self._no_matrix_units(device)
        return Device("gpu", device.type, ((NATIVE.name, "the tensors are a GPU's"),), no_matrix_units=missing)
