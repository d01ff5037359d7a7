"""Pieces of axes: which keys queries need, which queries keys reach, and the masks, slots and walks of pieces.

Exhaustive over small axes; the reference is the mask of the whole axis.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from frameworks import FRAMEWORKS, Framework
from test_windows import TABLES, axes, check_walk, dense, random_problem, random_walk

from natten_mps._metal.plan import blocks, boxes
from natten_mps._metal.problem import mask
from natten_mps._metal.problem.interval import column_span
from natten_mps._metal.problem.problem import Axis, Piece, Problem

Array = Any


def spans(seen: Array) -> Iterator[tuple[int, int, int, int]]:
    """Every range of rows of ``[rows, columns]``, with the range of columns that one of its rows sees."""
    rows, columns = seen.shape
    first, last = seen.argmax(1), columns - seen[:, ::-1].argmax(1)
    for low in range(rows):
        lows, highs = np.minimum.accumulate(first[low:]), np.maximum.accumulate(last[low:])
        for high in range(low + 1, rows + 1):
            yield low, high, int(lows[high - low - 1]), int(highs[high - low - 1])


def test_every_range_of_small_axes() -> None:
    """Of queries and of keys: all windows, strides, dilations, causal or not, and all ranges."""
    ranges = 0
    for axis in axes(13):
        n, seen = axis.full, dense(axis)
        for low, high, *wanted in spans(seen):
            rows = replace(axis, queries=high - low, query_start=low)
            assert column_span(rows, False) == tuple(wanted), rows
        for low, high, *wanted in spans(seen.T):
            rows = replace(axis, keys=high - low, key_start=low)
            assert column_span(rows, True) == tuple(wanted), rows
        ranges += n * (n + 1)
    assert ranges > 50_000


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_the_public_functions(framework: Framework) -> None:
    """Several axes, one number for all of them, empty ranges, and the short form for one axis."""
    key_range, query_range = framework.face("key_range"), framework.face("query_range")
    assert key_range(1000, 7, 1, 1, False, (100, 200)) == ((97, 203),)
    assert query_range(1000, 7, 1, 1, True, ((100, 200),)) == ((100, 206),)
    assert key_range([9], [3], [1], [3], [False], [[4, 5]]) == ((1, 8),)
    assert key_range((20, 30), 5, 1, (2, 3), (True, False), ((7, 9), (0, 30))) == ((0, 9), (0, 30))
    assert query_range((20, 30), 5, 1, (2, 3), (True, False), ((7, 9), (11, 11))) == ((7, 17), (11, 11))
    # No loop over tokens: query 0 sees the first 10**6 keys of its group, 10**5 apart.
    assert key_range(10**12, 10**6, 7, 10**5, False, (0, 1)) == ((0, (10**6 - 1) * 10**5 + 1),)
    random_ = random.Random(3)
    for _ in range(40):
        problem = random_problem(2, random_)
        window = (problem.kernel_size, problem.stride, problem.dilation, problem.is_causal)
        ends = [sorted(random_.sample(range(n + 1), 2)) for n in problem.query_shape]
        for function, transposed in ((key_range, False), (query_range, True)):
            wanted = []
            for axis, (low, high) in zip(problem.axes, ends, strict=True):
                seen = dense(axis).T if transposed else dense(axis)
                columns = np.flatnonzero(seen[low:high].any(0))
                wanted.append((columns[0], columns[-1] + 1))
            assert function(problem.query_shape, *window, ends) == tuple(wanted)


def pieces_of(axis: Axis) -> Iterator[Axis]:
    """All ranges of queries, each with the keys that it needs, one more on either side, and all keys."""
    n = axis.full
    for first, end in itertools.combinations(range(n + 1), 2):
        rows = replace(axis, queries=end - first, query_start=first)
        low, high = column_span(rows, False)
        for start, stop in {(low, high), (max(low - 1, 0), min(high + 1, n)), (0, n)}:
            yield replace(rows, keys=stop - start, key_start=start)


def test_every_piece_of_small_axes() -> None:
    """Mask, pairs, slots, entries of rpb and the picture are those of the whole axis, cut to the piece."""
    count = 0
    for axis in axes(8):
        whole = Problem(
            "na", 1, (axis.full,), (axis.full,), 1, 1, 1, 1, *((x,) for x in (axis.window, axis.stride, axis.dilation)),
            (axis.causal,), 1.0, "float32",
        )  # fmt: skip
        seen, entries, (keys, held) = dense(axis), mask.bias_offsets(whole), mask.slot_keys(whole)
        picture = np.array([list(line) for line in mask.picture(axis).splitlines()])
        for own in pieces_of(axis):
            at = slice(own.query_start, own.query_start + own.queries), slice(own.key_start, own.key_start + own.keys)
            piece = Piece((own.full,), (own.query_start,), (own.key_start,))
            problem = replace(whole, query_shape=(own.queries,), key_shape=(own.keys,), piece=piece)
            assert problem.axes == (own,)
            assert np.array_equal(mask.axis_mask(own, TABLES), seen[at]), own
            assert mask.axis_pairs(own) == seen[at].sum(), own
            assert np.array_equal(mask.bias_offsets(problem), entries[at]), own
            own_keys, own_held = mask.slot_keys(problem)
            assert np.array_equal(own_held, held[at[0]]), own
            assert np.array_equal(own_keys, keys[at[0]] - own.key_start), own
            assert np.array_equal([list(line) for line in mask.picture(own).splitlines()], picture[at]), own
            count += 1
    assert count > 10_000


def random_piece(rank: int, random_: random.Random) -> Problem:
    """A piece of a random problem, often with more keys than it needs."""
    whole = random_problem(rank, random_)
    own = []
    for axis in whole.axes:
        first, end = sorted(random_.sample(range(axis.full + 1), 2))
        rows = replace(axis, queries=end - first, query_start=first)
        low, high = column_span(rows, False)
        spare = random_.random() < 0.7
        low, high = (random_.randint(0, low), random_.randint(high, axis.full)) if spare else (low, high)
        own.append(replace(rows, keys=high - low, key_start=low))
    queries, keys, starts, key_starts = zip(
        *((axis.queries, axis.keys, axis.query_start, axis.key_start) for axis in own), strict=True
    )
    piece = Piece(whole.query_shape, starts, key_starts)
    return replace(whole, query_shape=queries, key_shape=keys, piece=piece)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True], ids=["queries", "keys"])
def test_walks_of_pieces_visit_every_pair_once(rank: int, transposed: bool) -> None:
    """Walks over queries, and walks over keys, whose inverse windows are cut to the piece's queries."""
    random_ = random.Random(rank + 10 * transposed)
    for _ in range(80):
        problem = random_piece(rank, random_)
        tables = blocks.Tables(random_walk(problem, transposed, random_), TABLES)
        check_walk(problem, tables, transposed)
        for chunk in tables.chunks():
            assert np.array_equal(chunk.sees & chunk.held, (chunk.mask & chunk.held[:, :, None]).any(2))


