"""Compiling: the runtime, the precompiled shim, and kernel libraries, each once, cached by content hash.

Safe with several processes at once: everything is made in a temporary folder and then moved into place.
"""

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .swizzles import swizzle_header
from .toolchain import (
    CLANG,
    HERE,
    TARGET_CPU,
    CompileError,
    cache_folder,
    clang_version,
    digest,
    files_digest,
    run_clang,
    run_clang_or_raise,
)
from .transform import Translation

JOBS = min(2, os.cpu_count() or 1)
KERNELS_PER_UNIT = 6
SANITIZERS = (None, "address", "undefined")
_pool = ThreadPoolExecutor(JOBS, thread_name_prefix="metal_emulator_clang")

COMMON_FLAGS = (
    "-std=c++17",
    "-O1",
    "-gline-tables-only",
    "-fPIC",
    "-nostdinc",
    f"-march={TARGET_CPU}",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-strict-aliasing",
    "-fno-math-errno",
    # Keep reads through null pointers, so that they are reported
    "-fno-delete-null-pointer-checks",
    # A large frame touches the guard page below its stack
    "-fstack-clash-protection",
    # An unset private variable holds NaN, not whatever an earlier thread left on the stack
    "-ftrivial-auto-var-init=pattern",
    # The memory hooks know accesses of up to 16 bytes
    "-fno-vectorize",
    "-fno-slp-vectorize",
    # Every half and bfloat operation rounds; literals without a suffix are float
    "-Xclang",
    "-ffloat16-excess-precision=none",
    "-Xclang",
    "-fbfloat16-excess-precision=none",
    "-Xclang",
    "-cl-single-precision-constant",
    "-Wno-everything",
)
ACCESS_HOOKS = (
    "-Xclang",
    "-fsanitize=thread",
    "-mllvm",
    "-tsan-instrument-func-entry-exit=0",
    "-mllvm",
    "-tsan-instrument-read-before-write=1",
)
ADDRESS_HOOKS = (
    "-fsanitize=address",
    "-fsanitize-address-use-after-return=never",
    "-mllvm",
    "-asan-force-dynamic-shadow=1",
    "-mllvm",
    "-asan-instrumentation-with-call-threshold=0",
    "-mllvm",
    "-asan-opt=0",
)
UNDEFINED_CHECKS = (
    "-fsanitize=signed-integer-overflow,shift,integer-divide-by-zero,bounds,alignment,float-cast-overflow,null",
    "-fsanitize-recover=all",
    "-fsanitize-minimal-runtime",
)


@dataclass(frozen=True)
class Variant:
    """How kernels are compiled for execution."""

    fast_math: bool = False
    sanitizer: str | None = None
    checked: bool = True
    optimised: bool = True

    def __post_init__(self) -> None:
        if self.sanitizer not in SANITIZERS:
            raise ValueError(f"sanitizer must be one of {SANITIZERS}, not {self.sanitizer!r}")
        if self.sanitizer == "address" and not self.checked:
            raise ValueError("sanitizer='address' checks every access, so checked=False cannot go with it")

    def flags(self) -> tuple[str, ...]:
        flags: tuple[str, ...] = COMMON_FLAGS
        flags += () if self.optimised else ("-O0",)
        flags += ("-ffast-math",) if self.fast_math else ("-ffp-contract=off",)
        if self.sanitizer == "address":
            flags += ADDRESS_HOOKS
        elif self.checked:
            flags += ACCESS_HOOKS
        if self.sanitizer == "undefined":
            flags += UNDEFINED_CHECKS
        return flags


def build_once(name: str, make: Callable[[Path], object]) -> Path:
    """The cached file `name`; if it does not exist, make(path) writes it and it is moved into place."""
    target = cache_folder() / name
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
            fresh = Path(folder) / target.name
            make(fresh)
            os.replace(fresh, target)
    return target


