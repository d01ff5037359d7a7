"""Any legal problem has a walk on the pure backend, which covers every row once within the memory budget."""

from __future__ import annotations

import itertools
import math
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pytest
from cases import BY_NAME, CASES, Case, make
from frameworks import FRAMEWORKS, MLX, MPS, Framework, Path, run
from hypothesis import given, settings
from hypothesis import strategies as st
from process_memory import in_a_fresh_process, memory
from tolerances import assert_within, fused

from natten_mps._metal.plan import blocks, boxes, plan, turns
from natten_mps._metal.plan.device import Device
from natten_mps._metal.problem import mask
from natten_mps._metal.problem.problem import Axis, Problem

CPU = Device("cpu", "cpu")


def full(tokens: int, heads: int, keys: int | None = None, causal: bool = False) -> Problem:
    """Full attention of a long sequence."""
    keys = keys or tokens
    reach = (max(tokens, keys),)
    return Problem(
        "attention", 1, (tokens,), (keys,), heads, heads, 64, 64, reach, (1,), (1,), (causal,), 0.125, "float32"
    )


def windowed(shape: tuple[int, ...], window: Any, **more: Any) -> Problem:
    """Neighborhood attention with one number standing for all axes."""

    def per_axis(value: Any) -> tuple[Any, ...]:
        return value if isinstance(value, tuple) else (value,) * len(shape)

    of_axes = [per_axis(more.pop(name, default)) for name, default in (("s", 1), ("d", 1), ("causal", False))]
    heads, batch = more.pop("heads", 1), more.pop("batch", 1)
    return Problem(
        "na",
        batch,
        shape,
        shape,
        heads,
        more.pop("kv_heads", heads),
        64,
        64,
        per_axis(window),
        *of_axes,
        0.125,
        more.pop("dtype", "float32"),
        **more,
    )


EXTREME = {
    "long attention": full(131_072, 32),
    "a million tokens, all of them": full(1_000_000, 64, causal=True),
    "few queries of many keys": full(3, 8, keys=3_000_000),
    "many queries of few keys": full(3_000_000, 8, keys=3),
    "a wide window": windowed((1_000_000,), 40_001),
    "additional keys": windowed((1_000_000,), 9, additional=40_000),
    "additional keys of many heads": windowed((1_000_000,), 9, additional=400_000, heads=64, kv_heads=8),
    "a wide stride": windowed((1_000_000,), 40_001, s=40_001, causal=True),
    "a wide, odd stride": windowed((1_000_003,), 40_001, s=30_011),
    "a wide dilation": windowed((1 << 22,), 3, d=1 << 20, batch=3),
    "a window of the whole axis": windowed((1 << 22,), 1 << 22, dtype="float64"),
    "a billion tokens": windowed((10**9,), 10**6, d=3),
    "an image of one long axis": windowed((4, 500_000), (4, 20_001), heads=16),
    "a whole image": windowed((1024, 1024), 1024, causal=True),
    "a long video": windowed((100_000, 8, 8), (30_001, 3, 8), s=(7, 2, 1), d=(2, 2, 1)),
}


def walks(problem: Problem) -> list[blocks.Blocks]:
    made = plan.plan(problem, CPU, "pure", ("pure",))
    assert made.forward.queries == plan.walk(problem, transposed=False) and made.forward.keys is None
    return [made.forward.queries, plan.walk(problem, transposed=True)]


def assert_within_budget(problem: Problem, walk: blocks.Blocks) -> None:
    """The logits computed at once, and what is gathered for them, are within the budgets, or belong to a single tile,
    which is small or has one row.
    """
    transposed = walk.axes[0].transposed
    size = 8 if problem.dtype == "float64" else 4
    rows, columns = walk.tile_rows, walk.box_columns
    logits = size * problem.heads * rows * (columns + (0 if transposed else problem.additional))
    query_rows, key_rows = (columns, rows) if transposed else (rows, columns)
    width = problem.head_dim + problem.head_dim_v
    gathered = size * width * (query_rows * problem.heads + key_rows * problem.kv_heads)
    tiles = walk.tiles_at_once * walk.items_at_once
    assert tiles == 1 or (logits * tiles <= plan.STEP_BYTES and gathered * tiles <= plan.GATHER_BYTES)
    assert logits <= plan.TILE_BYTES or rows == 1
    assert columns <= math.prod(axis.columns for axis in walk.axes)


