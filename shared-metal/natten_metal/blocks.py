"""How the pure path walks a problem: tiles of rows, and the box of columns that each tile sees.

Forward and dQ walk **queries** (rows) and read the box of keys (columns) that a tile's windows span;
dK and dV walk **keys** and read the box of queries whose windows hold them (``transposed``). Both are
the same walk, with the window or its inverse as the interval of columns that a row sees::

    rows of one tile                columns of its box
    p0 . . . p0+T-1       ->        origin . . . . . . origin+U-1
                                    row p sees [low(p), high(p)) of them, the rest is masked

Dilation groups are tiles of their own, so all positions are positions inside a group. Everything is
built per axis and then combined, so rank is never more than a loop. The index tables are written over
an array namespace (numpy, torch or MLX); they are plan data, no tensor of the user's is touched.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from .problem import Axis
from .window import INTEGERS, ArrayNamespace, group_length, inverse, window


class TableNamespace(ArrayNamespace, Protocol):
    """:class:`~.window.ArrayNamespace` that also makes arrays."""

    def arange(self, count: int, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class AxisBlocks:
    """One axis cut into tiles of ``tile`` rows that see boxes of ``box`` columns."""

    axis: Axis
    transposed: bool
    tile: int
    box: int

    @property
    def rows(self) -> int:
        return self.axis.keys if self.transposed else self.axis.queries

    @property
    def columns(self) -> int:
        return self.axis.queries if self.transposed else self.axis.keys

    @property
    def tiles(self) -> int:
        """Tiles of all dilation groups; the group is the fastest index."""
        return self.axis.dilation * tiles_per_group(self.rows, self.axis.dilation, self.tile)


@dataclass(frozen=True, slots=True)
class Blocks:
    """The walk over all axes: ``step`` tiles of ``batch_step`` batch items at a time."""

    axes: tuple[AxisBlocks, ...]
    step: int
    batch_step: int

    @property
    def tiles(self) -> int:
        return math.prod(axis.tiles for axis in self.axes)

    @property
    def tile_rows(self) -> int:
        return math.prod(axis.tile for axis in self.axes)

    @property
    def box_columns(self) -> int:
        return math.prod(axis.box for axis in self.axes)


def tiles_per_group(length: int, dilation: int, tile: int) -> int:
    """Tiles that the longest dilation group of an axis needs."""
    return -(-group_length(length, 0, dilation) // tile)


def row_interval(axis: Axis, transposed: bool, p: Any, columns: Any, xp: ArrayNamespace = INTEGERS) -> tuple[Any, Any]:
    """``[low, high)``: the columns, out of ``columns`` in the group, that the row at ``p`` sees."""
    interval = inverse if transposed else window
    return interval(p, columns, axis.window, axis.stride, axis.causal, xp)


@lru_cache(maxsize=4096)
def box_size(axis: Axis, transposed: bool, tile: int) -> int:
    """The widest span of columns that any tile of ``tile`` rows sees."""
    rows = axis.keys if transposed else axis.queries
    columns = axis.queries if transposed else axis.keys
    lengths = {
        (group_length(rows, g, axis.dilation), group_length(columns, g, axis.dilation)) for g in range(axis.dilation)
    }
    widest = 1
    for row_count, column_count in lengths:
        for first in range(0, row_count, tile):
            last = min(first + tile, row_count) - 1
            low, _ = row_interval(axis, transposed, first, column_count)
            _, high = row_interval(axis, transposed, last, column_count)
            widest = max(widest, min(high, column_count) - low)
    return widest


class AxisTables:
    """The index tables of one axis, ``[tiles, tile]`` for rows and ``[tiles, box]`` for columns.

    row, column: positions inside the group. row_token, column_token: positions on the axis; beyond
    the end of a group they repeat its last token, which is masked (columns) or dropped (rows).
    """

    def __init__(self, blocks: AxisBlocks, xp: TableNamespace) -> None:
        axis, d = blocks.axis, blocks.axis.dilation
        index = xp.arange(blocks.tiles)[:, None]
        group = index % d
        rows = group_length(blocks.rows, group, d)
        columns = group_length(blocks.columns, group, d)
        row = index // d * blocks.tile + xp.arange(blocks.tile)[None, :]
        self.row_held = row < rows
        self.row = xp.minimum(row, rows - 1)
        self.row_token = self.row * d + group
        self.low, self.high = row_interval(axis, blocks.transposed, self.row, columns, xp)
        self.high = xp.minimum(self.high, columns)
        origin = xp.maximum(xp.minimum(self.low[:, :1], columns - blocks.box), 0)
        self.column = origin + xp.arange(blocks.box)[None, :]
        self.column_token = xp.minimum(self.column, columns - 1) * d + group
        if blocks.transposed:
            self.window_start, _ = row_interval(axis, False, self.column, rows, xp)


class Chunk:
    """The tables of some consecutive tiles: ``c`` tiles of ``T`` rows and ``U`` columns over all axes."""

    MOST_NOTES = 32

    def __init__(self, tables: "Tables", first: int, count: int) -> None:
        self._tables = tables
        self._tile_ids = tables.split(first, count)
        self.first, self.count = first, count
        self.rows = tables.tokens(self._tile_ids, rows=True)
        self.columns = tables.tokens(self._tile_ids, rows=False)
        self._mask: Any = None
        self._notes: dict[Any, Any] = {}

    def noted(self, name: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` returned the first time for ``name``: index arrays in the framework's own form."""
        if name not in self._notes:
            if len(self._notes) >= self.MOST_NOTES:
                self._notes.clear()
            self._notes[name] = make()
        return self._notes[name]

    @property
    def kept(self) -> bool:
        """Whether the chunk is kept from one call to the next, and its notes with it."""
        return self._tables.keeps_chunks

    def settle(self, constant: Callable[[Any], Any]) -> None:
        """Replace the chunk's tables by ``constant`` of them, see :meth:`Tables.settle`."""
        self._tile_ids = [constant(ids) for ids in self._tile_ids]
        self.rows, self.columns, self._mask = constant(self.rows), constant(self.columns), constant(self.mask)

    @property
    def held(self) -> Any:
        """``[c, T]`` bool: the row is a token and not a repetition past the end of its group."""
        tables, rank, total = self._tables, len(self._tile_ids), None
        for axis, table in enumerate(tables.axes):
            part = table.row_held[self._tile_ids[axis]]
            part = part.reshape(_spread(part.shape, rank, [axis]))
            total = part if total is None else total & part
        assert total is not None
        return total.reshape(self.count, -1)

    @property
    def mask(self) -> Any:
        """``[c, T, U]`` bool: the row sees the column."""
        if self._mask is None:
            self._mask = self._tables.pairs(self._tile_ids, _sees, lambda a, b: a & b)
        return self._mask

    def slots(self) -> Any:
        """``[c, T, U]``: the window slot that the pair has; meaningless where masked."""
        strides = self._tables.slot_strides
        slots = self._tables.pairs(self._tile_ids, _slot, lambda a, b: a + b, strides)
        return self._tables.xp.where(self.mask, slots, 0)

    def offsets(self) -> Any:
        """``[c, T, U]``: the pair's index into a flattened bias table; 0 where masked."""
        strides = self._tables.bias_strides
        offsets = self._tables.pairs(self._tile_ids, _offset, lambda a, b: a + b, strides)
        return self._tables.xp.where(self.mask, offsets, 0)

    def columns_of_slots(self) -> tuple[Any, Any]:
        """``[c, T, W]``: the column of each window slot, and whether the slot holds a key (rows: queries)."""
        return self._tables.columns_of_slots(self._tile_ids)

    def axis_shifts(self, axis: int) -> Any:
        """``[c]``: first column minus first row of each tile on one axis."""
        table = self._tables.axes[axis]
        return (table.column[:, 0] - table.row[:, 0])[self._tile_ids[axis]]