def runtime_library() -> Path:
    """The shared library that schedules threads and watches memory."""
    sources = sorted((HERE / "runtime").glob("*.cpp"))
    key = digest(clang_version(), files_digest(HERE / "runtime"))

    def make(path: Path) -> None:
        flags = ["-std=c++17", "-O2", f"-march={TARGET_CPU}", "-fPIC"]
        objects = [path.with_name(source.stem + ".o") for source in sources]
        commands = [[*flags, "-c", str(source), "-o", str(out)] for source, out in zip(sources, objects, strict=True)]
        list(_pool.map(run_clang_or_raise, commands))
        run_clang_or_raise(["-shared", "-Wl,-z,defs", "-Wl,-Bsymbolic", *map(str, objects), "-o", str(path)])

    return build_once(f"runtime-{key}.so", make)


def shim_key() -> str:
    """Hash of everything the precompiled shim is made of."""
    return digest(clang_version(), files_digest(HERE / "shim"), files_digest(HERE / "runtime"), swizzle_header())


def shim_flags() -> list[str]:
    """Include paths of the shim and of its generated header."""
    text = swizzle_header()
    folder = cache_folder() / f"shim-{digest(text)}"
    folder.mkdir(exist_ok=True)
    build_once(f"{folder.name}/swizzles.h", lambda path: path.write_text(text))
    return ["-I", str(folder), "-I", str(HERE / "shim")]


def precompiled_shim(variant: Variant) -> Path:
    """The shim, parsed once for all kernels of a variant.

    clang accepts it only together with exactly the files that it was made of, so their paths and times are in the key.
    """
    flags = variant.flags()
    headers = sorted(path for folder in ("runtime", "shim") for path in (HERE / folder).glob("*.h"))
    key = digest(shim_key(), *flags, *(f"{path} {path.stat().st_mtime_ns}" for path in headers))

    def make(path: Path) -> None:
        run_clang_or_raise([*flags, *shim_flags(), "-x", "c++-header", str(HERE / "shim" / "metal.h"), "-o", str(path)])

    return build_once(f"shim-{key}.pch", make)


def entry_name(number: int) -> str:
    """Name of the exported function that runs one thread of kernel `number`."""
    return f"metal_emulator_entry_{number}"


def entry_points(translation: Translation, kernels: dict[str, int]) -> str:
    """C++ that exports some kernels; `kernels` gives each one's number."""
    expressions = translation.kernels()
    text = ""
    for name, number in kernels.items():
        bindings = ", ".join(f"metal_emulator::Binding<{b.source}, {b.index}>" for b in translation.bindings(name))
        text += (
            f'\nextern "C" METAL_EMULATOR_UNCHECKED void {entry_name(number)}(const '
            f"metal_emulator::Arguments* arguments) {{\n"
        )
        text += f"  metal_emulator::call<{bindings}>(&{expressions[name]}, *arguments);\n}}\n"
    return text


def kernel_library(translation: Translation, kernels: tuple[str, ...], variant: Variant) -> Path:
    """Shared library with the entry points of `kernels`, numbered in order."""
    flags = variant.flags()
    key = digest(shim_key(), *flags, translation.text, *kernels)

    def make(path: Path) -> None:
        numbers = {name: number for number, name in enumerate(kernels)}
        unit_count = max(min(len(kernels), JOBS), -(-len(kernels) // KERNELS_PER_UNIT))
        pch = precompiled_shim(variant)
        commands = []
        objects = []
        for unit in range(unit_count):
            part = {name: numbers[name] for name in kernels[unit::unit_count]}
            source = path.with_name(f"unit{unit}.cpp")
            source.write_text(translation.text + entry_points(translation, part))
            objects.append(str(source.with_suffix(".o")))
            commands.append([*flags, *shim_flags(), "-include-pch", str(pch), "-c", str(source), "-o", objects[-1]])
        list(_pool.map(compile_unit, commands))
        # Functions that are not inline are the same in every unit
        link = ["-shared", "-nostdlib", "-Wl,-z,defs", "-Wl,-z,muldefs", *objects, str(runtime_library()), "-lm", "-lc"]
        run_clang_or_raise([*link, "-o", str(path)])

    return build_once(f"kernels-{key}.so", make)


def compile_unit(arguments: list[str]) -> None:
    """Run clang on generated C++; errors show lines of the Metal source."""
    done = run_clang(arguments)
    if done.returncode != 0:
        raise CompileError(f"{CLANG} rejects the source:\n{done.stderr.strip()}")
