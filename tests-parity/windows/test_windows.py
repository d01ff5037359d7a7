"""The window against its definition, exhaustively over small axes, and everything that is derived from it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cases import CASES, Case
from frameworks import FRAMEWORKS, Framework

from natten_mps._metal.plan import blocks, boxes
from natten_mps._metal.problem import mask
from natten_mps._metal.problem.problem import Axis, Problem
from natten_mps._metal.problem.window import INTEGERS, group_length, inverse, window

Array = Any
TABLES = mask.NumpyTables()


def keys_of(query: int, length: int, w: int, s: int, d: int, causal: bool) -> list[int]:
    """The keys of one query in order: the definition, line by line, sharing no code with the package."""
    group = [token for token in range(length) if token % d == query % d]
    position, count = query // d, len(group)
    if causal:
        leader = min((position // s) * s + s - 1, count - 1)
        first, end = max(leader - w + 1, 0), position + 1
    else:
        leader = min((position // s) * s + s // 2, count - 1)
        first = leader - w // 2
        first = 0 if first < 0 else first
        first = count - w if first > count - w else first
        end = first + w
    return group[first:end]


def axes(longest: int) -> Iterator[Axis]:
    """Every legal axis of at most ``longest`` tokens."""
    for length in range(1, longest + 1):
        for d in range(1, length + 1):
            for w in range(1, length // d + 1):
                for s in range(1, w + 1):
                    for causal in (False, True):
                        yield Axis(length, length, w, s, d, causal)


def dense(axis: Axis) -> Array:
    """``[queries, keys]`` by the definition."""
    found = np.zeros((axis.queries, axis.keys), dtype=bool)
    for query in range(axis.queries):
        found[query, keys_of(query, axis.queries, axis.window, axis.stride, axis.dilation, axis.causal)] = True
    return found


def between(low: Array, high: Array, count: int) -> Array:
    """``[rows, count]`` bool: low <= column < high."""
    column = np.arange(count)
    return (low[:, None] <= column) & (column < high[:, None])


def test_every_window_of_small_axes() -> None:
    """Window, inverse, mask and pair count of every axis, and the properties that boxes rely on."""
    positions = 0
    for axis in axes(27):
        wanted, d = dense(axis), axis.dilation
        assert np.array_equal(mask.axis_mask(axis, TABLES), wanted), axis
        assert mask.axis_pairs(axis) == wanted.sum(), axis
        for group in range(d):
            # Inside a group, positions are those of its own short axis.
            own = wanted[group::d, group::d]
            n = len(own)
            assert n == group_length(axis.queries, group, d)
            p = np.arange(n)
            start, end = (np.broadcast_to(x, n) for x in window(p, n, axis.window, axis.stride, axis.causal, np))
            low, high = inverse(p, n, axis.window, axis.stride, axis.causal, np)
            assert np.array_equal(between(start, end, n), own), axis
            assert np.array_equal(between(low, high, n), own.T), axis
            assert np.all(np.diff(start) >= 0) and np.all(np.diff(end) >= 0), axis
            positions += n
    assert positions >= 200_000, positions


def test_one_position_is_evaluated_like_an_array() -> None:
    """Plain ints, numpy, torch and MLX give the same numbers."""
    namespaces = [(framework, tables_of(framework)) for framework in FRAMEWORKS]
    compared = 0
    for n, causal in itertools.product(range(1, 12), (False, True)):
        for w in range(1, n + 1):
            for s, function in itertools.product(range(1, w + 1), (window, inverse)):
                ints = [function(p, n, w, s, causal, INTEGERS) for p in range(n)]
                assert all(type(number) is int for pair in ints for number in pair)
                arrays = [pair_of(function(np.arange(n), n, w, s, causal, np), n)]
                for framework, tables in namespaces:
                    found = function(tables.arange(n), n, w, s, causal, tables)
                    arrays.append(pair_of([framework.numpy(part) for part in found], n))
                assert all(array == ints for array in arrays), (n, w, s, causal, function.__name__)
                compared += n
    assert compared > 5000


def pair_of(parts: Any, n: int) -> list[tuple[int, int]]:
    first, second = (np.broadcast_to(part, n).tolist() for part in parts)
    return [(int(a), int(b)) for a, b in zip(first, second, strict=True)]


def tables_of(framework: Framework) -> Any:
    """The package's own array namespace."""
    arrays = framework.module("_tensors")
    if framework.name == "mps":
        import torch

        return arrays.TorchTables(torch.device("cpu"))
    framework.package  # noqa: B018 - imports MLX and selects its CPU
    return arrays.MlxTables()


