"""The rules of packed attention, and where their errors are worded; a part of :mod:`.checks`.

Packed: sequences of different lengths behind one another in one batch item. Sizes and offsets are numbers on the
host here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .arguments import is_int, reject_type
from .problem import TensorSpec

PACKED = ("cumulative_seqlen_Q", "cumulative_seqlen_KV", "max_seqlen_Q", "max_seqlen_KV")
LENGTHS = ("seqlens_Q", "seqlens_KV")


@dataclass(frozen=True, slots=True)
class Span:
    """One packed sequence: where its queries and its keys begin, and how many they are."""

    query: int
    queries: int
    key: int
    keys: int


def packed_items(
    face: str, query: TensorSpec, key: TensorSpec, value: TensorSpec, lengths: tuple[Any, Any], packed: tuple[Any, ...]
) -> tuple[Span, ...] | None:
    """The sequences that a call packs; None if it packs none.

    lengths: seqlens_Q, seqlens_KV. packed: the four arguments of ``PACKED``. Each is None, or numbers on the host.
    """
    if all(given is None for given in (*lengths, *packed)):
        return None
    if any(given is not None for given in lengths):
        _together(face, LENGTHS, lengths)
        if any(given is not None for given in packed):
            raise ValueError(f"{face}: give {' and '.join(LENGTHS)}, or {', '.join(PACKED[:-1])} and {PACKED[-1]}")
        counts = [_lengths(face, name, given) for name, given in zip(LENGTHS, lengths, strict=True)]
        offsets = [cumulative(each) for each in counts]
        names = LENGTHS
    else:
        _together(face, PACKED, packed)
        names = PACKED[:2]
        offsets = [_offsets(face, name, given) for name, given in zip(names, packed[:2], strict=True)]
    _same_number(face, names, offsets)
    for name, spec in (("query", query), ("key", key), ("value", value)):
        if spec.shape[0] != 1:
            raise ValueError(f"{face}: {name} must have one batch item, the packed one; got {spec.shape[0]}")
    for name, each, total in zip(names, offsets, (query.shape[1], key.shape[1]), strict=True):
        if each[-1] > total:
            raise ValueError(f"{face}: {name} must not exceed the packed length {total}; they end at {each[-1]}")
    if names == PACKED[:2]:
        totals = (query.shape[1], key.shape[1])
        for name, longest, each, total in zip(PACKED[2:], packed[2:], offsets, totals, strict=True):
            _longest(face, name, longest, each, total)
    return _spans(*offsets)


def packed_lengths(face: str, batches: tuple[int, ...], lengths: tuple[Any, Any]) -> list[list[int]] | None:
    """The rules of ``generate_varlen_parameters``; batches: of query, key and value. None without lengths."""
    if all(given is None for given in lengths):
        return None
    _together(face, LENGTHS, lengths)
    counts = [_lengths(face, name, given) for name, given in zip(LENGTHS, lengths, strict=True)]
    _same_number(face, LENGTHS, [cumulative(each) for each in counts])
    if set(batches) != {1}:
        raise ValueError(f"{face}: query, key and value must have one batch item, the packed one; got {batches}")
    return counts


def cumulative(lengths: Sequence[int]) -> list[int]:
    """``[n + 1]``: where each sequence begins, and where the last ends."""
    offsets = [0]
    for length in lengths:
        offsets.append(offsets[-1] + length)
    return offsets


def _spans(queries: list[int], keys: list[int]) -> tuple[Span, ...]:
    return tuple(
        Span(queries[i], queries[i + 1] - queries[i], keys[i], keys[i + 1] - keys[i]) for i in range(len(queries) - 1)
    )


def _together(face: str, names: Sequence[str], given: Sequence[Any]) -> None:
    for name, value in zip(names, given, strict=True):
        if value is None:
            raise ValueError(f"{face}: {', '.join(names[:-1])} and {names[-1]} come together; {name} is missing")


def _same_number(face: str, names: Sequence[str], offsets: Sequence[list[int]]) -> None:
    counts = [len(each) - 1 for each in offsets]
    if counts[0] != counts[1]:
        raise ValueError(
            f"{face}: {' and '.join(names)} must hold equally many sequences; got {counts[0]} and {counts[1]}"
        )


def _integers(face: str, name: str, given: Any) -> list[int]:
    if not isinstance(given, (list, tuple)) or not all(is_int(number) for number in given):
        reject_type(face, name, given, "ints of shape (sequences,)" if name in LENGTHS else "ints of shape (n + 1,)")
    return [int(number) for number in given]


def _lengths(face: str, name: str, given: Any) -> list[int]:
    lengths = _integers(face, name, given)
    if not lengths:
        raise ValueError(f"{face}: {name} must hold at least one sequence")
    for item, length in enumerate(lengths):
        if length < 0:
            raise ValueError(f"{face}: {name} must not be negative; item {item} has {length}")
    return lengths


def _offsets(face: str, name: str, given: Any) -> list[int]:
    offsets = _integers(face, name, given)
    if len(offsets) < 2 or offsets[0] != 0:
        raise ValueError(f"{face}: {name} must begin with 0 and hold at least one sequence; got {offsets}")
    for item in range(len(offsets) - 1):
        if offsets[item + 1] < offsets[item]:
            raise ValueError(
                f"{face}: {name} must not decrease; item {item} goes from {offsets[item]} to {offsets[item + 1]}"
            )
    return offsets


def _longest(face: str, name: str, given: Any, offsets: list[int], total: int) -> None:
    if not is_int(given):
        reject_type(face, name, given, "an int")
    longest = max(end - start for start, end in pairwise(offsets))
    if not longest <= given <= total:
        raise ValueError(
            f"{face}: {name} must lie between the longest sequence, {longest}, and the packed length {total}; "
            f"got {given}"
        )
