"""Lays out the folder that natten-mlx's extensions are built from, for a wheel with one per supported release of MLX.

    mlx-VERSION/      mlx/ and nanobind/, as requirements/mlx-VERSION.txt pins them
    python-SUFFIX/    the headers of a Python; SUFFIX as in the names of its extensions, e.g. cpython-312-darwin

The releases are the dependency groups `mlx-VERSION` of pyproject.toml. Extensions for those whose nanobind is older
than 3 are built for each version of Python by itself; a Python that is not found here is left out, which is said,
unless --every-python has uv install it. The CMakeLists.txt of natten-mlx takes the folder from NATTEN_MLX_RELEASES.

usage: mlx_releases.py [--every-python] [--macos]     prints the folder; --macos: for a build for macOS, elsewhere
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from registry import ROOT, uv

FOLDER = ROOT / "build" / "mlx-releases"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACOS = ("--python-platform", "aarch64-apple-darwin")
# What the wheels of MLX for macOS ask for; uv assumes an older one.
DEPLOYMENT_TARGET = "14.0"
TOLD = "import json, sysconfig as s; print(json.dumps([s.get_config_var('SOABI'), s.get_path('include')]))"


def releases() -> list[str]:
    """The supported releases of MLX, newest first."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    return [name.removeprefix("mlx-") for name in groups if name.startswith("mlx-")]


def fetch(release: str, macos: bool, folder: Path) -> None:
    """One release and its nanobind into ``folder``, unless they are there."""
    pins = ROOT / "requirements" / f"mlx-{release}.txt"
    stamp = folder / "fetched.txt"
    if stamp.exists() and stamp.read_text() == pins.read_text():
        return
    shutil.rmtree(folder, ignore_errors=True)
    options = (
        "--quiet",
        "--no-config",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--require-hashes",
        "--python",
        sys.executable,
    )
    platform = MACOS if macos else ()
    target = {"MACOSX_DEPLOYMENT_TARGET": DEPLOYMENT_TARGET} if macos else {}
    uv("pip", "install", *options, *platform, "--target", folder, "--requirements", pins, **target)
    stamp.write_text(pins.read_text())


def headers(python: str) -> tuple[str, Path] | None:
    """The suffix of a Python's extensions and its headers; None if there is no such Python here."""
    try:
        found = uv("python", "find", "--no-project", "--no-python-downloads", python).strip()
        suffix, include = json.loads(subprocess.run([found, "-c", TOLD], capture_output=True, check=True).stdout)
    except subprocess.CalledProcessError:
        return None
    return (suffix, Path(include)) if (Path(include) / "Python.h").exists() else None


def link_headers(folder: Path, macos: bool, every: bool) -> None:
    """A link to the headers of each Python that is here."""
    if every:
        uv("python", "install", "--no-bin", *PYTHONS)
    for python in PYTHONS:
        found = headers(python)
        if found is None:
            words = f"mlx_releases: no headers of Python {python} here"
            if every:
                sys.exit(words)
            print(f"{words}: without its extensions for releases of MLX with nanobind 2", file=sys.stderr)
            continue
        suffix = re.sub(r"(cpython-\d+).*", r"\1-darwin", found[0]) if macos else found[0]
        (folder / f"python-{suffix}").symlink_to(found[1])


def lay_out(macos: bool = False, every: bool = False) -> Path:
    """The folder, complete. UnreachableRegistry, or CalledProcessError of uv, where a release cannot be fetched."""
    folder = FOLDER / ("macos" if macos else sys.platform)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = releases()
    for left in folder.iterdir():
        if left.is_symlink():
            left.unlink()
        elif left.name.removeprefix("mlx-") not in wanted:
            shutil.rmtree(left)
    for release in wanted:
        fetch(release, macos, folder / f"mlx-{release}")
    link_headers(folder, macos, every)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every-python", action="store_true")
    parser.add_argument("--macos", action="store_true")
    arguments = parser.parse_args()
    try:
        print(lay_out(arguments.macos, arguments.every_python))
    except subprocess.CalledProcessError as error:
        sys.exit(f"mlx_releases: {error.stderr}")


if __name__ == "__main__":
    main()
