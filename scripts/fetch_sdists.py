"""Fetch NATTEN's source distributions from the package index and unpack them.

    scripts/fetch_sdists.py FOLDER PIP...        # PIP: the command that runs pip, with its first arguments

pip asks a source distribution's build backend for metadata before it keeps it, and NATTEN's wants torch and CUDA. So
pip is told to build without isolation, and finds a stand-in for the backend, which answers from the PKG-INFO inside.
Prints the unpacked folders. Nothing in them is run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

RELEASES = (
    "0.14.4",
    "0.14.5",
    "0.14.6",
    "0.15.0",
    "0.15.1",
    "0.17.0",
    "0.17.1",
    "0.17.3",
    "0.17.4",
    "0.17.5",
    "0.20.0",
    "0.20.1",
    "0.21.0",
    "0.21.1",
    "0.21.5",
    "0.21.6",
    "0.21.7",
)
BACKEND = """
from pathlib import Path
from types import SimpleNamespace

def get_requires_for_build_wheel(config_settings=None):
    return []

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    text = Path("PKG-INFO").read_text()
    version = next(line.split()[1] for line in text.splitlines() if line.startswith("Version:"))
    folder = Path(metadata_directory, f"natten-{version}.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_text(text)
    return folder.name

__legacy__ = SimpleNamespace(
    get_requires_for_build_wheel=get_requires_for_build_wheel,
    prepare_metadata_for_build_wheel=prepare_metadata_for_build_wheel,
)
"""


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    folder, pip = Path(sys.argv[1]), sys.argv[2:]
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--use-pep517"]
    with tempfile.TemporaryDirectory() as stand_in:
        for package in ("setuptools", "wheel"):
            Path(stand_in, package).mkdir()
            Path(stand_in, package, "__init__.py").touch()
        Path(stand_in, "setuptools", "build_meta.py").write_text(BACKEND)
        environment = os.environ | {"PYTHONPATH": stand_in}
        for release in RELEASES:
            if (folder / f"natten-{release}").is_dir():
                continue
            print(f"fetching NATTEN {release}", file=sys.stderr)
            command = [*pip, "download", *options, "--dest", str(folder), f"natten=={release}"]
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
            with tarfile.open(folder / f"natten-{release}.tar.gz") as archive:
                archive.extractall(folder, filter="data")
    print(*(folder / f"natten-{release}" for release in RELEASES), sep="\n")


if __name__ == "__main__":
    main()