def _sees(table: AxisTables, blocks: AxisBlocks, ids: Any) -> Any:
    column = table.column[ids][:, None, :]
    return (table.low[ids][:, :, None] <= column) & (column < table.high[ids][:, :, None])


def _slot(table: AxisTables, blocks: AxisBlocks, ids: Any) -> Any:
    if blocks.transposed:
        return table.row[ids][:, :, None] - table.window_start[ids][:, None, :]
    return table.column[ids][:, None, :] - table.low[ids][:, :, None]


def _offset(table: AxisTables, blocks: AxisBlocks, ids: Any) -> Any:
    forward = table.column[ids][:, None, :] - table.row[ids][:, :, None]
    return (-forward if blocks.transposed else forward) + (blocks.axis.window - 1)


class Tables:
    """All index tables of a walk, on the device of ``xp``; chunks of tiles are cut from them."""

    # A walk with at most this many (row, column) pairs keeps its chunks, so small problems do not
    # build their masks again at each call.
    KEEP_PAIRS = 1 << 19

    def __init__(self, blocks: Blocks, xp: TableNamespace) -> None:
        self.blocks, self.xp = blocks, xp
        self.axes = [AxisTables(axis, xp) for axis in blocks.axes]
        windows = [axis.axis.window for axis in blocks.axes]
        self.slot_strides = _strides(windows)
        self.bias_strides = _strides([2 * w - 1 for w in windows])
        self._row_strides = _strides([axis.rows for axis in blocks.axes])
        self._column_strides = _strides([axis.columns for axis in blocks.axes])
        keep = blocks.tiles * blocks.tile_rows * blocks.box_columns <= self.KEEP_PAIRS
        self._kept: dict[int, Chunk] | None = {} if keep else None

    @property
    def keeps_chunks(self) -> bool:
        """Whether the walk is so small that its chunks are kept from one call to the next."""
        return self._kept is not None

    def settle(self, constant: Callable[[Any], Any]) -> None:
        """Replace every kept table by ``constant`` of it: for a framework whose arrays are not computed yet."""
        for axis in self.axes:
            for name, table in vars(axis).items():
                setattr(axis, name, constant(table))
        if self._kept is not None:
            for chunk in self.chunks():
                chunk.settle(constant)

    def chunks(self) -> Any:
        """The walk: chunks of ``step`` tiles, in order."""
        for first in range(0, self.blocks.tiles, self.blocks.step):
            count = min(self.blocks.step, self.blocks.tiles - first)
            chunk = None if self._kept is None else self._kept.get(first)
            if chunk is None:
                chunk = Chunk(self, first, count)
            if self._kept is not None:
                self._kept[first] = chunk
            yield chunk

    def split(self, first: int, count: int) -> list[Any]:
        """Flat tile numbers ``first..first+count-1`` as one tile number per axis."""
        flat = self.xp.arange(count) + first
        sizes = [axis.tiles for axis in self.blocks.axes]
        return [flat // stride % size for stride, size in zip(_strides(sizes), sizes, strict=True)]

    def tokens(self, ids: list[Any], rows: bool) -> Any:
        """Flat token numbers: ``[c, T]`` for rows, ``[c, U]`` for columns."""
        strides = self._row_strides if rows else self._column_strides
        rank: int = len(self.axes)
        total: Any = 0
        for axis, (table, stride) in enumerate(zip(self.axes, strides, strict=True)):
            token = (table.row_token if rows else table.column_token)[ids[axis]] * stride
            total = token.reshape(_spread(token.shape, rank, [axis])) + total
        return total.reshape(ids[0].shape[0], -1)

    def pairs(
        self,
        ids: list[Any],
        of_axis: Callable[[AxisTables, AxisBlocks, Any], Any],
        combine: Callable[[Any, Any], Any],
        strides: list[int] | None = None,
    ) -> Any:
        """Combine ``[c, T_a, U_a]`` of each axis into ``[c, T, U]``."""
        rank, total = len(self.axes), None
        for axis, (table, blocks) in enumerate(zip(self.axes, self.blocks.axes, strict=True)):
            part = of_axis(table, blocks, ids[axis])
            if strides is not None:
                part = part * strides[axis]
            part = part.reshape(_spread(part.shape, 2 * rank, [axis, rank + axis]))
            total = part if total is None else combine(total, part)
        assert total is not None
        return total.reshape(ids[0].shape[0], self.blocks.tile_rows, self.blocks.box_columns)

    def columns_of_slots(self, ids: list[Any]) -> tuple[Any, Any]:
        xp, rank = self.xp, len(self.axes)
        box_strides = _strides([axis.box for axis in self.blocks.axes])
        columns, held = None, None
        for axis, (table, blocks) in enumerate(zip(self.axes, self.blocks.axes, strict=True)):
            low, high = table.low[ids[axis]][:, :, None], table.high[ids[axis]][:, :, None]
            key = low + xp.arange(blocks.axis.window)[None, None, :]
            column = xp.minimum(key - table.column[ids[axis]][:, :1, None], blocks.box - 1) * box_strides[axis]
            shape = _spread(column.shape, 2 * rank, [axis, rank + axis])
            column, inside = column.reshape(shape), (key < high).reshape(shape)
            columns = column if columns is None else columns + column
            held = inside if held is None else held & inside
        assert columns is not None and held is not None
        joined = (ids[0].shape[0], self.blocks.tile_rows, -1)
        return columns.reshape(joined), held.reshape(joined)

    def places(self) -> Any:
        """``[tokens]``: where each token's row lies among the ``tiles * tile_rows`` rows of the walk."""
        tile_strides = _strides([axis.tiles for axis in self.blocks.axes])
        slot_strides = _strides([axis.tile for axis in self.blocks.axes])
        rank: int = len(self.axes)
        total: Any = 0
        for axis, blocks in enumerate(self.blocks.axes):
            d, token = blocks.axis.dilation, self.xp.arange(blocks.rows)
            tile = token // d // blocks.tile * d + token % d
            place = tile * (tile_strides[axis] * self.blocks.tile_rows) + token // d % blocks.tile * slot_strides[axis]
            total = place.reshape([-1 if other == axis else 1 for other in range(rank)]) + total
        return total.reshape(-1)


def _strides(sizes: list[int]) -> list[int]:
    """Row-major strides, in elements."""
    return [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]


def _spread(shape: Any, spots: int, at: list[int]) -> list[int]:
    """A shape that puts dimensions 1.. of ``shape`` at the spots ``at`` of ``spots``, 1 elsewhere."""
    spread = [1] * spots
    for size, spot in zip(shape[1:], at, strict=True):
        spread[spot] = size
    return [shape[0], *spread]
