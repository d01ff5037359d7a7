"""Files of weights: .npz and .safetensors, read and written through numpy.

Nothing in a file is trusted: any inconsistency is a ValueError that names the file and the fault.
"""

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .state import Arrays, to_numpy

# safetensors' names of dtypes, as numpy's; bfloat16 is read as 16-bit integers and widened.
SAFETENSORS = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
FILES = (".npz", ".safetensors")
# The format's limit: a larger header is invalid.
MOST_HEADER = 100_000_000


def _kind(path: Path, face: str, more: str = "") -> str:
    if path.suffix not in FILES:
        raise ValueError(f"{face}: a file of weights ends in {' or '.join(FILES)}{more}; got {path.name!r}")
    return path.suffix


def broken(path: Any, why: object) -> ValueError:
    """The error for a file that cannot be read; ``why``: in words, or the exception of its reader."""
    path = Path(path)
    reason = f"{type(why).__name__}: {why}".split("\n")[0][:200] if isinstance(why, Exception) else str(why)
    return ValueError(f"load_weights: {path.name} is no {path.suffix} file, or not all of it is there ({reason})")


def read(path: Any, more: str = "") -> Arrays:
    """The arrays of an .npz or .safetensors file. more: other formats that the caller reads, for the message."""
    path = Path(path)
    return _read_npz(path) if _kind(path, "load_weights", more) == ".npz" else _read_safetensors(path)


def write(path: Any, arrays: Mapping[str, Any]) -> None:
    """``arrays`` of any framework as an .npz or .safetensors file; bfloat16 becomes float32."""
    import numpy

    path = Path(path)
    kind = _kind(path, "save_weights")
    plain = {name: to_numpy(name, array, "save_weights") for name, array in arrays.items()}
    if kind == ".npz":
        numpy.savez(path, **plain)
        return
    names = {kind: name for name, kind in SAFETENSORS.items() if name != "BF16"}
    header, blobs, end = {}, [], 0
    for name, array in plain.items():
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        start, end = end, end + array.nbytes
        if array.dtype.str not in names:
            raise TypeError(f"save_weights: .safetensors files hold no {array.dtype}, which {name} is")
        header[name] = {"dtype": names[array.dtype.str], "shape": list(array.shape), "data_offsets": [start, end]}
        blobs.append(array.tobytes())
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(b"".join([len(text).to_bytes(8, "little"), text, *blobs]))


def _widened(bits: Any) -> Any:
    """bfloat16, given as 16-bit integers, as float32."""
    return (bits.astype("<u4") << 16).view("<f4")


def _read_npz(path: Path) -> Arrays:
    """A file of numpy or MLX, which writes bfloat16 as two untyped bytes."""
    import numpy

    try:
        with numpy.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError, AttributeError) as error:
        raise broken(path, error) from error
    return {name: _widened(array.view("<u2")) if array.dtype.str == "|V2" else array for name, array in found.items()}


def _read_safetensors(path: Path) -> Arrays:
    """A .safetensors file: the length of a JSON header in 8 bytes, the header, and the arrays' bytes."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 + length or length > MOST_HEADER:
        raise broken(path, f"its header should have {length} bytes, the file has {len(content)}")
    try:
        header = json.loads(content[8 : 8 + length])
    except (ValueError, RecursionError) as error:  # for text that is not JSON, or not UTF-8
        raise broken(path, error) from error
    if not isinstance(header, dict):
        raise broken(path, "its header is no table of arrays")
    data = memoryview(content)[8 + length :]
    return {name: _array(path, name, entry, data) for name, entry in header.items() if name != "__metadata__"}


def _array(path: Path, name: str, entry: Any, data: memoryview) -> Any:
    """One array of a .safetensors file."""
    import numpy

    keys = ("dtype", "shape", "data_offsets")
    given: list[Any] = [entry.get(key) if isinstance(entry, dict) else None for key in keys]
    kind, shape, offsets = given
    if not isinstance(kind, str) or not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise broken(path, f"{name} has no dtype, shape and data_offsets")
    start, end = offsets
    if kind not in SAFETENSORS:
        raise ValueError(
            f"load_weights: {path.name} has {name} in {kind}; dtypes that are read: {', '.join(SAFETENSORS)}"
        )
    size = math.prod(shape) * numpy.dtype(SAFETENSORS[kind]).itemsize
    if not start <= end <= len(data) or end - start != size:
        raise broken(
            path, f"{name} of shape {shape} in {kind} needs {size} bytes; it lies at {start} to {end} of {len(data)}"
        )
    array = numpy.frombuffer(data[start:end], SAFETENSORS[kind])
    return (_widened(array) if kind == "BF16" else array).reshape(shape)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 63 for size in value)