@pytest.mark.parametrize("transposed", [False, True], ids=["queries", "keys"])
def test_boxes_of_pieces_are_as_small_as_can_be(transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """box_size is the widest span of a tile; the bound used for long axes is never below it, and close to it."""
    random_ = random.Random(5)
    for _ in range(300):
        (axis,) = random_piece(1, random_).axes
        tile, d, spans = random_.randint(1, 12), axis.dilation, [1]
        own = mask.axis_mask(axis, TABLES)
        own = own.T if transposed else own
        rows, columns = ((axis.key_start, axis.query_start), (axis.query_start, axis.key_start))[not transposed]
        for group in range(min(d, len(own))):
            of_group = own[group::d][:, (rows + group - columns) % d :: d]
            for first in range(0, len(of_group), tile):
                seen = np.flatnonzero(of_group[first : first + tile].any(0))
                spans.append(seen[-1] - seen[0] + 1 if seen.size else 1)
        assert boxes.box_size(axis, transposed, tile) == max(spans), axis
        with monkeypatch.context() as patched:
            patched.setattr(boxes, "MAX_SPANS", 0)
            bound = boxes.box_size.__wrapped__(axis, transposed, tile)
        assert max(spans) <= bound <= max(spans) + tile + axis.window + axis.stride, axis
