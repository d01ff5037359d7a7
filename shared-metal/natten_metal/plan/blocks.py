"""How the pure backend walks a problem: tiles of rows, and the box of columns that each tile sees.

Fused attention walks **queries** (rows) and reads the box of keys (columns) that a tile's windows span, forward and
backward: gradients of keys are summed box by box (:mod:`.turns`). Gradients of the split ops' keys walk
**keys** and read the box of queries whose windows hold them (``transposed``). Both are the same walk, with the window
or its inverse as the interval of columns that a row sees::

    rows of one tile                columns of its box
    p0 . . . p0+T-1       ->        origin . . . . . . origin+U-1
                                    row p sees [low(p), high(p)) of them, the rest is masked

Dilation groups are tiles of their own, so all positions are positions inside a group. Positions are those of the whole
axis, also where a piece of it is at hand; tokens are counted from the first one at hand, as tensors hold them.
Everything is built per axis and then combined, so rank is never more than a loop. The index tables are written over
an array namespace (numpy, torch or MLX); they are plan data, computed without the user's tensors.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ..problem.interval import TableNamespace, at_hand, positions, row_interval
from ..problem.problem import Axis
from ..problem.window import group_length


class AxisBlocks(NamedTuple):
    """One axis cut into tiles of ``tile`` rows that see boxes of ``box`` columns."""

    axis: Axis
    transposed: bool
    tile: int
    box: int

    @property
    def rows(self) -> int:
        return at_hand(self.axis, self.transposed)[0][1]

    @property
    def columns(self) -> int:
        return at_hand(self.axis, self.transposed)[1][1]

    @property
    def groups(self) -> int:
        """Dilation groups that have a row, numbered from the group of the first row."""
        return min(self.axis.dilation, self.rows)

    @property
    def tiles(self) -> int:
        """Tiles of all dilation groups; the group is the fastest index."""
        return self.groups * tiles_per_group(self.rows, self.axis.dilation, self.tile)


class Blocks(NamedTuple):
    """The walk over all axes: ``tiles_at_once`` tiles of ``items_at_once`` batch items at a time."""

    axes: tuple[AxisBlocks, ...]
    tiles_at_once: int
    items_at_once: int

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


class AxisTables:
    """The index tables of one axis for tiles ``[n]``: ``[n, tile]`` for rows and ``[n, box]`` for columns.

    row, column: positions inside the group. row_token, column_token: tokens of the axis, counted from the first one at
    hand; beyond the end of a group they repeat its last token, which is masked (columns) or dropped (rows).
    """

    def __init__(self, blocks: AxisBlocks, xp: TableNamespace, tiles: Any) -> None:
        axis, d = blocks.axis, blocks.axis.dilation
        index = tiles[:, None]
        rows, columns = at_hand(axis, blocks.transposed)
        group = (index % blocks.groups + rows[0]) % d
        n = group_length(axis.full, group, d)
        first, end = positions(*rows, group, d)
        row = first + index // blocks.groups * blocks.tile + xp.arange(blocks.tile)[None, :]
        self.row_held = row < end
        self.row = xp.minimum(row, end - 1)
        self.row_token = self.row * d + group - rows[0]
        self.low, self.high = row_interval(axis, blocks.transposed, self.row, n, xp)
        first, end = positions(*columns, group, d)
        self.low, self.high = xp.maximum(self.low, first), xp.minimum(self.high, end)
        origin = xp.maximum(xp.minimum(self.low[:, :1], end - blocks.box), first)
        self.column = origin + xp.arange(blocks.box)[None, :]
        # In a piece, a group may have keys and no query. Where keys are rows, its columns refer to arbitrary tokens.
        self.column_token = xp.maximum(xp.minimum(self.column, end - 1) * d + group - columns[0], 0)
        if blocks.transposed:
            self.window_start, _ = row_interval(axis, False, self.column, n, xp)


class Chunk:
    """The tables of some consecutive tiles: ``c`` tiles of ``T`` rows and ``U`` columns over all axes.

    Threads share cached chunks. So what a chunk caches is read and written by single operations on a dict, which are
    atomic: two threads may make the same array, but neither sees half of one, and no lock can be held when the process
    forks.
    """

    MAX_CACHED = 32

    def __init__(self, tables: "Tables", first: int, count: int) -> None:
        self._tables = tables
        self._axes, self._tile_ids = tables.axes_of(tables.split(first, count))
        self.first, self.count = first, count
        self.rows, self.columns = self._tokens(rows=True), self._tokens(rows=False)
        self._mask: Any = None
        self._cached: dict[Any, Any] = {}

    def cached(self, name: Any, make: Callable[[], Any]) -> Any:
        """The value that ``make`` returned the first time for ``name``: index arrays in the framework's own form."""
        found = self._cached.get(name)
        if found is None:
            if len(self._cached) >= self.MAX_CACHED:
                self._cached.clear()
            found = self._cached[name] = make()
        return found

    @property
    def kept(self) -> bool:
        """Whether the chunk, with what it caches, is kept from one call to the next."""
        return self._tables.keeps_chunks

    def freeze(self, constant: Callable[[Any], Any]) -> None:
        """Replace the chunk's tables by ``constant`` of them, see :meth:`Tables.freeze`."""
        self._tile_ids = [constant(ids) for ids in self._tile_ids]
        self.rows, self.columns, self._mask = constant(self.rows), constant(self.columns), constant(self.mask)

    @property
    def held(self) -> Any:
        """``[c, T]`` bool: the row is a token, not a repetition past the end of its group."""
        return self._all_axes([table.row_held[ids] for table, ids in zip(self._axes, self._tile_ids, strict=True)])

    @property
    def sees(self) -> Any:
        """``[c, T]`` bool: the row sees a column."""
        return self._all_axes(
            [(table.low < table.high)[ids] for table, ids in zip(self._axes, self._tile_ids, strict=True)]
        )

    @property
    def seen(self) -> Any:
        """``[c, U]`` bool: the column is a token, and lies between the first and the last that the tile's rows see.

        A short dilation group may have a tile whose rows are all repetitions: it sees nothing.
        """
        parts = []
        for table, ids in zip(self._axes, self._tile_ids, strict=True):
            column = table.column[ids]
            between = (table.low[ids][:, :1] <= column) & (column < table.high[ids][:, -1:])
            parts.append(between & table.row_held[ids][:, :1])
        return self._all_axes(parts)

    def _all_axes(self, parts: list[Any]) -> Any:
        """The AND of ``[c, n_a]`` of each axis: ``[c, n]``."""
        total = None
        for axis, part in enumerate(parts):
            spread = part.reshape(_spread(part.shape, len(parts), [axis]))
            total = spread if total is None else total & spread
        assert total is not None
        return total.reshape(self.count, -1)

    @property
    def mask(self) -> Any:
        """``[c, T, U]`` bool: the row sees the column."""
        if self._mask is None:
            self._mask = self._pairs(_sees, lambda a, b: a & b)
        return self._mask

    def slots(self) -> Any:
        """``[c, T, U]``: the window slot of the pair; meaningless where masked."""
        slots = self._pairs(_slot, lambda a, b: a + b, self._tables.slot_strides)
        return self._tables.xp.where(self.mask, slots, 0)

    def offsets(self) -> Any:
        """``[c, T, U]``: the pair's index into flattened rpb; 0 where masked."""
        offsets = self._pairs(_offset, lambda a, b: a + b, self._tables.bias_strides)
        return self._tables.xp.where(self.mask, offsets, 0)

    def axis_shifts(self, axis: int) -> Any:
        """``[c]``: first column minus first row of each tile on one axis."""
        table = self._axes[axis]
        return (table.column[:, 0] - table.row[:, 0])[self._tile_ids[axis]]

    def _tokens(self, rows: bool) -> Any:
        """Flat token numbers: ``[c, T]`` for rows, ``[c, U]`` for columns."""
        sizes = [axis.rows if rows else axis.columns for axis in self._tables.blocks.axes]
        rank: int = len(sizes)
        total: Any = 0
        for axis, (table, ids, stride) in enumerate(zip(self._axes, self._tile_ids, _strides(sizes), strict=True)):
            token = (table.row_token if rows else table.column_token)[ids] * stride
            total = token.reshape(_spread(token.shape, rank, [axis])) + total
        return total.reshape(self.count, -1)

    def _pairs(
        self,
        of_axis: Callable[[AxisTables, AxisBlocks, Any], Any],
        combine: Callable[[Any, Any], Any],
        strides: list[int] | None = None,
    ) -> Any:
        """Combine ``[c, T_a, U_a]`` of each axis into ``[c, T, U]``."""
        blocks = self._tables.blocks
        rank, total = len(blocks.axes), None
        for axis, (table, ids) in enumerate(zip(self._axes, self._tile_ids, strict=True)):
            part = of_axis(table, blocks.axes[axis], ids)
            if strides is not None:
                part = part * strides[axis]
            part = part.reshape(_spread(part.shape, 2 * rank, [axis, rank + axis]))
            total = part if total is None else combine(total, part)
        assert total is not None
        return total.reshape(self.count, blocks.tile_rows, blocks.box_columns)

    def columns_of_slots(self) -> tuple[Any, Any]:
        """``[c, T, W]``: the column of each window slot, and whether the slot holds a key (rows: queries)."""
        xp, blocks = self._tables.xp, self._tables.blocks
        rank, columns, held = len(blocks.axes), None, None
        box_strides = _strides([axis.box for axis in blocks.axes])
        for axis, (table, ids) in enumerate(zip(self._axes, self._tile_ids, strict=True)):
            sizes = blocks.axes[axis]
            low, high = table.low[ids][:, :, None], table.high[ids][:, :, None]
            key = low + xp.arange(sizes.axis.window)[None, None, :]
            column = xp.minimum(key - table.column[ids][:, :1, None], sizes.box - 1) * box_strides[axis]
            shape = _spread(column.shape, 2 * rank, [axis, rank + axis])
            column, inside = column.reshape(shape), (key < high).reshape(shape)
            columns = column if columns is None else columns + column
            held = inside if held is None else held & inside
        assert columns is not None and held is not None
        joined = (self.count, blocks.tile_rows, -1)
        return columns.reshape(joined), held.reshape(joined)


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
    """The index tables of a walk, on the device of ``xp``; chunks of tiles are taken from them.

    They are computed from a few numbers per tile, and kept only if they are small: for a long axis with large boxes
    they would outgrow the tensors.
    """

    # A walk with at most this many (row, column) pairs keeps its chunks, so that small problems do not rebuild their
    # masks at each call.
    KEEP_PAIRS = 1 << 19
    # A walk whose axes have at most this many rows and columns in all of their tiles keeps the tables of the axes.
    KEEP_POSITIONS = 1 << 18

    def __init__(self, blocks: Blocks, xp: TableNamespace) -> None:
        self.blocks, self.xp = blocks, xp
        keep = blocks.tiles * blocks.tile_rows * blocks.box_columns <= self.KEEP_PAIRS
        self._kept: dict[int, Chunk] | None = {} if keep else None
        small = keep or all(axis.tiles * (axis.tile + axis.box) <= self.KEEP_POSITIONS for axis in blocks.axes)
        self._axes = [AxisTables(axis, xp, xp.arange(axis.tiles)) for axis in blocks.axes] if small else None
        windows = [axis.axis.window for axis in blocks.axes]
        self.slot_strides = _strides(windows)
        self.bias_strides = _strides([2 * w - 1 for w in windows])

    @property
    def keeps_chunks(self) -> bool:
        """Whether the walk is small enough to keep its chunks from one call to the next."""
        return self._kept is not None

    def freeze(self, constant: Callable[[Any], Any]) -> None:
        """Replace every kept table by ``constant`` of it, for a framework whose arrays are lazy."""
        for axis in self._axes or ():
            for name, table in vars(axis).items():
                setattr(axis, name, constant(table))
        if self._kept is not None:
            for chunk in self.chunks():
                chunk.freeze(constant)

    def chunks(self) -> Iterator[Chunk]:
        """The walk: chunks of ``tiles_at_once`` tiles, in order."""
        for first in range(0, self.blocks.tiles, self.blocks.tiles_at_once):
            count = min(self.blocks.tiles_at_once, self.blocks.tiles - first)
            chunk = None if self._kept is None else self._kept.get(first)
            if chunk is None:
                chunk = Chunk(self, first, count)
                if self._kept is not None:
                    chunk = self._kept.setdefault(first, chunk)
            yield chunk

    def split(self, first: int, count: int) -> list[Any]:
        """Flat tile numbers ``first..first+count-1`` as one tile number per axis."""
        flat = self.xp.arange(count) + first
        sizes = [axis.tiles for axis in self.blocks.axes]
        return [flat // stride % size for stride, size in zip(_strides(sizes), sizes, strict=True)]

    def axes_of(self, ids: list[Any]) -> tuple[list[AxisTables], list[Any]]:
        """Tables that contain the tiles ``ids`` of each axis, and their indices: kept tables, or new ones for these
        tiles only.
        """
        if self._axes is not None:
            return self._axes, ids
        axes = [AxisTables(axis, self.xp, of_axis) for axis, of_axis in zip(self.blocks.axes, ids, strict=True)]
        return axes, [slice(None)] * len(ids)

    def row_positions(self) -> Any:
        """``[tokens]``: the position of each token's row among the ``tiles * tile_rows`` rows of the walk."""
        tile_strides = _strides([axis.tiles for axis in self.blocks.axes])
        row_strides = _strides([axis.tile for axis in self.blocks.axes])
        rank: int = len(self.blocks.axes)
        total: Any = 0
        for axis, blocks in enumerate(self.blocks.axes):
            d, token = blocks.axis.dilation, self.xp.arange(blocks.rows)
            tile = token // d // blocks.tile * blocks.groups + token % d
            first = tile * (tile_strides[axis] * self.blocks.tile_rows)
            position = first + token // d % blocks.tile * row_strides[axis]
            total = position.reshape([-1 if other == axis else 1 for other in range(rank)]) + total
        return total.reshape(-1)


def _strides(sizes: list[int]) -> list[int]:
    """Row-major strides, in elements."""
    return [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]


def _spread(shape: Any, count: int, at: list[int]) -> list[int]:
    """A shape that puts dimensions 1.. of ``shape`` at the positions ``at`` of ``count``, 1 elsewhere."""
    spread = [1] * count
    for size, position in zip(shape[1:], at, strict=True):
        spread[position] = size
    return [shape[0], *spread]
