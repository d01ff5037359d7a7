"""Builds wheels of both packages for macOS on Apple Silicon, on Linux, and checks them: a gate for every commit.

As on a Mac, each is built from its sdist by its own CMakeLists.txt, natten-mlx against the headers and the libmlx of
MLX's wheels for macOS; only the compiler and the linker are ziglang's (macos_clang.py), and what they know of macOS's
own libraries is what MLX's wheels import from them. The wheels can be installed, but are not for publishing: Macs build
those. Checked are all rules of check_wheel.py; that each symbol is looked for in one library, which has it; that uv
would install the wheels on a Mac; and, with --twice, that a second build gives the same bytes (natten-mlx may not:
ziglang's linker leaves entries of the table of indirect symbols unset, which nothing reads when a file is loaded).

Exit status 1 if something does not hold. Where the package registry cannot be reached it says so, and exits with 0.

usage: build_macos_wheels.py [--twice]     into build/macos/wheels
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import check_wheel
import lief
import mlx_releases
from build_wheels import PACKAGES, PINS
from registry import ROOT, UnreachableRegistry, uv

MACOS = ROOT / "build" / "macos"
WHEELS = MACOS / "wheels"
SCRIPTS = Path(__file__).resolve().parent
# Stand-ins for the two Apple headers that MLX's headers include and ziglang lacks: just the types that are needed.
HEADERS = {
    "CoreFoundation/CoreFoundation.h": (
        "#include <mach/mach.h>\n#include <sys/types.h>\ntypedef double CFTimeInterval;\n"
    ),
    "IOSurface/IOSurfaceRef.h": "typedef struct __IOSurface* IOSurfaceRef;\n",
}
LIBRARIES = {"libc++": "/usr/lib/libc++.1.dylib", "libobjc": "/usr/lib/libobjc.A.dylib"}
# Symbols of them that no wheel of MLX imports, all older than macOS 11: std::mutex::try_lock, operator delete by size,
# std::to_string of long long.
OTHERS = {"libc++": {"__ZNSt3__15mutex8try_lockEv", "__ZdlPvm", "__ZNSt3__19to_stringEx"}, "libobjc": set()}
TOOLCHAIN = """\
set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_PROCESSOR arm64)
set(CMAKE_CXX_COMPILER "{folder}/bin/clang")
set(CMAKE_AR "{folder}/bin/ar")
set(CMAKE_RANLIB "")
set(CMAKE_STRIP "")
set(CMAKE_INSTALL_NAME_TOOL "")
set(CMAKE_OSX_ARCHITECTURES arm64)
"""
TBD = """\
--- !tapi-tbd
tbd-version: 4
targets: [ arm64-macos ]
install-name: '{name}'
exports:
  - targets: [ arm64-macos ]
    symbols: [ {symbols} ]
...
"""


# --- what compiled files say of their symbols -------------------------------------------------------------


def imports(file: Path) -> dict[str, str]:
    """The symbols that a compiled file imports and the library that each is looked for in: "" for all of them."""
    parts = lief.MachO.parse(str(file))  # it owns the binary
    binary = parts.at(0)
    kinds = (lief.MachO.LoadCommand.TYPE.LOAD_DYLIB, lief.MachO.LoadCommand.TYPE.LOAD_WEAK_DYLIB)
    libraries = [command.name for command in binary.commands if command.command in kinds]
    found = {}
    for symbol in binary.imported_symbols:
        if symbol.category != lief.MachO.Symbol.CATEGORY.UNDEFINED:
            continue  # an inline function of its own, of which a process uses one
        ordinal = symbol.description >> 8 & 0xFF  # from 1; 254: in whichever has it
        found[symbol.name] = libraries[ordinal - 1] if 0 < ordinal <= len(libraries) else ""
    return found


def exports(library: Path) -> set[str]:
    parts = lief.MachO.parse(str(library))
    return {symbol.name for symbol in parts.at(0).exported_symbols}


# --- the machine that is built for ------------------------------------------------------------------------


def describe_macos(releases: Path) -> None:
    """What the compiler and the linker get to know of macOS, into MACOS. releases: the folder with MLX's wheels."""
    for name, text in HEADERS.items():
        file = MACOS / "include" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    known = [item for file in sorted(releases.glob("mlx-*/mlx/**/*.[sd][oy]*")) for item in imports(file).items()]
    for name, path in LIBRARIES.items():
        symbols = {symbol for symbol, library in known if library == path} | OTHERS[name]
        listed = ", ".join(f"'{symbol}'" for symbol in sorted(symbols))
        (MACOS / f"{name}.tbd").write_text(TBD.format(name=path, symbols=listed))
    programs = {
        "clang": f'exec "{sys.executable}" "{SCRIPTS / "macos_clang.py"}" "$@"',
        "ar": f'exec "{sys.executable}" -m ziglang ar "$@"',
        "sw_vers": f"echo {mlx_releases.DEPLOYMENT_TARGET}",  # CMake asks whether libraries can have an rpath
    }
    for name, line in programs.items():
        program = MACOS / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)
    (MACOS / "toolchain.cmake").write_text(TOOLCHAIN.format(folder=MACOS))


# --- building --------------------------------------------------------------------------------------------


