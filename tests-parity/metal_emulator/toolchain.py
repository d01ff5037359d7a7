"""What the emulator needs from the machine: x86-64 Linux, clang 19, a folder for what it builds."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
CLANG = "clang++-19"
PROCESSOR_FLAGS = ("avx2", "f16c", "fma")
TARGET_CPU = "x86-64-v3"

# Metal's own headers. The shim stands for all of them, so includes of these names become nothing.
METAL_HEADERS = (
    "metal_atomic",
    "metal_common",
    "metal_compute",
    "metal_geometric",
    "metal_integer",
    "metal_limits",
    "metal_logging",
    "metal_math",
    "metal_matrix",
    "metal_quadgroup",
    "metal_relational",
    "metal_simdgroup",
    "metal_simdgroup_matrix",
    "metal_stdlib",
    "metal_type_traits",
    "metal_types",
)
# Those that exist since Metal 4
TENSOR_HEADERS = ("metal_tensor", "MetalPerformancePrimitives/MetalPerformancePrimitives.h")


class Unavailable(RuntimeError):
    """The emulator cannot run on this machine; the message says why in one sentence."""


class CompileError(RuntimeError):
    """The source does not compile; the message holds clang's words with lines of the source."""


def unavailable_reason() -> str | None:
    """Why the emulator cannot run here, in one sentence, or None if it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"The Metal emulator runs on x86-64 Linux only, and this is {sys.platform} on {platform.machine()}."
    if shutil.which(CLANG) is None:
        return f"The Metal emulator needs {CLANG} on the PATH (on Debian and Ubuntu: apt-get install clang-19)."
    missing = sorted(set(PROCESSOR_FLAGS) - processor_flags())
    if missing:
        return (
            f"The Metal emulator needs a processor with {', '.join(PROCESSOR_FLAGS)}, and this one lacks "
            f"{', '.join(missing)}."
        )
    return None


def processor_flags() -> set[str]:
    """Instruction set extensions of this processor, in the kernel's spelling."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


def require() -> None:
    """Raise Unavailable if the emulator cannot run here."""
    reason = unavailable_reason()
    if reason is not None:
        raise Unavailable(reason)


@cache
def clang_version() -> str:
    """First line of `clang --version`: part of every cache key."""
    done = subprocess.run([CLANG, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def run_clang(arguments: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run clang; the caller looks at the exit status."""
    return subprocess.run([CLANG, *arguments], input=text, capture_output=True, text=True)


def run_clang_or_raise(arguments: list[str], text: str | None = None) -> str:
    """Standard output of clang; CompileError with its errors if it fails."""
    done = run_clang(arguments, text)
    if done.returncode != 0:
        raise CompileError(done.stderr.strip())
    return done.stdout


def cache_folder() -> Path:
    """Where compiled things live: $METAL_EMULATOR_CACHE, else the user's cache folder, else the temporary folder.

    Everything in it can be deleted at any time.
    """
    named = os.environ.get("METAL_EMULATOR_CACHE")
    if named:
        folder = Path(named)
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = root / "metal_emulator"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir()) / f"metal_emulator-{os.getuid()}"
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def digest(*parts: str) -> str:
    """Short hash of some texts: a name in the cache."""
    h = hashlib.sha256()
    for part in parts:
        h.update(part.encode())
        h.update(b"\0")
    return h.hexdigest()[:20]


def files_digest(folder: Path) -> str:
    """Hash of all sources in a folder of this package."""
    return digest(*(f"{path.name}\n{path.read_text()}" for path in sorted(folder.glob("*.*"))))