def test_boxes_hold_exactly_what_tiles_see() -> None:
    """For positions p0..p1 the union of their windows is [start(p0), end(p1)), what all share [start(p1), end(p0))."""
    for n, causal in itertools.product(range(1, 15), (False, True)):
        for w in range(1, n + 1):
            for s in range(1, w + 1):
                seen = [window(p, n, w, s, causal) for p in range(n)]
                sets = [set(range(*interval)) for interval in seen]
                for first, last in itertools.combinations_with_replacement(range(n), 2):
                    union = set().union(*sets[first : last + 1])
                    shared = set.intersection(*sets[first : last + 1])
                    assert shared == set(range(seen[last][0], seen[first][1]))
                    assert min(union) == seen[first][0] and max(union) == seen[last][1] - 1


def test_windows_of_full_attention() -> None:
    """Queries and keys of different lengths: all keys, or those up to the query's own index."""
    for queries, keys, causal in itertools.product(range(1, 9), range(1, 9), (False, True)):
        axis = Axis(queries, keys, max(queries, keys), 1, 1, causal)
        wanted = np.tril(np.ones((queries, keys), dtype=bool)) if causal else np.ones((queries, keys), dtype=bool)
        assert np.array_equal(mask.axis_mask(axis, TABLES), wanted)
        assert mask.axis_pairs(axis) == wanted.sum()
        low, high = inverse(np.arange(keys), queries, axis.window, 1, causal, np)
        assert np.array_equal(between(low, high, queries), wanted.T)


# --- masks, slots, bias ------------------------------------------------------------------------------


def tokens(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, shape)))


def neighbors(case: Case) -> list[list[tuple[int, ...]]]:
    """The keys of every query of a case, row-major, by the definition."""
    per_axis = [
        [keys_of(q, length, w, s, d, causal) for q in range(length)]
        for length, w, s, d, causal in zip(
            case.shape, case.kernel_size, case.stride, case.dilation, case.is_causal, strict=True
        )
    ]
    return [
        list(itertools.product(*(own[q] for own, q in zip(per_axis, query, strict=True))))
        for query in tokens(case.shape)
    ]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_mask_slots_and_bias_of_the_table(case: Case) -> None:
    problem, number = case.problem(), {token: i for i, token in enumerate(tokens(case.shape))}
    wanted = np.zeros((len(number), len(number)), dtype=bool)
    found = mask.neighborhood_mask(problem)
    slot_key, held = mask.slot_keys(problem)
    offsets = mask.bias_offsets(problem)
    table = np.arange(np.prod([2 * w - 1 for w in case.kernel_size])).reshape([2 * w - 1 for w in case.kernel_size])
    for query, keys in zip(tokens(case.shape), neighbors(case), strict=True):
        row = number[query]
        wanted[row, [number[key] for key in keys]] = True
        assert [number[key] for key in keys] == slot_key[row][held[row]].tolist()
        for key in keys:
            index = [
                (k - q) // d + w - 1 for k, q, d, w in zip(key, query, case.dilation, case.kernel_size, strict=True)
            ]
            assert offsets[row, number[key]] == table[tuple(index)]
    assert np.array_equal(found, wanted)
    assert mask.pairs(problem) == wanted.sum() + problem.queries * problem.additional


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if "small" in case.tags][::3], ids=str)
def test_frameworks_build_the_same_tables(case: Case, framework: Framework) -> None:
    problem, tables = case.problem(), tables_of(framework)
    for function in (mask.neighborhood_mask, mask.bias_offsets):
        assert np.array_equal(framework.numpy(function(problem, tables)), function(problem))
    for theirs, ours in zip(mask.slot_keys(problem, tables), mask.slot_keys(problem), strict=True):
        assert np.array_equal(framework.numpy(theirs), ours)


def test_slots_are_row_major_and_causal_tails_are_empty() -> None:
    problem = Problem("qk", 1, (4, 5), (4, 5), 1, 1, 8, 0, (2, 3), (1, 1), (1, 1), (False, True), 1.0, "float32")
    keys, held = mask.slot_keys(problem)
    assert keys[0][held[0]].tolist() == [0, 5] and held[0].tolist() == [True, False, False] * 2
    assert keys[19].tolist() == [12, 13, 14, 17, 18, 19] and held[19].all()


def test_picture() -> None:
    """Query 0 starts at the border, query 2 of a dilated axis sees only its own group."""
    assert mask.picture(Axis(5, 5, 3, 1, 1, False)).splitlines() == ["O##..", "#O#..", ".#O#.", "..#O#", "..##O"]
    assert mask.picture(Axis(4, 4, 2, 1, 2, True)).splitlines() == ["O...", ".O..", "#.O.", ".#.O"]
    with pytest.raises(ValueError, match=r"^picture: at most 64 tokens can be drawn; got 65$"):
        mask.picture(Axis(65, 65, 3, 1, 1, False))


# --- the walk ----------------------------------------------------------------------------------------


