"""What one launch does, exactly and before it runs: the numbers that a device's unit costs are multiplied with.

Tiles, boxes and chunks are those of ``kernels/walk.h``. As with bricks, each axis is counted by itself and the counts
are multiplied; only chunks depend on two axes at once, so boxes of equal size are counted together.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ..caches import cached
from ..problem.problem import Axis, Problem
from ..problem.window import group_length
from .bricks import bricks_of
from .dealing import Walk
from .launches import Launch
from .params import PARAMS
from .source import ITEM_SIZES, Instance
from .templates import SUM, Sizes
from .tiles import COLUMNS, ROWS, axis_boxes, patch_count, patch_spans, side_by_side

# Channels of a product: a patch and a brick multiplied over as many.
DEPTH = 8


class Staged(NamedTuple):
    """What is copied to threadgroup memory: chunks, rows of boxes or pieces of them, columns."""

    chunks: int = 0
    rows: int = 0
    columns: int = 0

    def times(self, times: int) -> "Staged":
        """As much, so often."""
        return Staged(self.chunks * times, self.rows * times, self.columns * times)


class Counts(NamedTuple):
    """The exact work of one launch.

    threadgroups: of the grid; those of dilation groups shorter than others end at once. boxes: that they walk, one for
    each of their query heads. patches: simdgroups with rows; idle: those past the end of the axis. bricks, full:
    executed, and those of them without a mask; each is a softmax group of its own unless the instance says otherwise.
    products: 8x8 products, of which one on matrix units is worth four. staged: of all boxes; every chunk has two
    barriers. staged_bytes: of those copies, both tensors. fragment_bytes: what the products read of columns, from
    threadgroup memory if staged, else from device memory. tensor_bytes: every tensor that the launch reads or writes,
    once. chained_bricks: those that follow one another, of all threadgroups: of the patch that has the most, or, where
    a row is staged in pieces, of the one that has the most in each piece. longest_bricks, longest_staged: of the
    longest such chain, and of the largest box. gathered_bytes: of columns that simdgroups on matrix units gather, brick
    by brick. walk: what the bricks of each threadgroup, in their order, follow from; None if it walks no window.
    """

    threadgroups: int
    boxes: int = 0
    patches: int = 0
    idle: int = 0
    bricks: int = 0
    full: int = 0
    products: int = 0
    staged: Staged = Staged()
    staged_bytes: int = 0
    fragment_bytes: int = 0
    tensor_bytes: int = 0
    chained_bricks: int = 0
    longest_bricks: int = 0
    longest_staged: Staged = Staged()
    gathered_bytes: int = 0
    walk: Walk | None = None

    @property
    def masked(self) -> int:
        """Bricks that need a mask."""
        return self.bricks - self.full

    @property
    def chunks(self) -> int:
        """Staged pieces of boxes."""
        return self.staged.chunks

    @property
    def barriers(self) -> int:
        """Barriers that threadgroups pass."""
        return 2 * self.chunks


def staging(rows: int, length: int, chunk: int) -> Staged:
    """How a box of ``rows`` rows is staged: whole rows, evenly spread, or pieces of one row, where 7 columns belong to
    two of them.
    """
    if not rows or not length:
        return Staged()
    if length > chunk + 1:
        starts = range(0, length, chunk)
        return Staged(len(starts), len(starts), sum(min(chunk + 7, length - start) for start in starts)).times(rows)
    return Staged(evenly(rows, (chunk + 1) // length), rows, rows * length)


@cached("rows of boxes", 1024)
def _rows(axes: tuple[Axis, ...], transposed: bool, extents: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(rows, how many boxes have so many) over all axes but x."""
    found = Counter({1: 1})
    for axis, extent in zip(axes, extents, strict=True):
        more: Counter[int] = Counter()
        for length, times in axis_boxes(axis, transposed, extent):
            for rows, so_far in found.items():
                more[rows * length] += so_far * times
        found = more
    return tuple(found.items())


