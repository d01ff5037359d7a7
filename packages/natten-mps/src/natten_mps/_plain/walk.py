"""Tensors on the pure path's walk: gather a tile's rows, mask its box, put its results together."""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from .._metal.plan.blocks import Blocks, Chunk, Tables
from .._metal.plan.turns import turns
from .._tensors import TorchTables


@lru_cache(maxsize=32)
def tables(blocks: Blocks, device: torch.device) -> Tables:
    """The index tables of a walk on ``device``, kept for the next call."""
    return Tables(blocks, TorchTables(device))


def steps(blocks: Blocks, batch: int, device: torch.device) -> Iterator[tuple[Chunk, range]]:
    """The walk: some tiles and the batch items to compute them for."""
    for chunk in tables(blocks, device).chunks():
        for first in range(0, batch, blocks.batch_step):
            yield chunk, range(first, min(first + blocks.batch_step, batch))


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """float32, or float64 for float64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


Side = Literal["rows", "columns"]


class Rows:
    """A heads-last tensor ``[B, *shape, H, D]`` as rows of D, gathered a tile at a time.

    groups: query heads per key/value head; they ride with the rows of a tile.
    """

    def __init__(self, tensor: Tensor, groups: int = 1) -> None:
        self.batch, self.heads, self.width = tensor.shape[0], tensor.shape[-2], tensor.shape[-1]
        self.tokens, self.groups = math.prod(tensor.shape[1:-2]), groups
        self.rows = tensor.contiguous().view(self.batch * self.tokens * self.heads, self.width)
        self.dtype = compute_dtype(tensor)

    def index(self, chunk: Chunk, which: Side, items: range) -> Tensor:
        """Row numbers ``[b, c, H, T]`` of a chunk's rows or columns for some batch items."""

        def make() -> Tensor:
            tokens: Tensor = getattr(chunk, which)
            index = tokens[:, None, :] * self.heads + torch.arange(self.heads, device=tokens.device)[:, None]
            item = torch.arange(items.start, items.stop, device=tokens.device)[:, None, None, None]
            return index + item * (self.tokens * self.heads)

        found: Tensor = chunk.noted((which, self.heads, items), make)
        return found

    def gather(self, chunk: Chunk, which: Side, items: range) -> Tensor:
        """The chunk's rows or columns: ``[b, c, kv heads, groups * T, D]`` in the compute dtype."""
        found = self.rows.index_select(0, self.index(chunk, which, items).view(-1)).to(self.dtype)
        return found.view(len(items), chunk.count, self.heads // self.groups, -1, self.width)


class Collector:
    """Results of tiles, ``[b, c, kv heads, groups * T, D]`` each, put together as ``[B, *shape, H, D]``."""

    def __init__(self, blocks: Blocks, like: Tensor, heads: int, width: int, dtype: torch.dtype) -> None:
        self.blocks = blocks
        shape = (like.shape[0], blocks.tiles, heads, blocks.tile_rows, width)
        self.buffer = torch.empty(shape, dtype=dtype, device=like.device)

    def put(self, chunk: Chunk, items: range, part: Tensor) -> None:
        """Keep the result of a step, rounded to the result's dtype."""
        target = self.buffer[items.start : items.stop, chunk.first : chunk.first + chunk.count]
        target.copy_(part.reshape(target.shape))

    def result(self, shape: tuple[int, ...]) -> Tensor:
        """Every token's row, found where its tile left it."""
        batch, tiles, heads, tile_rows, width = self.buffer.shape
        small = batch * tiles * heads * tile_rows <= Tables.KEEP_PAIRS
        find = _remembered_places if small else _places
        row = find(self.blocks, batch, heads, self.buffer.device)
        return self.buffer.view(-1, width).index_select(0, row).view(batch, *shape, heads, width)


class Sums:
    """Sums per row of ``[B, *shape, H, D]`` of what tiles, ``[b, c, H, U, D]`` each, add to the columns of their boxes.

    rows: the tensor that is gathered by these columns.
    """

    def __init__(self, blocks: Blocks, rows: Rows) -> None:
        self.blocks, self.rows, self.nobody = blocks, rows, rows.rows.shape[0]
        # The last row takes what belongs to nobody: columns that the box has, but no row of its tile sees.
        self.buffer = torch.zeros((self.nobody + 1, rows.width), dtype=rows.dtype, device=rows.rows.device)

    def _turns(self, chunk: Chunk, items: range) -> list[tuple[slice | Tensor, Tensor]]:
        """Which tiles of the chunk add together, and to which rows of the buffer."""

        def make() -> list[tuple[slice | Tensor, Tensor]]:
            index = self.rows.index(chunk, "columns", items)
            index = torch.where(chunk.seen[:, None], index, self.nobody)
            found = turns(self.blocks, chunk.first, chunk.count)
            picks = [t if isinstance(t, slice) else torch.tensor(t, device=index.device) for t in found]
            return [(tiles, index[:, tiles].reshape(-1)) for tiles in picks]

        made: list[tuple[slice | Tensor, Tensor]] = chunk.noted(("turns", self.rows.heads, items), make)
        return made

    def add(self, chunk: Chunk, items: range, part: Tensor) -> None:
        for tiles, index in self._turns(chunk, items):
            own = part[:, tiles]
            self.buffer[index] = self.buffer.index_select(0, index).view(own.shape).add_(own).view(-1, own.shape[-1])

    def result(self, shape: tuple[int, ...]) -> Tensor:
        return self.buffer[:-1].view(self.rows.batch, *shape, self.rows.heads, self.rows.width)


def _places(blocks: Blocks, batch: int, heads: int, device: torch.device) -> Tensor:
    """For each row of ``[B, *shape, H]``, its row among those of ``[B, tiles, H, tile rows]``."""
    place, tile_rows = tables(blocks, device).places(), blocks.tile_rows
    row = place // tile_rows * (heads * tile_rows) + place % tile_rows
    row = row[None, :, None] + torch.arange(heads, device=device) * tile_rows
    row = row + torch.arange(batch, device=device)[:, None, None] * (blocks.tiles * heads * tile_rows)
    return row.reshape(-1)


_remembered_places = lru_cache(maxsize=32)(_places)


def exp_(logits: Tensor) -> Tensor:
    """e to each logit, in place; base 2, because torch's CPU exp takes a slow path for what underflows."""
    return logits.mul_(math.log2(math.e)).exp2_()


def mask_logits(logits: Tensor, chunk: Chunk, rpb: Tensor | None, groups: int, transposed: bool = False) -> Tensor:
    """Add, in place, -inf where the window does not reach, and the relative positional bias.

    logits: ``[b, c, kv heads, groups * T, U]``; transposed: ``[b, c, kv heads, T, groups * U]``.
    """
    bias = chunk.noted("bias", lambda: torch.where(chunk.mask, 0.0, -math.inf))[:, None, None]
    b, c, kv_heads, rows, columns = logits.shape
    if rpb is not None:
        table = rpb.to(logits.dtype).reshape(kv_heads * groups, -1)
        relative = table[:, chunk.offsets().reshape(-1)].view(kv_heads, groups, *chunk.mask.shape)
        bias = bias + relative.permute(2, 0, 1, 3, 4)
    if transposed:
        logits.view(b, c, kv_heads, rows, groups, -1).add_(bias.transpose(2, 3))
    else:
        logits.view(b, c, kv_heads, groups, -1, columns).add_(bias)
    return logits


def bias_gradient(d_logits: Tensor, chunk: Chunk, blocks: Blocks) -> Tensor:
    """Sum ``d_logits [b, c, kv heads, groups * T, U]`` over all pairs of equal offset: ``[H, 2w - 1, ...]``.

    Axis by axis: a skew lines up the diagonals (column - row) of the tile, their sums are found again
    at the offset they belong to. Sums and gathers only, so the order never changes.
    """
    rank = len(blocks.axes)
    tile, box = [axis.tile for axis in blocks.axes], [axis.box for axis in blocks.axes]
    b, c, kv_heads, rows, columns = d_logits.shape
    heads = kv_heads * rows // blocks.tile_rows
    summed = d_logits.reshape(b, c, heads, blocks.tile_rows, columns).sum(0) * chunk.held[:, None, :, None]
    summed = summed.view(c, heads, *tile, *box)
    for axis, (t, u) in enumerate(zip(tile, box, strict=True)):
        table = summed.movedim((2, 2 + rank - axis), (-2, -1)).flip(-2)
        lead = table.shape[:-2]
        skewed = torch.nn.functional.pad(table, (0, t)).flatten(-2)[..., :-t]
        diagonals = skewed.reshape(*lead, t, u + t - 1).sum(-2)
        w = blocks.axes[axis].axis.window
        offset = torch.arange(1 - w, w, device=summed.device)
        where = offset + (t - 1) - chunk.axis_shifts(axis)[:, None]
        inside = (where >= 0) & (where < u + t - 1)
        where = where.clamp(0, u + t - 2).view(c, *[1] * (len(lead) - 1), -1).expand(*lead, -1)
        found = diagonals.gather(-1, where)
        summed = found * inside.view(c, *[1] * (len(lead) - 1), -1)
    return summed.sum(0)
