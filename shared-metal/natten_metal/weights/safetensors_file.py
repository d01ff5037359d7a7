"""The .safetensors format: 8 bytes with the length of a JSON header, the header, and the arrays' bytes.

Source of the format: the safetensors library's description of it. Nothing in a file is trusted. These are the rules,
and a file that breaks one is a ValueError that names the file and the rule:

- the header is complete, UTF-8 and JSON: one table, no name twice, only strings in ``__metadata__``;
- each array has a dtype that numpy can hold, a shape of sizes and two offsets that enclose exactly its bytes;
- arrays are contiguous: no byte belongs to two of them, or to none.

Where the safetensors library is installed, it must accept the file too. It does not read the arrays: it has
no bfloat16 for numpy, and makes a copy, where the mapped file serves as the arrays' memory.
"""

import json
import math
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .faults import broken
from .state import Arrays, widened

# The format's names of dtypes, as numpy's; bfloat16 is read as 16-bit integers and widened.
DTYPES = {
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
METADATA = "__metadata__"
# The format's limit: a larger header is invalid.
MAX_HEADER = 100_000_000


def read(path: Path) -> Arrays:
    """The arrays of a file, in its own memory: private to this process, read from disk when they are used.

    A program that shortens the file while its arrays are in use kills this process, as with every mapped file.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 + length or length > MAX_HEADER:
            raise broken(path, f"its header should have {length} bytes, the file has {size}")
        entries = _entries(path, file.read(length), size - 8 - length)
        _ask_library(path)
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return {name: _array(path, name, entry, content, 8 + length) for name, entry in entries.items()}


def write(path: Path, arrays: Arrays) -> None:
    """Numpy's arrays as a file, in the order given."""
    names = {kind: name for name, kind in DTYPES.items() if name != "BF16"}
    header, end = {}, 0
    for name, array in arrays.items():
        kind = array.dtype.newbyteorder("<").str
        if kind not in names:
            raise TypeError(f"save_weights: .safetensors files hold no {array.dtype}, which {name} is")
        start, end = end, end + array.nbytes
        header[name] = {"dtype": names[kind], "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())


def _ask_library(path: Path) -> None:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        return
    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise broken(path, error) from error


def _entries(path: Path, text: bytes, room: int) -> dict[str, Any]:
    """The header's entries by name, each checked by itself, and all of them for gaps and overlaps."""
    try:
        header = json.loads(text.decode(), object_pairs_hook=_table, parse_int=_size, parse_constant=_no_json)
    except (ValueError, RecursionError) as error:
        raise broken(path, error) from error
    if not isinstance(header, dict):
        raise broken(path, "its header is not a table of arrays")
    metadata = header.pop(METADATA, None)
    table = {} if metadata is None else metadata
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise broken(path, f"{METADATA} is not a table of strings")
    extents = sorted((*_extent(path, name, entry, room), name) for name, entry in header.items())
    covered = 0
    for start, end, name in extents:
        if start != covered:
            fault = "overlaps the array before it" if start < covered else "leaves a gap before it"
            raise broken(path, f"{name} at {start} to {end} {fault}, which should end there and ends at {covered}")
        covered = end
    if covered != room:
        raise broken(path, f"its arrays end at {covered}, its data at {room}")
    return header


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name occurs twice in its header")
    "".join(table).encode()  # half a surrogate pair is no text: UnicodeEncodeError, which is a ValueError
    return table


def _size(digits: str) -> int:
    return int(digits) if digits.isdigit() else -1  # -0 is no size either


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _extent(path: Path, name: str, entry: Any, room: int) -> tuple[int, int]:
    """Where an array begins and ends in the data."""
    import numpy

    keys = ("dtype", "shape", "data_offsets")
    given: list[Any] = [entry.get(key) if isinstance(entry, dict) else None for key in keys]
    kind, shape, offsets = given
    if not isinstance(kind, str) or not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise broken(path, f"{name} has no dtype, shape and data_offsets")
    if kind not in DTYPES:
        raise ValueError(f"load_weights: {path.name} has {name} in {kind}; dtypes that are read: {', '.join(DTYPES)}")
    start, end = offsets
    size = math.prod(shape) * numpy.dtype(DTYPES[kind]).itemsize
    if not start <= end <= room or end - start != size:
        raise broken(
            path, f"{name} of shape {shape} in {kind} needs {size} bytes; it lies at {start} to {end} of {room}"
        )
    return start, end


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 63 for size in value)


def _array(path: Path, name: str, entry: Mapping[str, Any], content: mmap.mmap, data: int) -> Any:
    import numpy

    kind, offset = entry["dtype"], data + entry["data_offsets"][0]
    try:
        array = numpy.ndarray(entry["shape"], DTYPES[kind], content, offset)
    except ValueError as error:  # more axes than numpy has, or sizes next to a zero that it cannot multiply
        raise broken(path, f"{name}: {error}") from error
    if kind == "BF16":
        return widened(array)
    return array if array.flags.aligned else array.copy()
