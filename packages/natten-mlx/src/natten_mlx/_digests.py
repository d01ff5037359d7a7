"""Digests of the C++ extension's sources: compiled into it, and compared with the sources installed here.

The build runs this file, which prints both digests; the package imports it. Needs neither MLX nor the package.
"""

import hashlib
import os
from pathlib import Path

_HERE = Path(__file__).resolve().parent
KERNELS = _HERE / "_metal/metal/kernels"
# Only a checkout and an sdist have it.
SOURCES = _HERE.parents[1] / "csrc"
_SUFFIXES = (".h", ".cpp", ".txt")


def kernels_digest() -> str:
    """Digest of the kernel sources in the package: the text that a GPU compiles, and the window arithmetic."""
    return _digest(KERNELS)


def sources_digest() -> str | None:
    """Digest of the C++ sources, including those of the CPU kernels; None where the package came without."""
    return _digest(SOURCES) if SOURCES.exists() else None


def _digest(folder: Path) -> str:
    """Digest of the names and contents of a folder's sources, in order."""
    whole = hashlib.sha256()
    for path in sorted(_files(folder), key=str):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        whole.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return whole.hexdigest()


def _files(folder: Path) -> list[Path]:
    # Its folders may be symlinks.
    walk = os.walk(folder, followlinks=True)
    return [Path(root) / name for root, _, names in walk for name in names if name.endswith(_SUFFIXES)]


if __name__ == "__main__":
    print(kernels_digest(), sources_digest(), sep=";")