def axis_of(walk: blocks.Blocks, number: int) -> tuple[blocks.AxisBlocks, Any]:
    """One axis of a walk, and its tables for some tiles: the first, the last, and some in between."""
    axis = walk.axes[number]
    random = np.random.default_rng(number)
    tiles = np.unique([0, 1, axis.tiles - 1, axis.tiles // 2, *random.integers(axis.tiles, size=5)])
    tiles = tiles[tiles < axis.tiles]
    # As many columns as a test can handle: boxes may have millions.
    tiles = tiles[: max(1, (1 << 22) // axis.box)]
    return axis, blocks.AxisTables(axis, mask.NumpyTables(), tiles)


def assert_holds_windows(axis: blocks.AxisBlocks, table: Any) -> None:
    """Each row's columns, as far as they exist, are in its tile's box; the rows are those of the tile."""
    assert (table.low >= table.column[:, :1]).all()
    assert (table.high <= table.column[:, -1:] + 1).all()
    assert (table.low < table.high).all()
    assert (table.row_token < axis.rows).all() and (table.column_token < axis.columns).all()


def rows_of(walk: blocks.Blocks) -> int:
    """Rows of all tiles that are tokens, counted per axis in closed form."""
    total = 1
    for axis in walk.axes:
        d, count = axis.axis.dilation, 0
        for group, groups in ((0, axis.rows % d), (axis.rows % d, d - axis.rows % d)):
            length = len(range(group, axis.rows, d)) if groups else 0
            assert axis.tiles // d * axis.tile >= length
            count += groups * length
        total *= count
    return total


@pytest.mark.parametrize("name", EXTREME)
def test_an_extreme_problem_has_a_plan(name: str) -> None:
    problem = EXTREME[name]
    for walk, tokens in zip(walks(problem), (problem.queries, problem.keys), strict=True):
        assert_within_budget(problem, walk)
        assert rows_of(walk) == tokens
        for number in range(problem.rank):
            assert_holds_windows(*axis_of(walk, number))


@st.composite
def long_problems(draw: st.DrawFn) -> Problem:
    """Legal problems with long axes: sizes spread over the orders of magnitude."""
    rank = draw(st.integers(1, 3))

    def sized(largest: int, smallest: int = 1) -> int:
        return min(largest, max(smallest, int(2 ** draw(st.floats(0, math.log2(max(largest, 2)))))))

    longest = {1: 1 << 24, 2: 1 << 18, 3: 1 << 12}[rank]
    shape = tuple(sized(longest) for _ in range(rank))
    dilation = tuple(sized(length) for length in shape)
    window = tuple(sized(length // d) for length, d in zip(shape, dilation, strict=True))
    stride = tuple(sized(w) for w in window)
    causal = tuple(draw(st.booleans()) for _ in range(rank))
    kv_heads = sized(16)
    return windowed(
        shape,
        window,
        s=stride,
        d=dilation,
        causal=causal,
        heads=kv_heads * sized(8),
        kv_heads=kv_heads,
        batch=sized(64),
        additional=draw(st.sampled_from([0, 0, 17, 70_000])),
    )


@settings(max_examples=60)
@given(long_problems())
def test_any_legal_problem_has_a_plan(problem: Problem) -> None:
    for walk, tokens in zip(walks(problem), (problem.queries, problem.keys), strict=True):
        assert_within_budget(problem, walk)
        assert rows_of(walk) == tokens
        for number in range(problem.rank):
            assert_holds_windows(*axis_of(walk, number))


def test_the_bound_of_long_axes_holds_and_is_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared with the exact widest span, found by a pass over all tiles."""
    exact = {}
    for max_spans in (1 << 30, 0):
        monkeypatch.setattr(boxes, "MAX_SPANS", max_spans)
        for n, d, causal, transposed in itertools.product((1, 7, 24, 41), (1, 2, 5), (False, True), (False, True)):
            for w, tile in itertools.product(range(1, n // d + 1), (1, 2, 3, 5, 8, 30)):
                for s in sorted({1, 2, 3, w // 2, w - 1, w} & set(range(1, w + 1))):
                    axis = Axis(n, n, w, s, d, causal)
                    found = boxes.box_size.__wrapped__(axis, transposed, tile)
                    if max_spans:
                        exact[axis, transposed, tile] = found
                    else:
                        wanted = exact[axis, transposed, tile]
                        assert wanted <= found <= min(-(-n // d), wanted + w + s), (axis, transposed, tile)
    assert len(exact) > 3000


@pytest.mark.parametrize("transposed", [False, True])
def test_tables_of_single_tiles_are_those_of_all(transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a walk whose tables are too large to keep: the same rows, columns and masks."""
    problem = windowed((23, 19), (4, 5), s=(2, 3), d=(2, 3), causal=(False, True))
    walk = plan.walk(problem, transposed)
    kept = list(blocks.Tables(walk, mask.NumpyTables()).chunks())
    monkeypatch.setattr(blocks.Tables, "KEEP_PAIRS", 0)
    monkeypatch.setattr(blocks.Tables, "KEEP_POSITIONS", 0)
    tables = blocks.Tables(walk, mask.NumpyTables())
    assert not tables.keeps_chunks and kept[0].kept
    for before, after in zip(kept, tables.chunks(), strict=True):
        for name in ("rows", "columns", "mask", "held"):
            assert np.array_equal(getattr(before, name), getattr(after, name)), name
        assert np.array_equal(before.offsets(), after.offsets()) and np.array_equal(before.slots(), after.slots())
        assert np.array_equal(before.axis_shifts(1), after.axis_shifts(1))


def assert_taken_in_turns(walk: blocks.Blocks) -> int:
    """Each tile has one turn, each column that a row sees counts as seen, and no turn has a column twice. Returns the
    largest number of turns that a chunk has.
    """
    longest = 0
    for chunk in blocks.Tables(walk, mask.NumpyTables()).chunks():
        assert ((chunk.mask & chunk.held[..., None]).any(1) <= chunk.seen).all()
        found = turns.turns(walk, chunk.first, chunk.count)
        tiles = [np.arange(chunk.count)[own] for own in found]
        assert sorted(np.concatenate(tiles)) == list(range(chunk.count))
        for own in tiles:
            touched = chunk.columns[own][chunk.seen[own]]
            assert len(touched) == len(np.unique(touched))
        longest = max(longest, len(found))
    return longest


@pytest.mark.parametrize("case", CASES, ids=str)
def test_turns_share_no_key(case: Case) -> None:
    walk = plan.walk(case.problem("float32"), transposed=False)
    assert_taken_in_turns(walk)
    # Smaller tiles, more of them: more that overlap, in chunks that end anywhere.
    tiles = [min(3, axis.tile) for axis in walk.axes]
    axes = [
        axis._replace(tile=tile, box=boxes.box_size(axis.axis, False, tile))
        for axis, tile in zip(walk.axes, tiles, strict=True)
    ]
    for step in (5, 10_000):
        assert_taken_in_turns(blocks.Blocks(tuple(axes), step, 1))


def test_turns_are_few() -> None:
    """As many turns as tiles that may overlap, not as tiles: two on an axis whose tiles are longer than its windows."""
    walk = plan.walk(windowed((4096,), 7, d=4), transposed=False)
    assert walk.tiles_at_once > 10 and assert_taken_in_turns(walk) == 2
    walk = plan.walk(windowed((64, 64), (3, 5), heads=1), transposed=False)
    assert walk.tiles_at_once > 100 and assert_taken_in_turns(walk) <= 9


# --- run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("name", ["seq-additional-everything", "img-rpb-everything", "vol-causal"])
def test_a_walk_of_single_rows_runs(name: str, framework: Framework, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk of an extreme problem, for a small one: each tile is a row, and nothing is kept."""
    for holder, constant, value in (
        (plan, "TILE_BYTES", 64),
        (plan, "STEP_BYTES", 64),
        (blocks.Tables, "KEEP_PAIRS", 0),
        (blocks.Tables, "KEEP_POSITIONS", 0),
        (boxes, "MAX_SPANS", 0),
    ):
        module = {plan: "plan", boxes: "boxes"}.get(holder, "blocks")
        of_package = framework.module(f"_metal.plan.{module}")
        monkeypatch.setattr(of_package.Tables if holder is blocks.Tables else of_package, constant, value)
    forget(framework)
    case = replace(BY_NAME[name], name=f"{name} in single rows")  # a case of its own: the inputs follow from the name
    try:
        problem = case.problem("float32")
        device = framework.module("_metal.plan.device").Device("cpu", "cpu")
        made = framework.module("_metal.plan.plan").plan(
            framework.module("_metal.problem.problem").Problem(*astuple(problem)), device, "pure", ("pure",)
        )
        assert made.forward.queries.tile_rows == made.forward.queries.tiles_at_once == 1
        found, _ = run(Path(framework, "pure"), case, "float32")
    finally:
        forget(framework)
    assert_within(found, fused(case, "float32"), name)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_heads_share_a_walk(framework: Framework) -> None:
    """Problems with other heads on one walk: what its chunks keep from call to call fits them all."""
    walks = set()
    for heads, kv_heads in ((4, 4), (4, 2), (4, 1), (2, 2), (2, 1), (4, 4)):
        case = make(f"{heads} heads, {kv_heads} of keys", (9,), 3, heads=heads, kv_heads=kv_heads)
        walks.add(plan.plan(case.problem("float32"), CPU, "pure", ("pure",)).forward.queries)
        found, _ = run.__wrapped__(Path(framework, "pure"), case, "float32")
        assert_within(found, fused(case, "float32"), case.name)
    assert len(walks) == 1


def forget(framework: Framework) -> None:
    """Forget what earlier calls have planned and learned."""
    framework.module("_device").machine().forget()
    framework.module("_metal.caches").clear_all()


WIDE = (200_000, 5_001)


def measure(package: str) -> dict[str, Any]:
    """The peak of a forward pass above the memory before, and the error of a few rows."""
    framework = {"mps": MPS, "mlx": MLX}[package]
    tokens, w = WIDE
    random = np.random.default_rng(1)
    arrays = [random.standard_normal((1, tokens, 1, 2)).astype(np.float32) for _ in range(3)]
    given = [framework.tensor(a, "float32") for a in arrays]
    small = [framework.tensor(a[:, :9], "float32") for a in arrays]
    framework.evaluate(*given, framework.face("na1d")(*small, 3, backend="pure"))
    before = memory()["now"]
    with framework.watch() as ran:
        out = framework.face("na1d")(*given, w, stride=w, backend="pure")
        framework.evaluate(out)
    peak = memory()["peak"] - before
    assert ran == {"pure"}
    query, key, value = (a[0, :, 0].astype(float) for a in arrays)
    apart = 0.0
    for token in (0, 7, tokens // 2, tokens - 1):
        first = min(max(min(token // w * w + w // 2, tokens - 1) - w // 2, 0), tokens - w)
        weights = np.exp(key[first : first + w] @ query[token] * 2**-0.5)
        wanted = weights @ value[first : first + w] / weights.sum()
        apart = max(apart, float(np.abs(framework.numpy(out)[0, token, 0] - wanted).max()))
    return {"peak": peak, "apart": apart}


@pytest.mark.all
@pytest.mark.parametrize("package", ["mps", "mlx"])
def test_wide_windows_run_in_bounded_memory(package: str) -> None:
    """Tiles of one row, whose columns, masks and gathered rows are made chunk by chunk: memory is needed only for the
    pairs of a query and a key that are computed at once. For all tiles, the columns alone would take 8 GB.
    """
    found = in_a_fresh_process("test_walks", f"measure({package!r})")
    print(package, found)
    assert found["apart"] < 1e-4
    (tokens, w), width = WIDE, 2
    problem = replace(windowed((tokens,), w, s=w), head_dim=width, head_dim_v=width)
    walk = plan.walk(problem, transposed=False)
    assert walk.tile_rows == 1
    pairs = walk.tiles_at_once * walk.box_columns
    # Integers of 8 bytes: a chunk's columns by position, by token and over all axes, of this chunk and the last; three
    # more intermediate ones; the rows to gather, twice.
    tables = 8 * (2 * 3 + 3 + 2)
    # The window as a mask added to logits, logits, weights, two more intermediate ones; keys and values; masks.
    values = 4 * 5 + 4 * 2 * width + 4
    tensors = 8 * 4 * tokens * width  # results, and their parts before that
    assert 0 < found["peak"] < pairs * (tables + values) + tensors, found
