"""Files of weights: .npz and .safetensors, read and written through numpy.

Nothing in a file is trusted: any inconsistency is a ValueError that names the file and the fault.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import safetensors_file
from .faults import UNREADABLE, broken
from .state import Arrays, to_numpy, widened

FILES = (".npz", ".safetensors")


def _kind(path: Path, face: str, more: str = "") -> str:
    if path.suffix not in FILES:
        raise ValueError(f"{face}: a file of weights ends in {' or '.join(FILES)}{more}; got {path.name!r}")
    return path.suffix


def read(path: Any, more: str = "") -> Arrays:
    """The arrays of an .npz or .safetensors file. more: other formats that the caller reads, for the message."""
    path = Path(path)
    return _read_npz(path) if _kind(path, "load_weights", more) == ".npz" else safetensors_file.read(path)


def write(path: Any, arrays: Mapping[str, Any]) -> None:
    """``arrays`` of any framework as an .npz or .safetensors file; bfloat16 becomes float32."""
    import numpy

    path = Path(path)
    kind = _kind(path, "save_weights")
    plain = {name: to_numpy(name, array, "save_weights") for name, array in arrays.items()}
    if kind == ".npz":
        numpy.savez(path, **plain)
    else:
        safetensors_file.write(path, plain)


def _read_npz(path: Path) -> Arrays:
    """A file of numpy or MLX, which writes bfloat16 as two untyped bytes."""
    import numpy

    with path.open("rb") as content:
        try:
            with numpy.load(content, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
        except UNREADABLE as error:
            raise broken(path, error) from error
    return {name: widened(array.view("<u2")) if array.dtype.str == "|V2" else array for name, array in found.items()}
