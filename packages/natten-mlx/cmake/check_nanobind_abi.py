"""Prints the version of nanobind's internals, e.g. 22; fails unless it is the one inside MLX's own wheel.

Two extensions can exchange C++ objects, here mx.array, only if these versions are equal; otherwise every call would be
a TypeError.

usage: check_nanobind_abi.py [--mlx FOLDER] [--nanobind FOLDER]     (default: the packages that this Python imports)
"""

import argparse
import importlib.util
import re
import sys
from pathlib import Path


def folder_of(package: str) -> Path:
    """The folder of a package, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        sys.exit(f"{package} is not installed for {sys.executable}")
    return Path(next(iter(found.submodule_search_locations)))


def version_inside(mlx: Path) -> str:
    """The version in the ABI tag that MLX's compiled module carries."""
    modules = sorted(mlx.glob("core*.so"))
    if not modules:
        sys.exit(f"no compiled module core*.so in {mlx}")
    found = re.search(rb"nanobind_system_\w+_v(\d+)\w*\x00", modules[0].read_bytes())
    if found is None:
        sys.exit(f"no nanobind ABI tag in {modules[0]}")
    return found[1].decode()


def version_of(nanobind: Path) -> str:
    """The version that nanobind's headers define."""
    header = nanobind / "src" / "nb_internals.h"
    found = re.search(r"define\s+NB_INTERNALS_VERSION\s+(\d+)", header.read_text())
    if found is None:
        sys.exit(f"no NB_INTERNALS_VERSION in {header}")
    return found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mlx", type=Path)
    parser.add_argument("--nanobind", type=Path)
    arguments = parser.parse_args()
    theirs = version_inside(arguments.mlx or folder_of("mlx"))
    ours = version_of(arguments.nanobind or folder_of("nanobind"))
    if ours != theirs:
        sys.exit(
            f"this nanobind has internals v{ours}, the MLX wheel was built with v{theirs}: "
            "build with the nanobind release that MLX used"
        )
    print(ours)


if __name__ == "__main__":
    main()