def build(package: str, releases: Path, out: Path) -> Path:
    """A wheel from a new sdist. SystemExit, with what the compiler said, if there is none."""
    environment = os.environ | {
        "NATTEN_MACOS": str(MACOS),
        "NATTEN_MLX_RELEASES": str(releases),
        "PATH": f"{MACOS / 'bin'}:{os.environ['PATH']}",
        "CCACHE_EXTRAFILES": str(SCRIPTS / "macos_clang.py"),
        "CMAKE_TOOLCHAIN_FILE": str(MACOS / "toolchain.cmake"),
        "_PYTHON_HOST_PLATFORM": f"macosx-{mlx_releases.DEPLOYMENT_TARGET}-arm64",
        **{f"ZIG_{kind}_CACHE_DIR": str(MACOS / "zig") for kind in ("GLOBAL", "LOCAL")},
    }
    with tempfile.TemporaryDirectory() as folder:
        uv("build", "--sdist", *PINS, "--out-dir", folder, ROOT / "packages" / package)
        (sdist,) = Path(folder).glob("*.tar.gz")
        command = [os.environ["UV"], "build", "--wheel", "--no-config", *PINS, "--out-dir", folder, sdist]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        wheels = [path for path in Path(folder).glob("*.whl") if path.name.endswith("_arm64.whl")]
        if done.returncode or not wheels:
            sys.exit(f"build_macos_wheels: {package} does not compile or link for macOS\n{done.stdout}{done.stderr}")
        return Path(shutil.move(wheels[0], out / wheels[0].name))


def build_all(releases: Path, out: Path) -> list[Path]:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    return [build(package, releases, out) for package in PACKAGES]


# --- checking --------------------------------------------------------------------------------------------


def misplaced(imported: dict[str, str], exported: dict[str, set[str]]) -> list[str]:
    """What is wrong with the symbols that a file imports. exported: by the libraries whose symbols are known."""
    said = []
    for symbol, library in imported.items():
        if library in exported and symbol not in exported[library]:
            said.append(f"imports {symbol}, which {library} does not export")
        if not library and not symbol.startswith(("_Py", "__Py")):
            said.append(f"imports {symbol} from no library; it looks for Python's symbols alone in all of them")
    return said


def complaints(wheel: Path, releases: Path) -> list[str]:
    """What is wrong with the symbols of a wheel's compiled files. releases: the folder with MLX's wheels."""
    said = []
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            files = [
                Path(archive.extract(name, folder)) for name in archive.namelist() if name.endswith((".so", ".dylib"))
            ]
        own = {f"@rpath/{file.name}": exports(file) for file in files if file.suffix == ".dylib"}
        for file in files:
            known, imported = dict(own), imports(file)
            extension = re.match(r"_ext_(\d+_\d+_\d+)\.", file.name)
            if extension:
                release = releases / f"mlx-{extension[1].replace('_', '.')}"
                known["@rpath/libmlx.dylib"] = exports(release / "mlx" / "lib" / "libmlx.dylib")
                if "@rpath/libmlx.dylib" not in imported.values() or not set(own) & set(imported.values()):
                    said.append(f"{file.name} uses nothing of libmlx, or nothing of the CPU kernels")
                if f"_PyInit_{file.name.partition('.')[0]}" not in exports(file):
                    said.append(f"{file.name} has no entry point for Python")
            said += [f"{file.name} {line}" for line in misplaced(imported, known)]
    return said


def install(wheels: Path) -> None:
    """As uv would on a Mac. CalledProcessError if it would not."""
    macos = {"MACOSX_DEPLOYMENT_TARGET": mlx_releases.DEPLOYMENT_TARGET}
    for python in (mlx_releases.PYTHONS[0], mlx_releases.PYTHONS[-1]):
        with tempfile.TemporaryDirectory() as folder:
            options = ("--quiet", "--no-config", "--no-deps", "--no-index", "--find-links", wheels, "--target", folder)
            uv("pip", "install", *options, *mlx_releases.MACOS, "--python-version", python, *PACKAGES, **macos)


def check(twice: bool) -> str:
    """The result in one sentence; SystemExit if something does not hold."""
    releases = mlx_releases.lay_out(macos=True)
    describe_macos(releases)
    wheels = build_all(releases, WHEELS)
    said = check_wheel.complaints(wheels) + check_wheel.run_tools(wheels, [])
    said += [f"{wheel.name}: {line}" for wheel in wheels for line in complaints(wheel, releases)]
    install(WHEELS)
    if twice:
        os.environ["CCACHE_DISABLE"] = "1"
        again = build_all(releases, MACOS / "again")
        pairs = zip(wheels, again, strict=True)
        said += [
            f"{one.name}: a second build gives other bytes"
            for one, two in pairs
            if one.read_bytes() != two.read_bytes()
        ]
    if said:
        sys.exit("\n".join(f"build_macos_wheels: {line}" for line in said))
    sizes = ", ".join(f"{wheel.name} ({wheel.stat().st_size / 1024:.0f} KB)" for wheel in wheels)
    return f"as they should be{', twice' if twice else ''}: {sizes}"


def main() -> None:
    if not set(sys.argv[1:]) <= {"--twice"}:
        sys.exit(__doc__)
    try:
        print(f"build_macos_wheels: {check('--twice' in sys.argv)}")
    except UnreachableRegistry as reason:
        print(f"build_macos_wheels: SKIPPED, the package registry cannot be reached: {reason}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"build_macos_wheels: {error.stderr}")


if __name__ == "__main__":
    main()
