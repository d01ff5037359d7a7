"""The error for a file of weights that cannot be read."""

import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

# What the readers of .npz and torch's files raise for one that is damaged or contains more than weights.
UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,  # for a shape that the data cannot have
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def broken(path: Any, why: object) -> ValueError:
    """The error that names the file and the fault; ``why``: in words, or the exception of the file's reader."""
    path = Path(path)
    reason = f"{type(why).__name__}: {why}".split("\n")[0][:200] if isinstance(why, Exception) else str(why)
    return ValueError(f"load_weights: {path.name} is not a {path.suffix} file, or is incomplete ({reason})")
