"""Building the C++ test of the CPU kernels: compiler calls, two at a time; one object file per instruction set."""

from __future__ import annotations

import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHARED = HERE.parent.parent / "shared-metal"
ARM = platform.machine() in ("arm64", "aarch64")
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")
# Flags of each instruction set, best last.
ISAS = {"neon": ()} if ARM else {"sse": ("-msse2",), "avx2": AVX2, "avx512": AVX512}
COMMON = ("-std=c++17", "-fPIC", "-g1", "-Wall", "-Wextra", "-Werror", "-ffp-contract=fast", "-fno-math-errno")
KERNELS = ("-fno-exceptions", "-fno-rtti")
COMPILERS = ("clang++-19", "clang++", "g++")


def compiler() -> str | None:
    """The first C++ compiler of :data:`COMPILERS` that this machine has."""
    return next((name for name in COMPILERS if shutil.which(name)), None)


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stderr[-4000:]}"
    return done.stdout


def compile_objects(cxx: str, flags: tuple[str, ...], sources: Path, out: Path, isas: tuple[str, ...]) -> list[Path]:
    """Objects of ``sources``/cpu for ``isas`` and of the common part; ``sources`` is shared-metal or a copy of it."""
    out.mkdir(parents=True, exist_ok=True)
    jobs = {isa: ("kernels.cpp", (*ISAS[isa], *KERNELS, f"-DNATTEN_ISA={isa}")) for isa in isas}
    jobs |= {"host": ("natten_cpu.cpp", ()), "pool": ("pool.cpp", ())}

    def one(name: str) -> Path:
        source, own = jobs[name]
        run(cxx, *COMMON, *flags, *own, "-c", sources / "cpu" / source, "-o", out / f"{name}.o")
        return out / f"{name}.o"

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, reversed(list(jobs))))


def compile_driver(cxx: str, flags: tuple[str, ...], out: Path) -> Path:
    """The test's own object file."""
    out.mkdir(parents=True, exist_ok=True)
    made = out / "driver.o"
    include = f"-I{SHARED / 'cpu'}"
    # The reference is written to be obvious, not fast.
    run(cxx, *COMMON, *flags, "-O1", include, "-c", HERE / "test_cpu.cpp", "-o", made)
    return made


def compile_walk(cxx: str, flags: tuple[str, ...], isa: str, out: Path) -> Path:
    """The object file of test_walk.cpp, with the headers of one instruction set."""
    out.mkdir(parents=True, exist_ok=True)
    own = (*ISAS[isa], f"-I{SHARED / 'cpu'}", f"-DNATTEN_ISA={isa}")
    run(cxx, *COMMON, *flags, *own, "-c", HERE / "test_walk.cpp", "-o", out / "walk.o")
    return out / "walk.o"


def link(cxx: str, flags: tuple[str, ...], objects: list[Path], out: Path) -> Path:
    run(cxx, *flags, *objects, "-pthread", "-o", out)
    return out
