"""Items of different sizes in one call: which of them form one problem, and where each begins.

A call's table has one row of ints per item: where its queries and its keys begin, the shapes of both, and its window
(kernel_size, stride, dilation; zeros for full attention), ``2 + 5 * rank`` columns. What the beginnings count depends
on how the items are passed:

    padded   batch items of one tensor ``[B, *shape, H, D]``, each with its tokens first on every axis
    packed   tokens of one tensor ``[1, tokens, H, D]``, items concatenated
    listed   tensors of a list, ``[*shape, H, D]`` each
"""

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from ..caches import cached
from .problem import Problem

Row = tuple[int, ...]
Table = tuple[Row, ...]
# Items of at most this many tokens are gathered if they are not adjacent; for larger ones a copy costs more than a
# separate launch (an estimate).
TOGETHER = 128
# Sides of a group: its queries, and its keys (and values).
QUERIES, KEYS = 0, 1


class Group(NamedTuple):
    """Items that form one problem: the shapes of their queries and keys, their window, and where each begins.

    adjacent: they follow one another, so that one view covers all of them.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    starts: tuple[tuple[int, int], ...]
    adjacent: bool


def padded_table(sizes: Iterable[Row], kernel_size: Row, stride: Row, dilation: Row) -> Table:
    """Items of a batch or a list, of ``sizes``, with one window."""
    window = (*kernel_size, *stride, *dilation)
    return tuple((item, item, *size, *size, *window) for item, size in enumerate(sizes))


def packed_table(queries: Sequence[int], keys: Sequence[int]) -> Table:
    """Concatenated sequences for full attention, from cumulative lengths ``[n + 1]``."""
    # By index: torch 2.9 traces zip(strict=False) as if it were strict.
    return tuple(
        (queries[i], keys[i], queries[i + 1] - queries[i], keys[i + 1] - keys[i], 0, 0, 0)
        for i in range(len(queries) - 1)
    )


def layouts_table(layouts: Iterable[Row], windows: Iterable[tuple[Row, Row, Row]]) -> Table:
    """Concatenated items, each with a window of its own."""
    rows, start = [], 0
    for layout, window in zip(layouts, windows, strict=True):
        rows.append((start, start, *layout, *layout, *window[0], *window[1], *window[2]))
        start += math.prod(layout)
    return tuple(rows)


def columns(rank: int) -> int:
    """Columns of a table."""
    return 2 + 5 * rank


def rank_of(table: Table) -> int:
    """The rank of a table with at least one row."""
    return (len(table[0]) - 2) // 5


def problem_of(problem: Problem, group: Group) -> Problem:
    """The problem of one launch. problem: what all items have in common."""
    item = replace(problem, batch=len(group.starts), query_shape=group.queries, key_shape=group.keys)
    if not problem.record.has_window:
        return replace(item, kernel_size=(max(*group.queries, *group.keys),))
    return replace(item, kernel_size=group.kernel_size, stride=group.stride, dilation=group.dilation)


@cached("groups of items", 64)
def groups(table: Table, rank: int, kind: str, together: int | None) -> tuple[Group, ...]:
    """The launches of a call: one for all items that pose the same problem, none for items without queries or keys.

    together: as :data:`TOGETHER`; None puts all items with the same problem into one launch.
    """
    found: dict[Row, list[tuple[int, int]]] = {}
    for row in table:
        problem = row[2:]
        if 0 not in problem[: 2 * rank]:
            found.setdefault(problem, []).append((row[0], row[1]))
    return tuple(group for problem, starts in found.items() for group in _parts(problem, starts, rank, kind, together))


def _parts(problem: Row, starts: list[tuple[int, int]], rank: int, kind: str, together: int | None) -> Iterable[Group]:
    queries, keys, w, s, d = (problem[rank * part : rank * (part + 1)] for part in range(5))
    tokens = math.prod(queries), math.prod(keys)
    steps = {"padded": (1, 1), "packed": tokens, "listed": (0, 0)}[kind]
    runs = [[starts[0]]]
    for before, start in pairwise(starts):
        if (start[0] - before[0], start[1] - before[1]) == steps:
            runs[-1].append(start)
        else:
            runs.append([start])
    if together is None or max(tokens) <= together:
        return [Group(queries, keys, w, s, d, tuple(starts), len(runs) == 1)]
    return [Group(queries, keys, w, s, d, tuple(run), True) for run in runs]


def tokens_of(group: Group, side: int, kind: str, padded: tuple[int, ...]) -> "array[int]":
    """The tokens of a group's items, item after item, as indices into the flattened padded or packed tensor.

    side: 0 queries, 1 keys. padded: the shape of a batch item of a padded tensor.
    """
    shape, found = (group.queries, group.keys)[side], array("q")
    for start in group.starts:
        if kind == "packed":
            found.extend(range(start[side], start[side] + math.prod(shape)))
            continue
        for row in range(math.prod(shape[:-1])):
            token, rest, pitch = start[side] * math.prod(padded), row, padded[-1]
            for length, full in zip(shape[-2::-1], padded[-2::-1], strict=True):
                token, rest, pitch = token + rest % length * pitch, rest // length, pitch * full
            found.extend(range(token, token + shape[-1]))
    return found