def random_problem(rank: int, random_: random.Random) -> Problem:
    longest = {1: 40, 2: 11, 3: 6}[rank]
    shape = tuple(random_.randint(1, longest) for _ in range(rank))
    dilation = tuple(random_.randint(1, max(1, n // 2)) for n in shape)
    kernel = tuple(random_.randint(1, n // d) for n, d in zip(shape, dilation, strict=True))
    stride = tuple(random_.randint(1, w) for w in kernel)
    causal = tuple(random_.random() < 0.4 for _ in shape)
    return Problem("na", 1, shape, shape, 1, 1, 8, 8, kernel, stride, dilation, causal, 1.0, "float32")


def random_walk(problem: Problem, transposed: bool, random_: random.Random) -> blocks.Blocks:
    tiles = [random_.randint(1, -(-axis.queries // axis.dilation) + 1) for axis in problem.axes]
    cut = tuple(
        blocks.AxisBlocks(axis, transposed, tile, boxes.box_size(axis, transposed, tile))
        for axis, tile in zip(problem.axes, tiles, strict=True)
    )
    whole = blocks.Blocks(cut, 1, 1)
    return blocks.Blocks(cut, random_.randint(1, whole.tiles), 1)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True], ids=["queries", "keys"])
def test_walks_visit_every_pair_once(rank: int, transposed: bool) -> None:
    random_ = random.Random(rank + 10 * transposed)
    for _ in range(60):
        problem = random_problem(rank, random_)
        walk = random_walk(problem, transposed, random_)
        check_walk(problem, blocks.Tables(walk, TABLES), transposed)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_walks_that_are_planned(case: Case) -> None:
    from natten_mps._metal.plan.plan import walk

    for transposed in (False, True):
        check_walk(case.problem(), blocks.Tables(walk(case.problem(), transposed), TABLES), transposed)


def check_walk(problem: Problem, tables: blocks.Tables, transposed: bool) -> None:
    """The chunks' masks, put together, are the neighborhood; slots and offsets of each pair are right."""
    wanted = mask.neighborhood_mask(problem)
    slot_key, held_slot = mask.slot_keys(problem)
    bias = mask.bias_offsets(problem)
    visits = np.zeros(wanted.shape[::-1] if transposed else wanted.shape, dtype=int)
    rows, tiles = [], 0
    for chunk in tables.chunks():
        c, _, u = chunk.mask.shape
        assert chunk.first == tiles and c == chunk.count and u == tables.blocks.box_columns
        tiles += c
        seen = chunk.mask & chunk.held[:, :, None]
        row = np.broadcast_to(chunk.rows[:, :, None], seen.shape)
        column = np.broadcast_to(chunk.columns[:, None, :], seen.shape)
        np.add.at(visits, (row[seen], column[seen]), 1)
        query, key = (column, row) if transposed else (row, column)
        # The slot of a pair names the pair's key; the offset is that of the dense table.
        assert np.array_equal(slot_key[query[seen], chunk.slots()[seen]], key[seen])
        assert held_slot[query[seen], chunk.slots()[seen]].all()
        assert np.array_equal(chunk.offsets()[seen], bias[query[seen], key[seen]])
        assert not chunk.slots()[~chunk.mask].any() and not chunk.offsets()[~chunk.mask].any()
        if not transposed:
            check_columns_of_slots(chunk, slot_key, held_slot)
        rows.append(chunk.rows.reshape(-1))
    assert tiles == tables.blocks.tiles
    assert np.array_equal(visits, (wanted.T if transposed else wanted).astype(int))
    # row_positions() has each token's row, once.
    positions = tables.row_positions()
    assert len(set(positions.tolist())) == len(positions) == len(visits)
    assert np.array_equal(np.concatenate(rows)[positions], np.arange(len(visits)))


def check_columns_of_slots(chunk: blocks.Chunk, slot_key: Array, held_slot: Array) -> None:
    column, held = chunk.columns_of_slots()
    for tile, row in zip(*np.nonzero(chunk.held), strict=True):
        query = chunk.rows[tile, row]
        assert np.array_equal(held[tile, row], held_slot[query])
        key = chunk.columns[tile][column[tile, row]]
        assert np.array_equal(key[held_slot[query]], slot_key[query][held_slot[query]])


def test_boxes_are_as_small_as_can_be() -> None:
    """box_size is the widest span of any tile: no tile needs more, and one needs as much."""
    random_ = random.Random(7)
    for _ in range(200):
        problem = random_problem(1, random_)
        (axis,) = problem.axes
        tile, transposed = random_.randint(1, 12), random_.random() < 0.5
        seen = dense(axis).T if transposed else dense(axis)
        spans = []
        for group in range(axis.dilation):
            own = seen[group :: axis.dilation, group :: axis.dilation]
            for first in range(0, len(own), tile):
                columns = np.flatnonzero(own[first : first + tile].any(0))
                spans.append(columns[-1] - columns[0] + 1 if columns.size else 1)
        assert boxes.box_size(axis, transposed, tile) == max(spans)
