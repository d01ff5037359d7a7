"""What CMake needs to know about a release of MLX and the nanobind that goes with it, as one CMake list:

    MLX's version; the version of nanobind's internals, e.g. 22; the folder of MLX; the folder of nanobind

Fails unless nanobind's internals are those inside MLX's own wheel: only then can the extension and MLX exchange C++
objects, here mx.array; otherwise every call would be a TypeError.

usage: mlx_release.py [FOLDER]     (a folder with both; default: the packages that this Python imports)
       mlx_release.py --nanobind   the release of nanobind that goes with the MLX that this Python imports; nothing
                                   if there can be no extension for that one
"""

import argparse
import importlib.util
import re
import sys
from pathlib import Path

# The oldest release of MLX that the extension's tests pass on. In 0.31.0, a problem that a kernel refuses while it
# computes ends the process.
OLDEST = (0, 32, 2)
# The last release of nanobind with internals of each version.
NANOBIND = {"17": "2.10.2", "18": "2.11.0", "19": "2.12.0", "20": "2.14.0", "21": "2.15.0", "22": "3.1.0"}


def folder_of(package: str, inside: Path | None) -> Path:
    """The folder of a package, without importing it."""
    if inside is not None:
        return inside / package
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        sys.exit(f"{package} is not installed for {sys.executable}")
    return Path(next(iter(found.submodule_search_locations)))


def version_of(mlx: Path) -> str:
    """MLX's own version, as its headers give it."""
    header = mlx / "include" / "mlx" / "version.h"
    found = re.findall(r"define MLX_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", header.read_text() if header.exists() else "")
    if len(found) != 3:
        sys.exit(f"no version of MLX in {header}: on Linux, mlx[cpu] has the headers, mlx alone does not")
    return ".".join(found)


def internals_inside(mlx: Path) -> str:
    """The version of nanobind's internals in the ABI tag that MLX's compiled module carries."""
    modules = sorted(mlx.glob("core*.so"))
    if not modules:
        sys.exit(f"no compiled module core*.so in {mlx}")
    # Up to nanobind 2, the version precedes the rest of the tag; since nanobind 3, it follows it.
    found = re.search(rb"\bv(\d+)_system_\w+|nanobind_system_\w+_v(\d+)\w*\x00", modules[0].read_bytes())
    if found is None:
        sys.exit(f"no nanobind ABI tag in {modules[0]}")
    return (found[1] or found[2]).decode()


def internals_of(nanobind: Path) -> str:
    """The version that nanobind's headers define."""
    headers = [nanobind / "src" / name for name in ("nb_internals.h", "nb_abi.h")]
    text = "".join(header.read_text() for header in headers if header.exists())
    found = re.search(r"define\s+NB_INTERNALS_VERSION\s+(\d+)", text)
    if found is None:
        sys.exit(f"no NB_INTERNALS_VERSION in {nanobind / 'src'}")
    return found[1]


def goes_with(internals: str) -> str:
    """The release of nanobind to build with; SystemExit if none is known."""
    if internals not in NANOBIND:
        sys.exit(f"MLX was built with a nanobind whose internals, v{internals}, are newer than {__file__} knows")
    return NANOBIND[internals]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--nanobind", action="store_true")
    arguments = parser.parse_args()
    mlx = folder_of("mlx", arguments.folder)
    version = version_of(mlx)
    if tuple(int(part) for part in version.split(".")) < OLDEST:
        said = f"natten-mlx's C++ extension needs MLX {'.'.join(map(str, OLDEST))} or newer, not {version}"
        sys.exit(print(said, file=sys.stderr) if arguments.nanobind else said)
    theirs = internals_inside(mlx)
    if arguments.nanobind:
        print(goes_with(theirs))
        return
    nanobind = folder_of("nanobind", arguments.folder)
    ours = internals_of(nanobind)
    if ours != theirs:
        sys.exit(
            f"this nanobind has internals v{ours}, the MLX wheel was built with v{theirs}: "
            f"build with nanobind=={goes_with(theirs)}"
        )
    print(version, ours, mlx, nanobind, sep=";")


if __name__ == "__main__":
    main()
