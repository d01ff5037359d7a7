"""Check on Linux that natten-mlx's C++ extension compiles and links for macOS on Apple Silicon.

Compiles packages/natten-mlx/csrc, the Metal side and the CPU kernels included, for arm64 macOS with the clang that the
package `ziglang` carries, against the headers of MLX's macOS wheel; links it to that wheel's libmlx.dylib; and checks
that libmlx exports each C++ symbol that the extension imports, except for those of the standard library.

What it downloads and builds is kept in build/macos, which git ignores; sources that passed are not compiled again.
Exit status: 0 if it holds, 1 if not. Where the package registry cannot be reached it prints why, and 0 too.

usage: python scripts/check_macos_build.py [--again]
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from registry import ROOT, UnreachableRegistry, uv

PACKAGE = ROOT / "packages" / "natten-mlx"
CSRC = PACKAGE / "csrc"
CACHE = ROOT / "build" / "macos"
TARGET = "aarch64-macos.14.0"
TOOLS = ("ziglang", "lief", "nanobind")
WHEELS = ("mlx", "mlx-metal")
# Stand-ins for the two Apple headers that MLX's headers include and ziglang lacks: just the types that are needed.
STUBS = {
    "CoreFoundation/CoreFoundation.h": (
        "#include <mach/mach.h>\n#include <sys/types.h>\ntypedef double CFTimeInterval;\n"
    ),
    "IOSurface/IOSurfaceRef.h": "typedef struct __IOSurface* IOSurfaceRef;\n",
}
EXTENSION = ("bindings.cpp", "host.cpp", "metal.cpp", "operation.cpp", "plan.cpp")
KERNELS = ("cpu/kernels.cpp", "cpu/natten_cpu.cpp", "cpu/pool.cpp")
# The same flags as in CMakeLists.txt and nanobind's CMake functions.
DEFINITIONS = (
    "NB_DOMAIN=mlx",
    "NB_BACKEND_MODULE=nanobind_backend",
    "NB_BACKEND_PYPI=nanobind-backend",
    "Py_LIMITED_API=0x030B0000",
    'NATTEN_NANOBIND_INTERNALS="22"',
    'NATTEN_KERNELS_DIGEST="0"',
    'NATTEN_SOURCES_DIGEST="0"',
)
# Mangled names of the C++ standard library and run time, which macOS provides.
STANDARD = re.compile(r"__Z(T[ISV])?(N?K?St|N10__cxxabiv1)|__Z(n[wa]|d[la])")


def fetch() -> None:
    """Tools and wheels into the cache, in the releases that requirements/ pins."""
    pins = [ROOT / "requirements" / name for name in ("build.txt", "wheels.txt")]
    stamp, wanted = CACHE / "fetched.txt", "".join(path.read_text() for path in pins)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(CACHE, ignore_errors=True)
    constraints = [word for path in pins for word in ("--constraints", path)]
    # The wheels' own platform tag says macOS 14; uv assumes an older one.
    macos = ("--only-binary", ":all:", "--python-platform", "aarch64-apple-darwin")
    for folder, packages, options in (("tools", TOOLS, ()), ("wheels", WHEELS, macos)):
        command = ("pip", "install", "--quiet", "--python", sys.executable, "--target", CACHE / folder, "--no-deps")
        try:
            uv(*command, *constraints, *options, *packages, MACOSX_DEPLOYMENT_TARGET="14.0")
        except subprocess.CalledProcessError as error:
            sys.exit(f"check_macos_build: {error.stderr}")
    for name, text in STUBS.items():
        stub = CACHE / "stubs" / name
        stub.parent.mkdir(parents=True)
        stub.write_text(text)
    stamp.write_text(wanted)


def clang(driver: str, *arguments: str | Path) -> None:
    """Run clang for macOS. CalledProcessError, with its stderr, if it fails."""
    environment = os.environ | {"PYTHONPATH": str(CACHE / "tools")}
    environment |= {f"ZIG_{kind}_CACHE_DIR": str(CACHE / "zig") for kind in ("GLOBAL", "LOCAL")}
    command = [sys.executable, "-m", "ziglang", driver, "-target", TARGET]
    subprocess.run([*command, *arguments], env=environment, check=True)


def compile_source(source: str, made: Path) -> None:
    """Compile one source of csrc, or one given by its full path, to an object file."""
    mlx, nanobind = CACHE / "wheels" / "mlx" / "include", CACHE / "tools" / "nanobind" / "include"
    common = ("-O1", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-c", CSRC / source, "-o", made)
    if source in KERNELS:
        clang("c++", *common, "-std=gnu++17", "-DNATTEN_ISA=neon", "-ffp-contract=fast", "-fno-math-errno")
        return
    system = (mlx, mlx / "metal_cpp", nanobind, Path(sysconfig.get_path("include")), CACHE / "stubs")
    includes = [word for folder in system for word in ("-isystem", folder)]
    definitions = [f"-D{definition}" for definition in DEFINITIONS]
    clang("c++", *common, "-std=c++20", f"-I{CSRC}", *includes, *definitions)


def link(objects: list[Path], made: Path) -> None:
    """Link the extension. Symbols of Python and of the C++ library are resolved where it is loaded."""
    libmlx = CACHE / "wheels" / "mlx" / "lib" / "libmlx.dylib"
    clang("cc", "-shared", *objects, libmlx, "-undefined", "dynamic_lookup", "-o", made)


def unexported(imported: set[str], exported: set[str]) -> list[str]:
    """The C++ symbols among ``imported`` that neither the standard library nor ``exported`` provides."""
    return sorted(n for n in imported - exported if n.startswith("__Z") and not STANDARD.match(n))


def symbols(extension: Path) -> tuple[set[str], set[str], set[str]]:
    """What the extension imports, what it exports, and what libmlx exports."""
    sys.path.insert(0, str(CACHE / "tools"))
    import lief

    lief.logging.disable()  # it warns about what ziglang's linker leaves empty
    own = lief.MachO.parse(str(extension)).at(0)
    libmlx = lief.MachO.parse(str(CACHE / "wheels" / "mlx" / "lib" / "libmlx.dylib")).at(0)
    names = [{symbol.name for symbol in found} for found in (own.imported_symbols, own.exported_symbols)]
    return *names, {symbol.name for symbol in libmlx.exported_symbols}


def sources_digest() -> str:
    """A digest of everything that the result depends on besides the wheels."""
    folders = (CSRC, CSRC / "cpu", CSRC / "kernels")
    files = [path for folder in folders for path in sorted(folder.glob("*")) if path.suffix in (".h", ".cpp")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in (Path(__file__), *files))).hexdigest()


def check(again: bool = False) -> str:
    """The result in one sentence; SystemExit or CalledProcessError if the check fails."""
    fetch()
    stamp, digest = CACHE / "passed.txt", sources_digest()
    if not again and stamp.exists() and stamp.read_text().startswith(digest):
        return stamp.read_text().partition("\n")[2] + " (checked before, nothing has changed)"
    objects = []
    for source in (*EXTENSION, *KERNELS):
        objects.append(CACHE / Path(source).with_suffix(".o").name)
        compile_source(source, objects[-1])
    extension = CACHE / "_ext.abi3.so"
    link(objects, extension)
    imported, exported, theirs = symbols(extension)
    lacking = unexported(imported, theirs)
    if lacking:
        sys.exit("check_macos_build: libmlx does not export\n  " + "\n  ".join(lacking))
    if "_PyInit__ext" not in exported:
        sys.exit("check_macos_build: the extension has no entry point for Python")
    used = len(imported & theirs)
    verdict = f"the extension compiles and links for {TARGET}; libmlx exports all {used} symbols that it uses"
    stamp.write_text(f"{digest}\n{verdict}")
    return verdict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true", help="compile even if the sources passed before")
    arguments = parser.parse_args()
    try:
        print(f"check_macos_build: {check(arguments.again)}")
    except UnreachableRegistry as reason:
        print(f"check_macos_build: SKIPPED, the package registry cannot be reached: {reason}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"check_macos_build: clang failed with status {error.returncode} (see above)")


if __name__ == "__main__":
    main()
