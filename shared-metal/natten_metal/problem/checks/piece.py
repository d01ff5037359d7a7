"""The rules of a piece: a call that computes a part of a larger problem, and ranges of tokens on its axes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..interval import column_span
from ..problem import RANKS, Piece, Problem
from .arguments import is_int, per_axis_ints, reject_type, shown

Range = tuple[int, int]


def piece_arguments(face: str, rank: int, full_shape: Any, query_start: Any, key_start: Any) -> Piece | None:
    """The three arguments, one entry per axis each, types checked; None for a whole problem."""
    starts = {"query_start": query_start, "key_start": key_start}
    given = {name: per_axis_ints(face, name, value, rank) for name, value in starts.items()}
    if full_shape is not None:
        return Piece(per_axis_ints(face, "full_shape", full_shape, rank), **given)
    for name, values in given.items():
        if any(values):
            raise ValueError(
                f"{face}: query_start and key_start need full_shape, the size of the whole problem; "
                f"got {name} {values} without it"
            )
    return None


def checked_piece(face: str, problem: Problem) -> Problem:
    """``problem``, without its piece if that is the whole; ValueError if a key that a query attends to is missing.

    The window is known to be legal.
    """
    piece = problem.piece
    if piece is None:
        return problem
    sides = (("query", piece.query_start, problem.query_shape), ("key", piece.key_start, problem.key_shape))
    for name, starts, lengths in sides:
        for axis, (start, length, full) in enumerate(zip(starts, lengths, piece.full_shape, strict=True)):
            if start < 0:
                raise ValueError(f"{face}: {name}_start must not be negative; axis {axis} has {start}")
            if start + length > full:
                raise ValueError(
                    f"{face}: {name}_start + {name} length must not exceed full_shape; "
                    f"axis {axis} has {start} + {length} = {start + length} > {full}"
                )
    if problem.query_shape == problem.key_shape == piece.full_shape:
        return replace(problem, piece=None)
    for axis, sizes in enumerate(problem.axes):
        low, high = column_span(sizes, False)
        first, last = sizes.key_start, sizes.key_start + sizes.keys
        if low < first or high > last:
            raise ValueError(
                f"{face}: every key that a query attends to must be given; on axis {axis}, queries "
                f"{sizes.query_start}..{sizes.query_start + sizes.queries - 1} of {sizes.full} attend to keys "
                f"{low}..{high - 1}; got keys {first}..{last - 1}"
            )
    return problem


def axis_ranges(face: str, name: str, value: Any, full_shape: tuple[int, ...]) -> tuple[Range, ...]:
    """``[low, high)`` on each axis; for one axis, the pair alone is enough."""
    rank = len(full_shape)
    if rank == 1 and isinstance(value, Sequence) and len(value) == 2 and all(map(is_int, value)):
        value = (value,)
    if not isinstance(value, Sequence) or len(value) != rank or not all(map(_is_pair, value)):
        reject_type(face, name, value, f"a sequence of {rank} pairs (low, high) of ints")
    for axis, ((low, high), full) in enumerate(zip(value, full_shape, strict=True)):
        if not 0 <= low <= high <= full:
            raise ValueError(
                f"{face}: {name} must lie within its axis, 0 <= low <= high <= length; "
                f"axis {axis} has ({shown(low)}, {shown(high)}) and length {full}"
            )
    return tuple((int(low), int(high)) for low, high in value)


def _is_pair(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 2 and all(map(is_int, value))


def axes_of(face: str, full_shape: Any) -> tuple[int, ...]:
    """``full_shape`` as one int per axis, where nothing else tells the rank; an int is one axis."""
    rank = len(full_shape) if isinstance(full_shape, Sequence) and not isinstance(full_shape, str) else 1
    if rank not in RANKS:
        raise ValueError(f"{face}: full_shape must have 1, 2 or 3 axes; got {shown(tuple(full_shape))}")
    return per_axis_ints(face, "full_shape", full_shape, rank)
