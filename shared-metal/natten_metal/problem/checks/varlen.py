"""The rules of calls with items of different sizes, and their errors.

Padded: a batch whose items have sizes of their own. Listed: items as tensors of their own. Packed: items concatenated
in one batch item. Each check returns the rows of a :mod:`..ragged` table. Sizes and offsets are Python numbers here; an
error names the item that breaks the rule.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from operator import ge
from typing import Any, NoReturn

from .. import ragged
from ..problem import RANKS, Problem, TensorSpec
from .arguments import ints_per_axis, is_int, reject_type, scale_or_default, shown
from .ops import fused_problem
from .tensors import listed
from .window import Window, check_axes

PACKED = ("cumulative_seqlen_Q", "cumulative_seqlen_KV", "max_seqlen_Q", "max_seqlen_KV")
LENGTHS = ("seqlens_Q", "seqlens_KV")
METADATA = "a dict that configure_varlen made"


def as_numbers(face: str, name: str, given: Any) -> Any:
    """Numbers of any framework as Python numbers in lists, read once; anything else unchanged."""
    if hasattr(given, "tolist"):
        try:
            return given.tolist()
        except (RuntimeError, ValueError):  # what torch and MLX raise for a tensor that has no values yet
            reject_traced(face, name)
    if not isinstance(given, (list, tuple)):
        return given
    return [each if isinstance(each, int) else as_numbers(face, name, each) for each in given]


def reject_traced(face: str, name: str) -> NoReturn:
    """ValueError for sizes that a trace does not know, though they decide what is computed."""
    raise ValueError(
        f"{face}: {name} must be known when the call is made, and a tensor has no values while the call is traced; "
        "give a list of ints"
    )


def _wrong_item(face: str, name: str, wanted: str, item: int, given: Any, error: type[Exception]) -> NoReturn:
    raise error(f"{face}: {name} must be {wanted}; item {item} is {shown(given)}")


def _rows(face: str, name: str, given: Any, rank: int, wanted: str) -> list[ragged.Row]:
    """``given`` as one row of ``rank`` ints per item; in one dimension a row may be the int itself."""
    if not isinstance(given, list):
        reject_type(face, name, given, wanted)
    rows = []
    for item, each in enumerate(given):
        row = each if isinstance(each, (list, tuple)) else [each]
        if not all(is_int(number) for number in row):
            _wrong_item(face, name, wanted, item, each, TypeError)
        if len(row) != rank or (rank > 1 and row is not each):
            _wrong_item(face, name, wanted, item, each, ValueError)
        rows.append(tuple(int(number) for number in row))
    return rows


# --- padded and listed ---------------------------------------------------------------------------


def padded_table(face: str, name: str, sizes: Any, batch: int, shape: tuple[int, ...], window: Window) -> ragged.Table:
    """The items of a padded batch ``[batch, *shape, ...]`` from their sizes, ``[B]`` or ``[B, rank]`` numbers."""
    kernel_size, stride, dilation, _ = window
    rank = len(shape)
    rows = _rows(face, name, sizes, rank, f"ints of shape ({batch},)" if rank == 1 else f"ints of shape {batch, rank}")
    if len(rows) != batch:
        raise ValueError(f"{face}: {name} must have one entry per batch item ({batch}); got {len(rows)}")
    for item, row in enumerate(rows):
        # A compiler's symbolic sizes can be compared but not hashed.
        empty = any(size == 0 for size in row)
        for axis, size in enumerate(row):
            w, d = kernel_size[axis], dilation[axis]
            if not 0 <= size <= shape[axis]:
                raise ValueError(
                    f"{face}: {name} must lie between 0 and the padded length; "
                    f"item {item}, axis {axis} has {shown(size)}, padded to {shape[axis]}"
                )
            if size < w * d and not empty:
                raise ValueError(
                    f"{face}: kernel_size * dilation must not exceed an item's length; "
                    f"item {item}, axis {axis} has {w} * {d} = {w * d} > {size}"
                )
    return ragged.padded_table(rows, kernel_size, stride, dilation)


def listed_problems(
    face: str,
    name: str,
    specs: Sequence[Sequence[TensorSpec]],
    sizes: Any,
    rank: int,
    window: Window,
    scale: Any,
    rpb: TensorSpec | None,
) -> list[tuple[Problem, list[int], ragged.Table]]:
    """Items given as lists: each is checked independently, including empty ones.

    specs: of queries, keys and values, ``[*shape, H, D]`` each. sizes: None, or the items' own shapes again.
    Returns, for each kind of items (alike but for their shapes), a problem with what they share, their indices, and
    their table.
    """
    counts = [len(items) for items in specs]
    if len(set(counts)) > 1:
        raise ValueError(
            f"{face}: query, key and value must list equally many items; got {listed([*map(str, counts)])}"
        )
    shapes = [spec.shape[:-2] for spec in specs[0]]
    if sizes is not None:
        given = _rows(face, name, sizes, rank, "the items' own shapes, or None")
        for item, (own, said) in enumerate(zip(shapes, given, strict=False)):
            if own != said:
                raise ValueError(f"{face}: {name} must be the items' own shapes; item {item} has {own}, not {said}")
        if len(given) != len(shapes):
            raise ValueError(f"{face}: {name} must have one entry per item ({len(shapes)}); got {len(given)}")
    kinds: dict[Any, tuple[Problem, list[int]]] = {}
    extents = [w * d for w, d in zip(window[0], window[2], strict=True)]
    items = list(zip(specs[0], specs[1], specs[2], strict=True))
    for item, (query, key, value) in enumerate(items):
        kind = query.dtype, query.device, query.shape[-2:], key.shape[-2:], value.shape[-2:]
        known = kinds.get(kind)
        if known is None or not _like(items[item], items[known[1][0]], extents):
            problem = _item_problem(f"{face}: item {item}", rank, items[item], window, scale, rpb)
            known = kinds.setdefault(kind, (problem, []))
        known[1].append(item)
    return [
        (problem, members, ragged.padded_table([shapes[item] for item in members], *window[:3]))
        for problem, members in kinds.values()
    ]


def _like(own: tuple[TensorSpec, ...], first: tuple[TensorSpec, ...], extents: list[int]) -> bool:
    """Whether an item is legal because the first is: only the lengths of its axes differ, and they are long enough."""
    shape = own[0].shape[:-2]
    for spec, other in zip(own, first, strict=True):
        if spec.shape != shape + other.shape[-2:] or spec.dtype != other.dtype or spec.device != other.device:
            return False
    return all(map(ge, shape, extents)) or 0 in shape


def _item_problem(
    face: str, rank: int, specs: tuple[TensorSpec, ...], window: Window, scale: Any, rpb: TensorSpec | None
) -> Problem:
    """The problem of one item; an empty one is checked with axes just long enough for the window."""
    for name, spec in zip(("query", "key", "value"), specs, strict=True):
        if len(spec.shape) != rank + 2:
            axes = ", ".join("XYZ"[:rank]) if rank > 1 else "L"
            raise ValueError(f"{face}: {name} must be [{axes}, heads, dim] ({rank + 2}-D); got {spec.shape}")
    shapes = [spec.shape[:-2] for spec in specs]
    if 0 in shapes[0] and shapes.count(shapes[0]) == 3:
        full = tuple(w * d for w, d in zip(window[0], window[2], strict=True))
        specs = tuple(replace(spec, shape=(*full, *spec.shape[-2:])) for spec in specs)
    query, key, value = (replace(spec, shape=(1, *spec.shape)) for spec in specs)
    factor = scale_or_default(face, scale, query.shape[-1])
    return fused_problem(face, query, key, value, window, factor, rpb=rpb)


# --- packed sequences ----------------------------------------------------------------------------


def packs(lengths: tuple[Any, Any], packed: tuple[Any, ...]) -> bool:
    """Whether a call of ``attention`` packs sequences.

    ``generate_varlen_parameters`` without lengths returns (None, None, 0, 0), which packs none.
    """
    if any(given is not None for given in (*lengths, *packed[:2])):
        return True
    return not all(given is None or (is_int(given) and given == 0) for given in packed[2:])


def packed_call(
    face: str, shapes: Sequence[tuple[int, ...]], lengths: tuple[Any, Any], packed: tuple[Any, ...]
) -> ragged.Table:
    """:func:`packed_table` of unchecked arguments. shapes: of query, key and value, ``[1, tokens, ...]``."""
    one_batch_item(face, shapes)
    names = (*LENGTHS, *PACKED)
    numbers = [as_numbers(face, name, each) for name, each in zip(names, (*lengths, *packed), strict=True)]
    return packed_table(face, (shapes[0][1], shapes[1][1]), (numbers[0], numbers[1]), tuple(numbers[2:]))


def packed_table(face: str, totals: tuple[int, int], lengths: tuple[Any, Any], packed: tuple[Any, ...]) -> ragged.Table:
    """The sequences that a call packs, from seqlens_Q and seqlens_KV if given, otherwise from ``PACKED``.

    totals: the tokens of query and key. Arguments that were not given are None.
    """
    if any(given is not None for given in lengths):
        together(face, LENGTHS, lengths)
        names = LENGTHS
        offsets = [cumulative(_lengths(face, name, each)) for name, each in zip(LENGTHS, lengths, strict=True)]
    else:
        together(face, PACKED, packed)
        names = PACKED[:2]
        offsets = [_offsets(face, name, given) for name, given in zip(names, packed[:2], strict=True)]
    _same_number(face, names, offsets)
    for name, each, total in zip(names, offsets, totals, strict=True):
        _within(face, name, each, total)
    if names == PACKED[:2]:
        for name, longest, each, total in zip(PACKED[2:], packed[2:], offsets, totals, strict=True):
            _longest(face, name, longest, each, total)
    return ragged.packed_table(*offsets)


def one_batch_item(face: str, shapes: Sequence[tuple[int, ...]]) -> None:
    """Packed tensors have one batch item. shapes: of query, key and value."""
    for name, shape in zip(("query", "key", "value"), shapes, strict=True):
        if shape[:1] != (1,):
            raise ValueError(f"{face}: {name} must have one batch item, the packed one; got {shape[0]}")


def packed_lengths(face: str, shapes: Sequence[tuple[int, ...]], lengths: tuple[Any, Any]) -> list[list[int]] | None:
    """The rules of ``generate_varlen_parameters``; shapes: of query, key and value. None without lengths."""
    if all(given is None for given in lengths):
        return None
    together(face, LENGTHS, lengths)
    counts = [_lengths(face, name, given) for name, given in zip(LENGTHS, lengths, strict=True)]
    _same_number(face, LENGTHS, [cumulative(each) for each in counts])
    one_batch_item(face, shapes)
    return counts


def cumulative(lengths: Sequence[int]) -> list[int]:
    """``[n + 1]``: where each sequence begins, and where the last ends."""
    return [0, *accumulate(lengths)]


def together(face: str, names: Sequence[str], given: Sequence[Any]) -> None:
    """Arguments that come together or not at all."""
    for name, value in zip(names, given, strict=True):
        if value is None:
            raise ValueError(f"{face}: {', '.join(names[:-1])} and {names[-1]} come together; {name} is missing")


def _same_number(face: str, names: Sequence[str], offsets: Sequence[list[int]]) -> None:
    counts = [len(each) - 1 for each in offsets]
    if counts[0] != counts[1]:
        raise ValueError(
            f"{face}: {' and '.join(names)} must hold equally many sequences; got {counts[0]} and {counts[1]}"
        )


def _within(face: str, name: str, offsets: list[int], total: int) -> None:
    if offsets[-1] > total:
        item = next(i for i, end in enumerate(offsets[1:]) if end > total)
        raise ValueError(
            f"{face}: {name} must not exceed the packed length {total}; they end at {offsets[-1]}, and item {item} at "
            f"{offsets[item + 1]}"
        )


def _integers(face: str, name: str, given: Any) -> list[int]:
    wanted = "ints of shape (sequences,)" if name in LENGTHS else "ints of shape (sequences + 1,)"
    if isinstance(given, list) and any(isinstance(each, list) for each in given):
        raise ValueError(f"{face}: {name} must be {wanted}; got lists in a list")
    return [number for (number,) in _rows(face, name, given, 1, wanted)]


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
        raise ValueError(f"{face}: {name} must begin with 0 and hold at least one sequence; got {offsets[:4]}")
    for item, (start, end) in enumerate(pairwise(offsets)):
        if end < start:
            raise ValueError(f"{face}: {name} must not decrease; item {item} goes from {start} to {end}")
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


# --- packed items with a window each -------------------------------------------------------------


def layouts_table(face: str, layouts: Any, one: tuple[Any, Any, Any], lists: tuple[Any, Any, Any]) -> ragged.Table:
    """Concatenated items of ``token_layout_list``.

    one: kernel_size, stride and dilation of all items; lists: of each item, or None. A list takes precedence.
    """
    name, wanted = "token_layout_list", "a list of tuples of 1, 2 or 3 ints, all of one length"
    if not isinstance(layouts, list):
        reject_type(face, name, layouts, wanted)
    if not layouts:
        raise ValueError(f"{face}: {name} must hold at least one layout")
    first = layouts[0]
    rank = len(first) if isinstance(first, (list, tuple)) else 1
    if rank not in RANKS:
        _wrong_item(face, name, wanted, 0, first, ValueError)
    rows = _rows(face, name, layouts, rank, wanted)
    windows = [_per_item(face, *each, rank, len(rows)) for each in zip(_WINDOW, one, lists, strict=True)]
    for item, (row, *window) in enumerate(zip(rows, *windows, strict=True)):
        if min(row) < 0:
            raise ValueError(f"{face}: {name} must not be negative; item {item} is {row}")
        kernel_size, stride, dilation = window
        # An empty item has no axis that could be too short.
        shape = row if 0 not in row else tuple(w * d for w, d in zip(kernel_size, dilation, strict=True))
        check_axes(f"{face}: item {item}", shape, kernel_size, stride, dilation)
    return ragged.layouts_table(rows, zip(*windows, strict=True))


_WINDOW = ("kernel_size", "stride", "dilation")


def _per_item(face: str, name: str, one: Any, each: Any, rank: int, count: int) -> list[tuple[int, ...]]:
    if each is None:
        if one is None and name == "kernel_size":
            raise ValueError(f"{face}: kernel_size or kernel_size_list must be given")
        return [ints_per_axis(face, name, one, rank)] * count
    name = f"{name}_list"
    if not isinstance(each, list):
        reject_type(face, name, each, f"a list of {count}, one for each item, or None")
    if len(each) != count:
        raise ValueError(f"{face}: {name} must have one entry per item ({count}); got {len(each)}")
    return [ints_per_axis(face, f"{name}[{item}]", given, rank) for item, given in enumerate(each)]


def packed_total(face: str, table: ragged.Table, rank: int, total: int) -> None:
    """The items of ``token_layout_list`` must not have more tokens than are packed."""
    ends = [row[0] + math.prod(row[2 : 2 + rank]) for row in table]
    if ends[-1] > total:
        item = next(i for i, end in enumerate(ends) if end > total)
        raise ValueError(
            f"{face}: token_layout_list must not exceed the packed length {total}; it ends at {ends[-1]}, and item "
            f"{item} at {ends[item]}"
        )


def reject_both(face: str) -> NoReturn:
    """ValueError: items are described twice."""
    raise ValueError(f"{face}: give metadata or token_layout_list, not both")


def metadata_parts(face: str, metadata: Any) -> tuple[Any, int, tuple[bool, ...], Any]:
    """table, rank, is_causal and backend from what ``configure_varlen`` returned."""
    if not isinstance(metadata, dict):
        reject_type(face, "metadata", metadata, METADATA)
    if set(metadata) != {"table", "rank", "is_causal", "backend"}:
        raise ValueError(
            f"{face}: metadata must be {METADATA}; got one with {', '.join(map(str, metadata)) or 'no keys'}"
        )
    return metadata["table"], metadata["rank"], tuple(metadata["is_causal"]), metadata["backend"]
