"""The same Metal source for an NVIDIA GPU: PTX through clang's NVPTX back end, no CUDA headers, no nvcc.

Lanes are the lanes of a warp, threadgroup variables are static shared memory, an 8x8 product is 16 shuffles and 16
multiply-adds in each lane. A kernel `k` becomes the entry `e_k`, with one argument by value: struct Arguments of
shim/kernel_arguments.h (31 buffer addresses, then 3 unused integers). [[threadgroup(n)]] arguments are not available.

    python -m metal_emulator.to_ptx SOURCE.metal OUT.ptx [--arch sm_90] [--kernel NAME ...] [--cubin OUT.cubin]
"""

import argparse
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .build import shim_flags
from .toolchain import CompileError, require, run_clang
from .transform import Mode, translate

FLAGS = (
    "-x",
    "cuda",
    "--cuda-device-only",
    "-nocudainc",
    "-nocudalib",
    "-nostdinc",
    "-std=c++17",
    "-O3",
    "-ffp-contract=fast",
    "-Xclang",
    "-cl-single-precision-constant",
    "-Wno-everything",
)


@dataclass(frozen=True)
class Cubin:
    """Assembled code and the assembler's figures for its only, or largest, kernel."""

    code: bytes
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_bytes: int


def entry_name(kernel: str) -> str:
    """Name of a kernel's entry in the PTX."""
    return "e_" + re.sub(r"\W+", "_", kernel)


def to_ptx(
    source: str, *, kernels: Sequence[str] | None = None, arch: str = "sm_90", include_dirs: Sequence[str] = ()
) -> str:
    """PTX text of some kernels of a Metal source (default: all). Raises CompileError with clang's messages."""
    require()
    translation = translate(source, Mode.PTX, tuple(map(str, include_dirs)))
    expressions = translation.kernels()
    text = "#include <metal.h>\n#pragma clang force_cuda_host_device begin\n" + translation.text
    text += "\n#pragma clang force_cuda_host_device end\n"
    for name in kernels or expressions:
        bindings = ", ".join(f"metal_emulator::Binding<{b.source}, {b.index}>" for b in translation.bindings(name))
        text += f'extern "C" __attribute__((global)) void {entry_name(name)}(metal_emulator::Arguments arguments) {{\n'
        text += f"  metal_emulator::call<{bindings}>(&{expressions[name]}, arguments);\n}}\n"
    done = run_clang([*FLAGS, f"--cuda-gpu-arch={arch}", *shim_flags(), "-S", "-o", "-", "-"], text)
    if done.returncode != 0:
        raise CompileError(f"clang makes no PTX of the source:\n{done.stderr.strip()}")
    return done.stdout


def assemble(ptx: str, *, arch: str = "sm_90", max_registers: int | None = None) -> Cubin:
    """Assemble PTX with ptxas, which has to be on the PATH."""
    limit = [] if max_registers is None else [f"-maxrregcount={max_registers}"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        target = Path(folder) / "kernel.cubin"
        source.write_text(ptx)
        done = subprocess.run(
            ["ptxas", f"-arch={arch}", "-v", *limit, "-o", str(target), str(source)], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise CompileError(f"ptxas rejects the PTX:\n{done.stderr.strip()}")
        figure = {name: max(map(int, re.findall(pattern, done.stderr)), default=0) for name, pattern in FIGURES.items()}
        return Cubin(target.read_bytes(), **figure)


FIGURES = {
    "registers": r"Used (\d+) registers",
    "shared_bytes": r"(\d+) bytes smem",
    "stack_bytes": r"(\d+) bytes stack frame",
    "spill_bytes": r"(\d+) bytes spill stores",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile Metal source to PTX for an NVIDIA GPU.")
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--kernel", action="append", help="host name of a kernel; repeatable; default: all")
    parser.add_argument("--cubin", type=Path, help="assemble too, with ptxas")
    parser.add_argument("--max-registers", type=int)
    arguments = parser.parse_args()
    ptx = to_ptx(arguments.source.read_text(), kernels=arguments.kernel, arch=arguments.arch)
    arguments.output.write_text(ptx)
    if arguments.cubin:
        cubin = assemble(ptx, arch=arguments.arch, max_registers=arguments.max_registers)
        arguments.cubin.write_bytes(cubin.code)
        print(
            f"{cubin.registers} registers, {cubin.shared_bytes} bytes shared, {cubin.stack_bytes} bytes "
            f"stack, {cubin.spill_bytes} bytes spilled"
        )


if __name__ == "__main__":
    main()
