"""Arrays on the pure path's walk: gather a tile's rows, mask its box, assemble its results.

Nothing is evaluated here; each function adds to MLX's graph. MLX runs a graph in an order of its own, so what a step
gathers is made to depend on what the step before it computed (:class:`Walk`): steps then run one after another, each in
the memory that the last one freed.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import mlx.core as mx

from .._metal.plan.blocks import Blocks, Chunk, Tables
from .._metal.plan.turns import turns
from .._tensors import MlxTables, Optional, compute_dtype, constant


@lru_cache(maxsize=32)
def tables(blocks: Blocks) -> Tables:
    """The index tables of a walk, kept for the next call."""
    made = Tables(blocks, MlxTables())
    made.settle(constant)
    return made


def _noted(chunk: Chunk, name: object, make: Callable[[], mx.array]) -> mx.array:
    """``make()``, computed once if the chunk is kept, otherwise part of the graph."""

    found: mx.array = chunk.noted(name, lambda: constant(make()) if chunk.kept else make())
    return found


@dataclass(frozen=True, slots=True)
class Step:
    """Some tiles and the batch items to compute them for.

    start: a zero that MLX knows only when the step before is done (None: there is none). parts: what this step computes
    for later ones, collected here.
    """

    chunk: Chunk
    items: range
    start: Optional
    parts: list[mx.array]


class Walk:
    """The steps of a walk, in order; ``after`` is the walk that must be finished first."""

    def __init__(self, blocks: Blocks | None, batch: int, after: "Walk | None" = None) -> None:
        assert blocks is not None
        self.blocks, self.batch = blocks, batch
        self._after = after
        self._parts: list[mx.array] = []

    def __iter__(self) -> Iterator[Step]:
        parts = [] if self._after is None else self._after._parts
        for chunk in tables(self.blocks).chunks():
            for first in range(0, self.batch, self.blocks.batch_step):
                items = range(first, min(first + self.blocks.batch_step, self.batch))
                step = Step(chunk, items, _zero_after(parts), [])
                yield step
                self._parts = parts = step.parts


def _zero_after(parts: list[mx.array]) -> Optional:
    """The integer 0, computed from ``parts``; unlike ``mx.depends``, it has a vmap."""
    if not parts:
        return None
    firsts = mx.stack([mx.isnan(part[(0,) * part.ndim]) for part in parts])
    return firsts.sum().astype(mx.int64) * 0


def _positions(count: int, trailing: int, first: int = 0) -> mx.array:
    """``first .. first + count - 1`` followed by ``trailing`` dimensions of one."""
    return (mx.arange(count, dtype=mx.int64) + first).reshape(count, *[1] * trailing)


Side = Literal["rows", "columns"]


class Rows:
    """A heads-last array ``[B, *shape, H, D]`` as rows of D, gathered tile by tile.

    groups: query heads per key/value head; they are joined to the rows of a tile.
    """

    def __init__(self, tensor: mx.array, groups: int = 1) -> None:
        self.batch, self.heads, self.width = tensor.shape[0], tensor.shape[-2], tensor.shape[-1]
        self.tokens, self.groups = math.prod(tensor.shape[1:-2]), groups
        self.rows = tensor.reshape(self.batch * self.tokens * self.heads, self.width)
        self.dtype = compute_dtype(tensor)

    def places(self, step: Step, which: Side) -> mx.array:
        """Row numbers ``[b, c, H, T]`` of a step's rows or columns."""
        items = step.items

        def make() -> mx.array:
            tokens: mx.array = getattr(step.chunk, which)
            index = tokens[:, None, :] * self.heads + _positions(self.heads, 1)
            return index + _positions(len(items), 3, items.start) * (self.tokens * self.heads)

        return _noted(step.chunk, (which, self.heads, items), make)

    def index(self, step: Step, which: Side) -> mx.array:
        """The same, known only when the step before is done."""
        places = self.places(step, which)
        return places if step.start is None else places + step.start

    def gather(self, step: Step, which: Side) -> mx.array:
        """A step's rows or columns: ``[b, c, kv heads, groups * T, D]`` in the compute dtype."""
        index = self.index(step, which)
        found = mx.take(self.rows, index, axis=0).astype(self.dtype)
        b, c, heads, count = index.shape
        return found.reshape(b, c, heads // self.groups, self.groups * count, self.width)


class Collector:
    """Results of tiles, ``[b, c, kv heads, groups * T, D]`` each, assembled as ``[B, *shape, H, D]``."""

    def __init__(self, blocks: Blocks, batch: int, heads: int, width: int, dtype: mx.Dtype) -> None:
        self.blocks, self.dtype = blocks, dtype
        self.shape = (batch, blocks.tiles, heads, blocks.tile_rows, width)
        self.buffer: Optional = None

    def put(self, step: Step, part: mx.array) -> None:
        """Keep the result of a step, rounded to the result's dtype."""
        chunk, items = step.chunk, step.items
        part = part.astype(self.dtype).reshape(len(items), chunk.count, *self.shape[2:])
        step.parts.append(part)
        if tuple(part.shape) == self.shape:
            self.buffer = part
            return
        if self.buffer is None:
            self.buffer = mx.zeros(self.shape, self.dtype)
        # MLX writes in place, because nothing else reads this version of the buffer.
        self.buffer[items.start : items.stop, chunk.first : chunk.first + chunk.count] = part

    def result(self, shape: tuple[int, ...]) -> mx.array:
        """Every token's row, gathered from where its tile left it."""
        assert self.buffer is not None
        batch, tiles, heads, tile_rows, width = self.shape
        small = batch * tiles * heads * tile_rows <= Tables.KEEP_PAIRS
        row = (_remembered_places if small else _places)(self.blocks, batch, heads)
        return mx.take(self.buffer.flatten(0, -2), row, axis=0).reshape(batch, *shape, heads, width)


class Sums:
    """Sums per row of ``[B, *shape, H, D]`` of what tiles, ``[b, c, H, U, D]`` each, add to the columns of their boxes.

    rows: the array that is gathered by these columns.
    """

    def __init__(self, blocks: Blocks, rows: Rows) -> None:
        self.blocks, self.rows, self.nobody = blocks, rows, rows.rows.shape[0]
        # The last row collects what belongs to no key: columns of the box that no row of its tile sees.
        self.buffer = mx.zeros((self.nobody + 1, rows.width), rows.dtype)

    def _turns(self, step: Step) -> list[tuple[slice | mx.array, mx.array]]:
        """Which tiles of a step add together, and to which rows of the buffer."""
        chunk = step.chunk

        def make() -> list[tuple[slice | mx.array, mx.array]]:
            index = mx.where(chunk.seen[:, None], self.rows.places(step, "columns"), self.nobody)
            settled = constant if chunk.kept else lambda tensor: tensor
            found = turns(self.blocks, chunk.first, chunk.count)
            picks = [t if isinstance(t, slice) else settled(mx.array(t)) for t in found]
            return [(tiles, settled(index[:, tiles])) for tiles in picks]

        made: list[tuple[slice | mx.array, mx.array]] = chunk.noted(("turns", self.rows.heads, step.items), make)
        return made

    def add(self, step: Step, part: mx.array) -> None:
        for tiles, index in self._turns(step):
            # MLX writes in place, because nothing else reads this version of the buffer.
            self.buffer[index] = self.buffer[index] + part[:, tiles]
        step.parts.append(self.buffer)

    def result(self, shape: tuple[int, ...]) -> mx.array:
        return self.buffer[:-1].reshape(self.rows.batch, *shape, self.rows.heads, self.rows.width)


def _places(blocks: Blocks, batch: int, heads: int) -> mx.array:
    """For each row of ``[B, *shape, H]``, its row among those of ``[B, tiles, H, tile rows]``."""
    place, tile_rows = tables(blocks).places(), blocks.tile_rows
    row = place // tile_rows * (heads * tile_rows) + place % tile_rows
    row = row[:, None] + mx.arange(heads, dtype=mx.int64) * tile_rows
    return row + _positions(batch, 2) * (blocks.tiles * heads * tile_rows)


@lru_cache(maxsize=32)
def _remembered_places(blocks: Blocks, batch: int, heads: int) -> mx.array:
    return constant(_places(blocks, batch, heads))


def mask_logits(logits: mx.array, chunk: Chunk, rpb: Optional, groups: int, transposed: bool = False) -> mx.array:
    """Add -inf outside the window, and rpb.

    logits: ``[b, c, kv heads, groups * T, U]``; transposed: ``[b, c, kv heads, T, groups * U]``.
    """
    bias = _noted(chunk, "bias", lambda: mx.where(chunk.mask, 0.0, -math.inf))[:, None, None]
    b, c, kv_heads, rows, columns = logits.shape
    if rpb is not None:
        bias = bias + relative_bias(chunk, rpb.astype(logits.dtype), kv_heads, groups)
    if transposed:
        spread = logits.reshape(b, c, kv_heads, rows, groups, columns // groups) + bias.swapaxes(2, 3)
    else:
        spread = logits.reshape(b, c, kv_heads, groups, rows // groups, columns) + bias
    return spread.reshape(logits.shape)


def relative_bias(chunk: Chunk, rpb: mx.array, kv_heads: int, groups: int) -> mx.array:
    """``[c, kv heads, groups, T, U]``: the bias of each pair; meaningless where masked."""
    table = mx.unflatten(rpb.flatten(1), 0, (kv_heads, groups))
    return mx.take(table, chunk.offsets(), axis=2).transpose(2, 0, 1, 3, 4)


def bias_gradient(d_logits: mx.array, chunk: Chunk, blocks: Blocks) -> mx.array:
    """Sum ``d_logits [b, c, kv heads, groups * T, U]`` over all pairs of equal offset: ``[H, 2w - 1, ...]``.

    Axis by axis: a skew aligns the diagonals (column - row) of the tile, and their sums are gathered at the offsets
    they belong to. Only sums and gathers, so the order never changes.
    """
    rank = len(blocks.axes)
    tile, box = [axis.tile for axis in blocks.axes], [axis.box for axis in blocks.axes]
    b, c, kv_heads, rows, columns = d_logits.shape
    heads = kv_heads * rows // blocks.tile_rows
    summed = d_logits.reshape(b, c, heads, blocks.tile_rows, columns).sum(0) * chunk.held[:, None, :, None]
    summed = summed.reshape(c, heads, *tile, *box)
    for axis, (t, u) in enumerate(zip(tile, box, strict=True)):
        table = mx.moveaxis(mx.moveaxis(summed, 2 + rank - axis, -1), 2, -2)[..., ::-1, :]
        lead = table.shape[:-2]
        skewed = mx.pad(table, [*[(0, 0)] * (len(lead) + 1), (0, t)])
        skewed = skewed.reshape(*lead, t * (u + t))[..., :-t]
        diagonals = skewed.reshape(*lead, t, u + t - 1).sum(-2)
        w = blocks.axes[axis].axis.window
        where = mx.arange(1 - w, w, dtype=mx.int64) + (t - 1) - chunk.axis_shifts(axis)[:, None]
        inside = (where >= 0) & (where < u + t - 1)
        spread = (c, *[1] * (len(lead) - 1), 2 * w - 1)
        where = mx.clip(where, 0, u + t - 2).reshape(spread)
        found = mx.take_along_axis(diagonals, mx.broadcast_to(where, (*lead, 2 * w - 1)), axis=-1)
        summed = found * inside.reshape(spread)
    return summed.sum(0)
