"""The rules of problems larger than memory: their arrays, their memory budget, and the journal of what is done."""

import re
from typing import Any, NoReturn

from .arguments import count, is_int, reject_type, shown

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]?i?)b?", re.IGNORECASE | re.ASCII)


def memory_bytes(face: str, memory: Any) -> int:
    """A budget in bytes: an int, or a text such as '300 MB' (10**6 bytes each) or '2 GiB' (2**30)."""
    if not isinstance(memory, str):
        if not is_int(memory):
            reject_type(face, "memory", memory, "an int or a text such as '300 MB' or '2 GiB'")
        return count(face, "memory", memory)
    found = _AMOUNT.fullmatch(memory.strip())
    unit = None if found is None else _UNITS.get(found[2].lower())
    if found is None or unit is None:
        raise ValueError(
            f"{face}: memory must be a number of bytes or a text such as '300 MB' or '2 GiB'; got {shown(memory)}"
        )
    return count(face, "memory", int(float(found[1]) * unit))


def reject_memory(face: str, budget: int, smallest: int) -> NoReturn:
    """ValueError: not even one query fits."""
    raise ValueError(
        f"{face}: memory must hold the smallest slab, which is one query with its window; that takes {smallest} bytes; "
        f"got {budget}"
    )


# --- arrays ------------------------------------------------------------------------------------------


def reject_array(face: str, name: str, value: Any) -> NoReturn:
    """TypeError: neither an array nor the path of one."""
    reject_type(face, name, value, "a numpy array, a tensor of this package's framework or the path of a .npy file")


def numpy_dtype(face: str, name: str, dtype: Any) -> str:
    """The name of a numpy dtype, ml_dtypes' 'bfloat16' included."""
    if not dtype.isnative:
        raise TypeError(f"{face}: {name} must have this machine's byte order; got {dtype.str}")
    found: str = dtype.name
    if found == "void16":  # how numpy reads a .npy file of ml_dtypes' bfloat16
        raise TypeError(
            f"{face}: {name} has 2-byte elements of no known dtype; numpy has no bfloat16: view the array as "
            "ml_dtypes.bfloat16, or give a tensor"
        )
    return found


def reject_device(face: str, name: str, device: str) -> NoReturn:
    """ValueError: slabs are moved to the device one by one, so the whole tensor must not be there already."""
    raise ValueError(f"{face}: {name} must be on the CPU, where slabs are read from; got a tensor on {device}")


def npy_path(face: str, name: str, path: Any) -> None:
    """ValueError unless a path names a file of numpy's own format."""
    if path.suffix != ".npy":
        raise ValueError(f"{face}: {name} must be the path of a .npy file, or an array; got {path.name!r}")


def reject_bfloat16_file(face: str, name: str) -> NoReturn:
    """TypeError: the .npy format has no bfloat16."""
    raise TypeError(
        f"{face}: {name} would be a .npy file of bfloat16, which numpy does not have; give {name} as a writable "
        "tensor, or as an array of ml_dtypes.bfloat16"
    )


def check_output(face: str, name: str, found: Any, wanted: Any, writable: bool) -> None:
    """The rules of an array for results. found, wanted: the specs of the array and of the result."""
    if found.shape != wanted.shape:
        raise ValueError(f"{face}: {name} must have the result's shape {wanted.shape}; got {found.shape}")
    if found.dtype != wanted.dtype:
        raise TypeError(f"{face}: {name} must have the result's dtype {wanted.dtype}; got {found.dtype}")
    if not writable:
        raise ValueError(f"{face}: {name} must be writable; got a read-only array")


def reject_overwriting(face: str, name: str, other: str, path: Any) -> NoReturn:
    """ValueError: a result in a file that is still read, or that holds the other result."""
    raise ValueError(f"{face}: {name} and {other} must be different files; got {path.name!r} for both")


def cut_short(face: str, name: str, path: Any) -> ValueError:
    """The error for a file that ends before its array does."""
    return ValueError(f"{face}: {name} is truncated: {path.name!r} ends before its array does")


# --- journals ----------------------------------------------------------------------------------------


def reject_journal(face: str, path: Any, differences: dict[str, tuple[Any, Any]]) -> NoReturn:
    """ValueError: the journal of another call. differences: what it says and what this call says, by name."""
    words = "; ".join(f"{name} was {shown(was)} and is {shown(now)}" for name, (was, now) in differences.items())
    raise ValueError(
        f"{face}: {path.name!r} is the journal of another call, whose results are in the same file: {words}. Repeat "
        "that call to continue it, or delete the journal to start over"
    )


def reject_journal_file(face: str, path: Any, why: str) -> NoReturn:
    """ValueError: a file in the journal's place that is none."""
    raise ValueError(f"{face}: {path.name!r} is not a journal of this function ({why}); delete it to start over")


def reject_smaller_budget(face: str, path: Any, needed: int, budget: int) -> NoReturn:
    """ValueError: the slabs of an interrupted call no longer fit."""
    raise ValueError(
        f"{face}: memory must hold the slabs that {path.name!r} was begun with, which take {needed} bytes; got "
        f"{budget}. Allow that much, or delete the journal to start over"
    )
