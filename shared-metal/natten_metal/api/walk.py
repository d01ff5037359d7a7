"""Tensors on the pure backend's walk over tiles: gather a tile's rows, mask its box, assemble its results.

torch computes step by step, and in place; MLX builds a graph in which each step depends on the one before. Each
package implements :class:`Walk` in its module ``_plain.walk``.
"""

import math
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Literal, Protocol

from ..caches import cached, caches
from ..plan.blocks import Blocks, Chunk, Tables
from ..plan.turns import turns
from .operations import Dtype, Operations, Tensor, compute_dtype, pad

# The caches of walks.
TABLES, RESULT_ROWS = "tables of walks", "result rows"
Side = Literal["rows", "columns"]


class Step:
    """Some tiles and the batch items to compute them for, where each step is done before the next begins.

    before: the step that must be finished first, or None.
    """

    def __init__(self, chunk: Chunk, items: range, before: Any) -> None:
        self.chunk, self.items = chunk, items

    def keep(self, *made: Tensor) -> None:
        """Name what this step computes for later ones."""

    def when_due(self, index: Tensor) -> Tensor:
        """``index``, available only when the step before is done."""
        return index


class Walk(Protocol):
    """One framework's walk. Functions that return a tensor may write into their first argument."""

    def __hash__(self) -> int:
        """A walk is a Python module; caches have it in their keys."""

    @property
    def operations(self) -> Operations:
        """The framework's plain operations."""

    @property
    def Step(self) -> type[Step]:
        """The class of its steps."""

    def tables(self, blocks: Blocks, device: Any) -> Tables:
        """New index tables of a walk."""

    def constant(self, table: Tensor) -> Tensor:
        """``table``, computed now: what is kept for later calls must not depend on this call."""

    def put(self, buffer: Tensor | None, shape: tuple[int, ...], dtype: Dtype, step: Any, part: Tensor) -> Tensor:
        """The buffer of ``shape`` ``[B, tiles, ...]`` (None: not made yet) with the tiles of a step in it."""

    def add_rows(self, buffer: Tensor, index: Tensor, part: Tensor) -> Tensor:
        """``buffer [rows, D]`` with ``part [..., D]`` added at ``index``, in which no row occurs twice."""

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """``a + b``, of the shape of ``a``."""

    def softmax(self, logits: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Weights, lse, and the function from weights times values to the output: 0 where all logits are -inf."""

    def exponentials(self, logits: Tensor, lse: Tensor) -> Tensor:
        """``exp(logits - lse)``."""

    def gradient_of_logits(self, d_weights: Tensor, delta: Tensor, weights: Tensor) -> Tensor:
        """``(d_weights - delta) * weights``."""

    def hide(self, tensor: Tensor, held: Tensor, empty: float) -> Tensor:
        """``tensor`` with ``empty`` where not ``held``."""


@cached(TABLES, 32)
def tables(walk: Any, blocks: Blocks, device: Hashable) -> Tables:
    """The index tables of a walk, kept for the next call."""
    made: Tables = walk.tables(blocks, device)
    return made


class Steps:
    """All steps of a walk, in order. like: a tensor with the batch. after: the steps that must be finished first."""

    def __init__(self, walk: Walk, blocks: Blocks | None, like: Tensor, after: "Steps | None" = None) -> None:
        assert blocks is not None
        self.walk, self.blocks, self.like = walk, blocks, like
        self._after = after
        self._last: Step | None = None

    def __iter__(self) -> Iterator[Step]:
        batch, count, device = self.like.shape[0], self.blocks.items_at_once, self.walk.operations.device(self.like)
        self._last = None if self._after is None else self._after._last
        for chunk in tables(self.walk, self.blocks, device).chunks():
            for first in range(0, batch, count):
                step = self.walk.Step(chunk, range(first, min(first + count, batch)), self._last)
                yield step
                self._last = step


def _computed(walk: Walk, chunk: Chunk, table: Tensor) -> Tensor:
    """``table``, computed now if the chunk is kept from one call to the next."""
    return walk.constant(table) if chunk.kept else table


def _cached_in(walk: Walk, chunk: Chunk, name: object, make: Callable[[], Tensor]) -> Tensor:
    """``make()``, computed once if the chunk is kept."""
    return chunk.cached(name, lambda: _computed(walk, chunk, make()))


class Rows:
    """A heads-last tensor ``[B, *shape, H, D]`` as rows of D, gathered tile by tile.

    groups: query heads per key/value head; they are joined to the rows of a tile.
    """

    def __init__(self, walk: Walk, tensor: Tensor, groups: int = 1) -> None:
        self.walk, self.xp = walk, walk.operations
        self.batch, self.heads, self.width = tensor.shape[0], tensor.shape[-2], tensor.shape[-1]
        self.tokens, self.groups = math.prod(tensor.shape[1:-2]), groups
        self.rows = self.xp.contiguous(tensor).reshape(self.batch * self.tokens * self.heads, self.width)
        self.dtype = compute_dtype(self.xp, tensor)

    def row_numbers(self, step: Step, which: Side) -> Tensor:
        """Row numbers ``[b, c, H, T]`` of a step's rows or columns."""
        items = step.items

        def make() -> Tensor:
            arange = self.xp.tables(self.xp.device(self.rows)).arange
            index = getattr(step.chunk, which)[:, None, :] * self.heads + arange(self.heads)[:, None]
            item = arange(len(items))[:, None, None, None] + items.start
            return index + item * (self.tokens * self.heads)

        return _cached_in(self.walk, step.chunk, (which, self.heads, items), make)

    def gather(self, step: Step, which: Side) -> Tensor:
        """A step's rows or columns: ``[b, c, kv heads, groups * T, D]`` in the compute dtype."""
        index = step.when_due(self.row_numbers(step, which))
        found = self.xp.astype(self.xp.take(self.rows, index.reshape(-1), 0), self.dtype)
        b, c, heads, count = index.shape
        return found.reshape(b, c, heads // self.groups, self.groups * count, self.width)


class Collector:
    """Results of tiles, ``[b, c, kv heads, groups * T, D]`` each, assembled as ``[B, *shape, H, D]``."""

    def __init__(self, walk: Walk, blocks: Blocks, like: Tensor, heads: int, width: int, dtype: Dtype) -> None:
        self.walk, self.blocks, self.like, self.dtype = walk, blocks, like, dtype
        self.shape = (like.shape[0], blocks.tiles, heads, blocks.tile_rows, width)
        self.buffer = None

    def put(self, step: Step, part: Tensor) -> None:
        """Keep the result of a step, rounded to the result's dtype."""
        self.buffer = self.walk.put(self.buffer, self.shape, self.dtype, step, part)

    def result(self, shape: tuple[int, ...]) -> Tensor:
        """The rows of all tokens, gathered from where their tiles put them."""
        xp, (batch, tiles, heads, tile_rows, width) = self.walk.operations, self.shape
        if self.buffer is None:  # a batch without items
            return xp.zeros((batch, *shape, heads, width), self.dtype, self.like)
        small = batch * tiles * heads * tile_rows <= Tables.KEEP_PAIRS
        find = _kept_result_rows if small else _result_rows
        row = find(self.walk, self.blocks, batch, heads, xp.device(self.like))
        found = xp.take(self.buffer.flatten(0, -2), row, 0)
        return found.reshape(batch, *shape, heads, width)


def _result_rows(walk: Walk, blocks: Blocks, batch: int, heads: int, device: Hashable) -> Tensor:
    """For each row of ``[B, *shape, H]``, its row among those of ``[B, tiles, H, tile rows]``."""
    arange = walk.operations.tables(device).arange
    position, tile_rows = tables(walk, blocks, device).row_positions(), blocks.tile_rows
    row = position // tile_rows * (heads * tile_rows) + position % tile_rows
    row = row[None, :, None] + arange(heads) * tile_rows
    row = row + arange(batch)[:, None, None] * (blocks.tiles * heads * tile_rows)
    return row.flatten()


@cached(RESULT_ROWS, 32)
def _kept_result_rows(walk: Any, blocks: Blocks, batch: int, heads: int, device: Hashable) -> Tensor:
    return walk.constant(_result_rows(walk, blocks, batch, heads, device))


def forget() -> None:
    """Empty the caches of walks: for a series of calls that all differ, where memory is short."""
    for cache in caches():
        if cache.name in (TABLES, RESULT_ROWS):
            cache.clear()


class Sums:
    """Sums per row of ``[B, *shape, H, D]``: tiles add parts ``[b, c, H, U, D]`` to the columns of their boxes.

    rows: the tensor that is gathered by these columns.
    """

    def __init__(self, walk: Walk, blocks: Blocks, rows: Rows) -> None:
        self.walk, self.blocks, self.rows, self.unseen = walk, blocks, rows, rows.rows.shape[0]
        # The last row collects what belongs to no key: columns of the box that no row of its tile sees.
        self.buffer = walk.operations.zeros((self.unseen + 1, rows.width), rows.dtype, rows.rows)

    def _turns(self, step: Step) -> list[tuple[slice | Tensor, Tensor]]:
        """Which tiles of a step add together, and to which rows of the buffer."""
        walk, xp, chunk = self.walk, self.walk.operations, step.chunk

        def make() -> list[tuple[slice | Tensor, Tensor]]:
            index = xp.where(chunk.seen[:, None], self.rows.row_numbers(step, "columns"), self.unseen)
            found = turns(self.blocks, chunk.first, chunk.count)
            picks = [
                t if isinstance(t, slice) else _computed(walk, chunk, xp.integers(t, xp.int64, index)) for t in found
            ]
            return [(tiles, _computed(walk, chunk, index[:, tiles])) for tiles in picks]

        made: list[tuple[slice | Tensor, Tensor]] = chunk.cached(("turns", self.rows.heads, step.items), make)
        return made

    def add(self, step: Step, part: Tensor) -> None:
        for tiles, index in self._turns(step):
            self.buffer = self.walk.add_rows(self.buffer, index, part[:, tiles])
        step.keep(self.buffer)

    def result(self, shape: tuple[int, ...]) -> Tensor:
        return self.buffer[:-1].reshape(self.rows.batch, *shape, self.rows.heads, self.rows.width)


# --- logits of a tile --------------------------------------------------------------------------------


def _bias(walk: Walk, logits: Tensor, chunk: Chunk, rpb: Tensor, groups: int) -> Tensor:
    """``[c, kv heads, groups, T, U]``: the bias of each pair; meaningless where masked."""
    xp, kv_heads, offsets = walk.operations, logits.shape[2], chunk.offsets()
    biases = xp.astype(rpb, logits.dtype).flatten(1)
    relative = xp.take(biases, offsets.flatten(), 1).reshape(kv_heads, groups, *offsets.shape)
    return xp.moveaxis(relative, 2, 0)


def _add(walk: Walk, logits: Tensor, bias: Tensor, groups: int) -> Tensor:
    b, c, kv_heads, rows, columns = logits.shape
    return walk.add(logits.reshape(b, c, kv_heads, groups, rows // groups, columns), bias).reshape(logits.shape)


def add_bias(walk: Walk, logits: Tensor, chunk: Chunk, rpb: Tensor, groups: int) -> Tensor:
    """Add rpb to logits ``[b, c, kv heads, groups * T, U]``."""
    return _add(walk, logits, _bias(walk, logits, chunk, rpb, groups), groups)


def mask_logits(walk: Walk, logits: Tensor, step: Step, rpb: Tensor | None, groups: int, seen: Rows | None) -> Tensor:
    """Add -inf outside the window, and rpb, to logits ``[b, c, kv heads, groups * T, U]``; -inf at masked keys.

    seen: the key mask ``[B, *shape, 1, 1]``, if there is one.
    """
    chunk, where = step.chunk, walk.operations.where
    bias = _cached_in(walk, chunk, "bias", lambda: where(chunk.mask, 0.0, -math.inf))[:, None, None]
    if rpb is not None:
        bias = bias + _bias(walk, logits, chunk, rpb, groups)
    logits = _add(walk, logits, bias, groups)
    if seen is None:
        return logits
    return walk.hide(logits, seen.gather(step, "columns").swapaxes(-1, -2) != 0, -math.inf)


def reciprocal(walk: Walk, total: Tensor, chunk: Chunk, groups: int) -> Tensor:
    """1 / total; 0 for a query without weights, and for rows past the end of a group, which repeat a token."""
    xp = walk.operations
    held = _cached_in(walk, chunk, ("held", groups), lambda: xp.concatenate([chunk.held] * groups, 1)[:, None, :, None])
    return xp.where(held & (total != 0), 1 / total, 0.0)


def rpb_gradient(xp: Operations, logits_grad: Tensor, chunk: Chunk, blocks: Blocks) -> Tensor:
    """Sum ``logits_grad [b, c, kv heads, groups * T, U]`` over all pairs of equal offset: ``[H, 2w - 1, ...]``.

    Axis by axis: a skew aligns the diagonals (column - row) of the tile, and their sums are gathered at their
    offsets. Only sums and gathers, so the order never changes.
    """
    rank, integers = len(blocks.axes), xp.tables(xp.device(logits_grad))
    tile, box = [axis.tile for axis in blocks.axes], [axis.box for axis in blocks.axes]
    b, c, kv_heads, rows, columns = logits_grad.shape
    heads = kv_heads * rows // blocks.tile_rows
    summed = logits_grad.reshape(b, c, heads, blocks.tile_rows, columns).sum(0) * chunk.held[:, None, :, None]
    summed = summed.reshape(c, heads, *tile, *box)
    for axis, (t, u) in enumerate(zip(tile, box, strict=True)):
        table = xp.flip(xp.moveaxis(xp.moveaxis(summed, 2 + rank - axis, -1), 2, -2), -2)
        lead = table.shape[:-2]
        skewed = pad(xp, table, {-1: (0, t)}).flatten(-2)[..., :-t]
        diagonals = skewed.reshape(*lead, t, u + t - 1).sum(-2)
        w = blocks.axes[axis].axis.window
        offset = integers.arange(2 * w - 1) + (t - w) - chunk.axis_shifts(axis)[:, None]
        inside = (offset >= 0) & (offset < u + t - 1)
        spread = (c, *[1] * (len(lead) - 1), 2 * w - 1)
        index = integers.minimum(integers.maximum(offset, 0), u + t - 2).reshape(spread)
        summed = xp.gather(diagonals, index) * inside.reshape(spread)
    return summed.sum(0)
