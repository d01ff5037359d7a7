"""Single values among an op's arguments: how they are recognised, and how they are shown when rejected.

Users may pass anything of any size, so nothing here relies on how a value prints.
"""

import math
import numbers
from collections.abc import Sequence
from typing import Any, NoReturn

# How much of a long string or list a message shows: characters, and items of each list.
_MAX_SHOWN = 120, 8
# Bits of the largest size; Python refuses to print integers of more than 4300 digits.
_WORD = 63


def shown(value: object) -> str:
    """``value`` in a message: plain values as Python writes them, anything else by its type."""
    if isinstance(value, int) and value.bit_length() > _WORD:
        return f"an int of {value.bit_length()} bits"
    if isinstance(value, (list, tuple)):
        items = [shown(item) for item in value[: _MAX_SHOWN[1]]] + ["..."] * (len(value) > _MAX_SHOWN[1])
        text = _cut(", ".join(items))
        return f"[{text}]" if isinstance(value, list) else f"({text},)" if len(value) == 1 else f"({text})"
    if isinstance(value, str):
        return repr(_cut(value))
    return repr(value) if isinstance(value, (bool, int, float, type(None))) else type(value).__name__


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN[0] else text[: _MAX_SHOWN[0]] + "..."


def reject_type(face: str, name: str, value: object, wanted: str) -> NoReturn:
    """TypeError: ``name`` is not what the op expects."""
    found = type(value).__name__ if wanted.startswith("a tensor") else shown(value)
    raise TypeError(f"{face}: {name} must be {wanted}; got {found}")


def is_int(value: object) -> bool:
    """Whether ``value`` is an integer of Python or numpy; bools are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_bool(value: object) -> bool:
    """Whether ``value`` is a bool of Python or numpy."""
    return isinstance(value, bool) or (type(value).__module__, type(value).__name__) in (
        ("numpy", "bool"),
        ("numpy", "bool_"),
    )


def _sized(face: str, name: str, value: Any) -> int:
    if not -(1 << _WORD) <= value < 1 << _WORD:
        raise ValueError(f"{face}: {name} must fit 64 bits; got {shown(int(value))}")
    return int(value)


def _per_axis(face: str, name: str, value: Any, rank: int, kind: str) -> tuple[Any, ...]:
    accept = is_int if kind == "int" else is_bool
    if accept(value):
        value = (value,) * rank
    listed = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    if not listed or not all(accept(item) for item in value):
        article = "an" if kind == "int" else "a"
        reject_type(face, name, value, f"{article} {kind} or a sequence of {rank} {kind}s")
    if len(value) != rank:
        raise ValueError(f"{face}: {name} must have one entry per axis ({rank}); got {shown(tuple(value))}")
    return tuple(_sized(face, name, item) if kind == "int" else bool(item) for item in value)


def per_axis_ints(face: str, name: str, value: Any, rank: int) -> tuple[int, ...]:
    """``value`` as one int per axis; an int stands for all axes (never a bool, nor None)."""
    return _per_axis(face, name, value, rank, "int")


def ints_per_axis(face: str, name: str, value: Any, rank: int) -> tuple[int, ...]:
    """``value`` as one int per axis; an int stands for all axes, None for 1 (never a bool)."""
    if value is None and name != "kernel_size":
        return (1,) * rank
    return _per_axis(face, name, value, rank, "int")


def bools_per_axis(face: str, name: str, value: Any, rank: int) -> tuple[bool, ...]:
    """``value`` as one bool per axis; a bool stands for all axes, None for False (never an int)."""
    return _per_axis(face, name, False if value is None else value, rank, "bool")


def flag(face: str, name: str, value: Any) -> bool:
    """``value`` as a bool; an int is not one."""
    if not is_bool(value):
        reject_type(face, name, value, "a bool")
    return bool(value)


def count(face: str, name: str, value: Any) -> int:
    """``value`` as an int of at least 1; bools and floats are rejected."""
    if not is_int(value):
        reject_type(face, name, value, "an int")
    if value < 1:
        raise ValueError(f"{face}: {name} must be at least 1; got {shown(int(value))}")
    return _sized(face, name, value)


def number(face: str, name: str, value: Any, wanted: str = "a number") -> float:
    """``value`` as a finite float."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        reject_type(face, name, value, wanted)
    try:
        found = float(value)
    except OverflowError:
        raise ValueError(f"{face}: {name} must be finite; got a number beyond the range of floats") from None
    if not abs(found) < math.inf:  # nor NaN; torch.compile cannot follow math.isfinite
        raise ValueError(f"{face}: {name} must be finite; got {value}")
    return found


def probability(face: str, name: str, value: Any) -> float:
    """``value`` as a dropout probability in [0, 1)."""
    found = number(face, name, value)
    if not 0 <= found < 1:
        raise ValueError(f"{face}: {name} must be at least 0 and below 1; got {found}")
    return found


def scale_or_default(face: str, scale: Any, head_dim: int, name: str = "scale") -> float:
    """The factor of q.k: ``head_dim ** -0.5`` for None; 0.0 means 0.0."""
    if scale is None:
        return float(head_dim) ** -0.5 if head_dim else 1.0
    return number(face, name, scale, "a number or None")