def _staged(problem: Problem, instance: Instance) -> Staged:
    """What is staged of the boxes of one batch item and block of heads."""
    i, transposed = instance, instance.record.transposed
    *extents, along_x = i.patch[3 - problem.rank :]
    *axes, x = problem.axes
    boxes = _rows(tuple(axes), transposed, tuple(extents))
    whole = sum(rows * times for rows, times in boxes)
    chunks = rows_staged = columns = 0
    for length, tiles in axis_boxes(x, transposed, along_x * i.simdgroups):
        one = staging(1, length, i.chunk)
        rows_staged, columns = rows_staged + tiles * whole * one.rows, columns + tiles * whole * one.columns
        if length > i.chunk + 1:
            chunks += tiles * whole * one.chunks
        elif length:
            fit = (i.chunk + 1) // length
            chunks += tiles * sum(times * evenly(rows, fit) for rows, times in boxes if rows)
    return Staged(chunks, rows_staged, columns)


def evenly(rows: int, fit: int) -> int:
    """Chunks of ``rows`` rows, of which ``fit`` fit one, evenly spread."""
    return -(-rows // -(-rows // -(-rows // fit)))


@cached("chains of axes", 4096)
def axis_chains(
    axis: Axis, transposed: bool, extent: int, simdgroups: int, chunk: int, width: int = COLUMNS
) -> tuple[int, int]:
    """Bricks that follow one another in a row of a tile's box: of all tiles, and of the one with the most.

    chunk: brick starts of a piece of a row; 0 where rows are not cut. After each piece patches wait for the slowest.
    width: columns of a brick.
    """
    total = longest = 0
    sides = patch_spans(axis, transposed, extent), patch_spans(axis, transposed, extent * simdgroups)
    for spans, tiles in zip(*sides, strict=True):
        for patches, (low, _, _, high) in zip(side_by_side(spans, simdgroups), tiles, strict=True):
            cut = chunk if chunk and high - low > chunk + 1 else max(high - low, 1)
            chain = chain_of([(s.low, s.high) for s in patches], range(low, high, cut), width)
            total, longest = total + chain, max(longest, chain)
    return total, longest


def chain_of(columns: Sequence[tuple[int, int]], pieces: range, width: int = COLUMNS) -> int:
    """Bricks that follow one another in a row that is read in ``pieces``. columns: what each patch reads of it.

    A piece in which all patches read every column has as many bricks for each: only those at the ends are looked at.
    """
    cut = pieces.step
    first = -(-(max(low for low, _ in columns) - pieces.start) // cut)
    last = max(first, (min(high for _, high in columns) - pieces.start) // cut) if cut % width == 0 else first
    ends = (*pieces[: max(first, 0)], *pieces[max(last, 0) :])
    inside = len(pieces[max(first, 0) : max(last, 0)])
    return inside * (cut // width) + sum(
        max(_starts(low, high, (start, start + cut), width) for low, high in columns) for start in ends
    )


def _starts(low: int, high: int, piece: tuple[int, int], width: int) -> int:
    """How many bricks of the columns ``[low, high)`` start in a piece."""
    before, upto = (max(0, -(-(min(high, end) - low) // width)) for end in piece)
    return upto - before


def _chains(problem: Problem, instance: Instance, walks: int) -> tuple[int, int]:
    """Bricks in rows of their own that follow one another: of all tiles, and of the one with the most. walks: of each
    box.
    """
    i, transposed = instance, instance.record.transposed
    *extents, along_x = i.patch[3 - problem.rank :]
    *axes, x = problem.axes
    boxes = [axis_boxes(axis, transposed, extent) for axis, extent in zip(axes, extents, strict=True)]
    rows = math.prod(sum(length * times for length, times in box) for box in boxes)
    most = math.prod(max(length for length, _ in box) for box in boxes)
    total, longest = axis_chains(x, transposed, along_x, i.simdgroups, i.chunk if i.stage else 0, i.record.side)
    return rows * total * walks, most * longest * walks


def _largest_box(problem: Problem, instance: Instance) -> tuple[int, int]:
    """The rows and columns of the largest box of a tile."""
    i, transposed = instance, instance.record.transposed
    *extents, along_x = i.patch[3 - problem.rank :]
    *axes, x = problem.axes
    rows = math.prod(_most(axis, transposed, extent) for axis, extent in zip(axes, extents, strict=True))
    return rows, _most(x, transposed, along_x * i.simdgroups)


def _most(axis: Axis, transposed: bool, extent: int) -> int:
    return max(length for length, _ in axis_boxes(axis, transposed, extent))


def _tiles(problem: Problem, instance: Instance) -> int:
    """Tiles with rows, of one batch item and block of heads."""
    extents = list(instance.patch[3 - problem.rank :])
    extents[-1] *= instance.simdgroups
    transposed = instance.record.transposed
    axes = (axis_boxes(axis, transposed, extent) for axis, extent in zip(problem.axes, extents, strict=True))
    return math.prod(sum(times for _, times in boxes) for boxes in axes)


def _grid(problem: Problem, instance: Instance) -> int:
    """Threadgroups of one batch item and block of heads: those of dilation groups that are shorter than others too."""
    extents = list(instance.patch[3 - problem.rank :])
    extents[-1] *= instance.simdgroups
    transposed = instance.record.transposed
    lengths = (group_length(a.keys if transposed else a.queries, 0, a.dilation) for a in problem.axes)
    tiles = (-(-length // extent) for length, extent in zip(lengths, extents, strict=True))
    return math.prod(tiles) * math.prod(problem.dilation)


def walked(problem: Problem, instance: Instance) -> Counts:
    """The work of a walk of ``instance``'s tiles over ``problem``, apart from the tensors' own bytes."""
    i, transposed, side = instance, instance.record.transposed, instance.record.side
    number = _tiles(problem, i)
    rows, columns = _largest_box(problem, i)
    staged, most = (_staged(problem, i), staging(rows, columns, i.chunk)) if i.stage else (Staged(), Staged())
    # Where rows are keys, a threadgroup walks its box for each query head; else each block of heads has its own.
    own, walks = problem.batch * problem.kv_heads, problem.group_heads // i.heads
    groups, times = (own, walks) if transposed else (own * walks, 1)
    patches = patch_count(problem, i.patch, transposed) * groups
    per_item = bricks_of(problem, i.record, i.patch, i.heads, i.flat)
    bricks, full = per_item.executed * own, per_item.full * own
    if i.flat and problem.rank > 1:
        # Rows run on, so that the patches of a tile have nearly the same.
        chained = -(-bricks * number * groups // patches)
        longest = -(-rows * _most(problem.axes[-1], transposed, i.patch[-1]) // side)
        longest *= times
    else:
        chained, longest = _chains(problem, i, times)
        chained *= groups
    if i.additional:
        more = -(-problem.additional // side)
        bricks, full = bricks + patches * more, full + patches * (problem.additional // side)
        chained, longest = chained + number * groups * more, longest + more
        if i.stage:
            extra = staging(1, problem.additional, i.chunk)
            staged, most = _sum(staged, extra.times(number)), _sum(most, extra)
    counts = Counts(
        threadgroups=_grid(problem, i) * groups,
        boxes=number * own * walks,
        patches=patches,
        idle=number * groups * i.simdgroups - patches,
        bricks=bricks,
        full=full,
        staged=staged.times(own * walks),
        chained_bricks=chained,
        longest_bricks=longest,
        longest_staged=most.times(times),
        walk=Walk(problem, i, groups),
    )
    return _with_bytes(i, counts)


def _sum(one: Staged, other: Staged) -> Staged:
    return Staged(*(a + b for a, b in zip(one, other, strict=True)))


def _with_bytes(instance: Instance, counts: Counts) -> Counts:
    """Counts with what follows from the sizes of the instance."""
    i, bricks, record = instance, counts.bricks, instance.record
    size, gathered = ITEM_SIZES[i.dtype], record.gathered(i.dim, i.dim_v) if i.flat else 0
    return counts._replace(
        products=bricks * i.products * (record.side // COLUMNS) ** 2,
        staged_bytes=counts.staged.columns * (i.dim + i.dim_v) * size,
        fragment_bytes=bricks * i.products * record.side * DEPTH * size,
        gathered_bytes=bricks * gathered * record.side * size,
    )


def _param(launch: Launch, name: str) -> int:
    return launch.params[PARAMS[name][0]]


def _of_additional(problem: Problem, launch: Launch) -> Counts:
    """The work of the key walk over additional keys: every threadgroup visits its part of all queries, head by head."""
    i, parts, shape = launch.instance, _param(launch, "kParts"), problem.query_shape
    cuts = [shape[0] * (part + 1) // parts - shape[0] * part // parts for part in range(parts)]
    boxes = [(1, cut * math.prod(shape[1:-1]), shape[-1]) if len(shape) > 1 else (1, 1, cut) for cut in cuts]
    patches = -(-problem.additional // ROWS)
    tiles, walks = -(-patches // i.simdgroups), problem.batch * problem.heads
    groups = parts * problem.batch * problem.kv_heads
    each = [staging(rows, length, i.chunk) for _, rows, length in boxes] if i.stage else [Staged()]
    counts = Counts(
        threadgroups=math.prod(launch.grid),
        boxes=tiles * parts * walks,
        patches=patches * groups,
        idle=(tiles * i.simdgroups - patches) * groups,
        bricks=launch.bricks,
        full=launch.full,
        staged=Staged(*map(sum, zip(*each, strict=True))).times(tiles * walks),
        chained_bricks=sum(rows * -(-length // COLUMNS) for _, rows, length in boxes) * tiles * walks,
        longest_bricks=max(rows * -(-length // COLUMNS) for _, rows, length in boxes) * problem.group_heads,
        longest_staged=max(each).times(problem.group_heads),
    )
    return _with_bytes(i, counts)


def counts_of(problem: Problem, launch: Launch) -> Counts:
    """The exact work of ``launch``, one of a program for ``problem``."""
    i = launch.instance
    if i.of_additional:
        found = _of_additional(problem, launch)
    elif i.record.walks:
        found = walked(problem, i)
    elif i.record.tables:
        patches = patch_count(problem, i.patch, False) * problem.batch * problem.heads
        # Its threadgroups take one tile after another.
        chain = -(-launch.bricks // (math.prod(launch.grid) * i.simdgroups))
        groups = math.prod(launch.grid)
        counts = Counts(groups, 0, patches, 0, launch.bricks, launch.full)
        found = _with_bytes(i, counts._replace(chained_bricks=chain * groups, longest_bricks=chain))
    else:
        found = Counts(math.prod(launch.grid))
    return found._replace(tensor_bytes=tensor_bytes(problem, launch))


def inputs_of(problem: Problem, launch: Launch) -> dict[str, tuple[tuple[int, ...], str]]:
    """(shape, dtype) of the tensors that a launch reads, by argument."""
    p, i = problem, launch.instance
    if i.template == SUM.name:
        return {"partial": ((_param(launch, "kParts"), _param(launch, "kRowCount")), "float32")}
    additional = (p.batch, p.additional, p.kv_heads)
    keys = additional if i.of_additional else (p.batch, *p.key_shape, p.kv_heads)
    table = tuple(2 * window - 1 for window in p.kernel_size)
    dims = _param(launch, "kDim"), _param(launch, "kDimV")
    sizes = Sizes((p.batch, *p.query_shape, p.heads), keys, additional, *dims, p.slots, table)
    read = (a for a in i.arguments if not a.output and a.kind != "long")
    return {a.name: (a.shape(sizes), i.dtype_of(a)) for a in read}


def tensor_bytes(problem: Problem, launch: Launch) -> int:
    """Bytes of all tensors of a launch, each once, as if they were contiguous."""
    read = inputs_of(problem, launch).values()
    made = [(output.shape, output.dtype) for output in launch.outputs]
    return sum(math.prod(shape) * ITEM_SIZES.get(dtype, 4) for shape, dtype in (*read, *made))
