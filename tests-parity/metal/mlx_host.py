"""A stand-in for ``mx.fast.metal_kernel`` that runs in the emulator, on a CPU stream.

It keeps to MLX's contract: the text is exactly what MLX generates around header and body (MLX prints it when it records
a call without a GPU), prelude included; inputs of fewer than eight elements arrive as constants; an input's strides are
bound where the body names them; threadgroups are clipped to the grid. The call is a lazy node of MLX's graph
(``mlx_lazy.cpp``): nothing is compiled or run before it is evaluated, errors are raised by ``mx.eval``, and there are
no derivatives and no vmap.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import os
import re
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import metal_emulator
import mlx.core as mx
import nanobind
import numpy as np
from metal_emulator import Buffer, CompileError, EmulatorFault
from metal_emulator.build import build_once, shim_key
from metal_emulator.strict import check
from metal_emulator.toolchain import clang_version, digest, run_clang_or_raise

from natten_mlx._device import Machine
from natten_mlx._launch.extension import ExtensionHost
from natten_mlx._launch.fast_metal_host import MetalHost
from natten_mlx._metal.plan.device import Device
from natten_mlx._metal.plan.matrix_units import System

LAZY = Path(__file__).with_name("mlx_lazy.cpp")
MLX = Path(mx.__file__).parent
PRELUDE = '#include "mlx/backend/metal/kernels/utils.h"\n'
# Where a parameter of a generated kernel comes from: an input or output, or a property of an input.
PARAMETER = re.compile(r"(?:device|constant) (?:atomic<)?(\w+)>?([*&]) (\w+) \[\[buffer\((\d+)\)\]\]")
Memory = tuple[int, list[int], list[int]]


@cache
def lazy() -> ModuleType:
    """The compiled ``mlx_lazy``."""
    source = LAZY.read_text()
    key = digest(clang_version(), source, mx.__version__, nanobind.__version__, sysconfig.get_path("include"))
    flags = ["-std=c++20", "-O0", "-w", "-shared", "-fPIC", "-fvisibility=hidden", "-DPy_LIMITED_API=0x030B0000"]
    # The flags of nanobind's CMake functions for its split mode, in which nanobind's runtime is a Python package; MLX's
    # types are in the domain "mlx".
    flags += ["-DNB_DOMAIN=mlx", "-DNB_BACKEND_MODULE=nanobind_backend", "-DNB_BACKEND_PYPI=nanobind-backend"]
    folders = [nanobind.include_dir(), str(MLX / "include"), sysconfig.get_path("include")]
    libraries = [f"-L{MLX / 'lib'}", "-lmlx", f"-Wl,-rpath,{MLX / 'lib'}"]
    includes = [f"-I{folder}" for folder in folders]
    path = build_once(
        f"mlx_lazy-{key}.so",
        lambda made: run_clang_or_raise([*flags, *includes, str(LAZY), *libraries, "-o", str(made)]),
    )
    loader = importlib.machinery.ExtensionFileLoader("mlx_lazy", str(path))
    spec = importlib.util.spec_from_loader("mlx_lazy", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


_stdout = threading.Lock()


def generated(kernel: Any, arguments: dict[str, Any]) -> str:
    """The Metal source that MLX generates for a call, without the prelude.

    kernel: what ``mx.fast.metal_kernel`` returned; arguments: those of the call, with inputs as (shape, dtype) pairs.
    """
    kinds = arguments.pop("inputs")

    def call(*arrays: mx.array) -> list[mx.array]:
        made: list[mx.array] = kernel(inputs=list(arrays), verbose=True, **arguments)
        return made

    with _stdout, tempfile.TemporaryDirectory() as folder, open(Path(folder) / "out", "w+b") as out:
        before = os.dup(1)
        os.dup2(out.fileno(), 1)
        try:
            mx.export_function(str(Path(folder) / "call.mlxfn"), call, *(mx.zeros(*kind) for kind in kinds))
        finally:
            os.dup2(before, 1)
            os.close(before)
        out.seek(0)
        text = re.search(r"```\n(.*?)```", out.read().decode(), re.DOTALL)
    assert text is not None, "MLX printed no source"
    return text[1]


@cache
def compiled(text: str) -> metal_emulator.Kernel:
    """The only kernel of a generated text. RuntimeError, as in MLX, if Metal would not compile it.

    The compiler that executes it does not distinguish address spaces, so the strict check must find nothing either.
    """
    source, folders = PRELUDE + text, [str(MLX / "include")]
    key = digest(shim_key(), source, mx.__version__)
    strict = build_once(
        f"strict-{key}.txt", lambda made: made.write_text("\n".join(map(str, check(source, folders))))
    ).read_text()
    try:
        if strict:
            raise CompileError(strict)
        library = metal_emulator.compile_source(source, include_dirs=folders)
    except CompileError as error:
        raise RuntimeError(f"[metal::Device] Unable to build metal library from source\n{error}") from error
    (name,) = library.names
    return library.kernel(name)


def poisoned_copy(memory: Memory, itemsize: int) -> Buffer:
    """A copy of an array for a kernel to read: the elements where they are, and NaNs (0xFF bytes) between them."""
    address, shape, strides = memory
    reach = [stride * (length - 1) for stride, length in zip(strides, shape, strict=True)]
    low, high = sum(r for r in reach if r < 0), sum(r for r in reach if r > 0) + 1
    kind = np.dtype(f"u{itemsize}")
    own = (ctypes.c_char * ((high - low) * itemsize)).from_address(address + low * itemsize)
    copy = np.full(high - low, np.iinfo(kind).max, kind)
    steps = [stride * itemsize for stride in strides]
    there, here = (
        np.lib.stride_tricks.as_strided(flat[-low:], shape, steps)
        for flat in (np.frombuffer(memoryview(own), kind), copy)
    )
    here[...] = there
    return Buffer(copy, -low * itemsize)


@dataclass(frozen=True)
class Launch:
    """One launch that took place. written_once: whether every element of every output was."""

    name: str
    written_once: bool


@dataclass
class Kernel:
    """What ``metal_kernel`` returns: call it for lazy outputs."""

    host: EmulatedMlxHost
    name: str
    input_names: list[str]
    output_names: list[str]
    real: Any
    sources: dict[Any, str] = field(default_factory=dict)

    def __call__(
        self,
        *,
        inputs: list[mx.array],
        output_shapes: Sequence[Any],
        output_dtypes: Sequence[mx.Dtype],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
    ) -> list[mx.array]:
        source = self.source(inputs, output_shapes, output_dtypes, grid, threadgroup)
        sizes = [array.itemsize for array in inputs], [dtype.size for dtype in output_dtypes]
        x, y, z = (min(group, all_) for group, all_ in zip(threadgroup, grid, strict=True))

        def run(given: list[Memory], made: list[Memory]) -> None:
            self.run(source, given, made, sizes, grid, (x, y, z))

        shapes = [list(shape) for shape in output_shapes]
        stream = mx.default_stream(mx.default_device())
        found: list[mx.array] = lazy().launch(inputs, shapes, list(output_dtypes), run, stream)
        return found

    def source(
        self, inputs: list[mx.array], shapes: Sequence[Any], dtypes: Sequence[mx.Dtype], grid: Any, threadgroup: Any
    ) -> str:
        """The source that MLX would compile. It depends on the dtypes of the inputs, and on which of them are small."""
        key = tuple((array.dtype, array.ndim == 0, array.size < 8) for array in inputs), tuple(dtypes)
        if key not in self.sources:
            arguments = {
                "inputs": [(tuple(array.shape), array.dtype) for array in inputs],
                "grid": grid,
                "threadgroup": threadgroup,
                "output_shapes": list(shapes),
                "output_dtypes": list(dtypes),
            }
            self.sources[key] = generated(self.real, arguments)
        return self.sources[key]

    def run(
        self,
        source: str,
        given: list[Memory],
        made: list[Memory],
        sizes: tuple[list[int], list[int]],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
    ) -> None:
        """Compile, bind and launch, when MLX evaluates the outputs."""
        kernel = compiled(source)
        threads = threadgroup[0] * threadgroup[1] * threadgroup[2]
        if threads > self.host.max_threads:
            raise ValueError(
                f"Thread group size ({threads}) is greater than the maximum allowed threads per threadgroup "
                f"({self.host.max_threads})."
            )
        arrays: dict[str, Any] = {}
        for name, memory, size in zip(self.input_names, given, sizes[0], strict=True):
            arrays[name] = poisoned_copy(memory, size)
            arrays |= {
                f"{name}_shape": np.array(memory[1], np.int32),
                f"{name}_strides": np.array(memory[2], np.int64),
                f"{name}_ndim": np.array([len(memory[1])], np.int32),
            }
        for name, (address, shape, _), size in zip(self.output_names, made, sizes[1], strict=True):
            own = (ctypes.c_char * (int(np.prod(shape)) * size)).from_address(address)
            arrays[name] = Buffer(np.frombuffer(memoryview(own), np.dtype(f"u{size}")), initialised=False)
        buffers = {int(index): arrays[name] for _, _, name, index in PARAMETER.findall(source)}
        try:
            report = kernel.launch(buffers, grid, threadgroup, schedule=self.host.schedule, seed=len(self.host.ran))
        except EmulatorFault as fault:
            self.host.faults.append(fault)
            raise
        made_at = [int(index) for _, _, name, index in PARAMETER.findall(source) if name in self.output_names]
        self.host.ran.append(Launch(self.name, all(report.written_once(index) for index in made_at)))


@dataclass(eq=False)
class EmulatedMlxHost(MetalHost):
    """MLX's Metal back end, as natten_mlx sees it.

    breaks: kernels whose name contains this do not compile. alter: what their header becomes. max_threads: how many
    threads a threadgroup may have. schedule: the order of the emulator's threads. ran: launches in the order in which
    they ran. faults: what the emulator found.
    """

    breaks: str | None = None
    alter: Callable[[str], str] = str
    max_threads: int = 1024
    schedule: str = "forward"
    ran: list[Launch] = field(default_factory=list)
    faults: list[EmulatorFault] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    @property
    def templates(self) -> list[str]:
        """The kernel templates that ran, in order."""
        return [launch.name.rpartition("_r")[0] for launch in self.ran]

    def missing(self, stream: mx.Stream) -> str | None:
        return None

    def metal_kernel(
        self,
        name: str,
        input_names: list[str],
        output_names: list[str],
        source: str,
        header: str,
        ensure_row_contiguous: bool,
    ) -> Kernel:
        assert not ensure_row_contiguous, "the stand-in passes on the strides that arrays have"
        if self.breaks is not None and self.breaks in name:
            header += "#error planted\n"
        header = self.alter(header)
        real = mx.fast.metal_kernel(
            name=name,
            input_names=input_names,
            output_names=output_names,
            source=source,
            header=header,
            ensure_row_contiguous=False,
        )
        return Kernel(self, name, input_names, output_names, real)


class NoExtension(ExtensionHost):
    """A host without the extension: on the CPU stream of the emulated GPU, 'auto' would take its CPU kernels."""

    found = "the extension is left out"  # a reason instead of a module


class EmulatedMlxMachine(Machine):
    """A machine whose CPU stream passes for an Apple GPU's, except that it has float64.

    system: what it calls itself; by default a chip without matrix units.
    """

    def __init__(self, host: EmulatedMlxHost, system: System | None = None) -> None:
        super().__init__(host, NoExtension(), system=lambda: system or System("Apple M4", "26.3"))

    def _view_of(self, stream: mx.Stream) -> Device:
        return super()._view_of(stream)._replace(kind="gpu")
