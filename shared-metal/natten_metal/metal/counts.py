"""What one launch does, exactly and before it runs: the numbers that a device's unit costs are multiplied with.

Tiles, boxes and chunks are those of ``kernels/walk.h``. As with bricks, each axis is counted by itself and the counts
are multiplied; only chunks depend on two axes at once, so boxes of equal size are counted together.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from ..caches import cached
from ..problem.interval import at_hand, positions
from ..problem.problem import Axis, Problem
from ..problem.window import group_length
from .launches import Launch
from .params import PARAMS
from .source import ITEM_SIZES, Instance
from .templates import SUM, Sizes
from .tiles import COLUMNS, ROWS, count_bricks, patch_count, span

# Elements of the fragment of columns that one 8x8 product reads.
FRAGMENT = ROWS * COLUMNS


class Counts(NamedTuple):
    """The exact work of one launch.

    threadgroups: of the grid; those of dilation groups shorter than others end at once. boxes: that they walk, one for
    each of their query heads. patches: simdgroups with rows; idle: those past the end of the axis. bricks, full:
    executed, and those of them without a mask; each is a softmax group of its own unless the instance says otherwise.
    products: 8x8 products. chunks: staged pieces of boxes, two barriers each. staged: columns copied to threadgroup
    memory. staged_bytes: of those copies, both tensors. fragment_bytes: what the products read of columns, from
    threadgroup memory if staged, else from device memory. tensor_bytes: every tensor that the launch reads or writes,
    once.
    """

    threadgroups: int
    boxes: int = 0
    patches: int = 0
    idle: int = 0
    bricks: int = 0
    full: int = 0
    products: int = 0
    chunks: int = 0
    staged: int = 0
    staged_bytes: int = 0
    fragment_bytes: int = 0
    tensor_bytes: int = 0

    @property
    def masked(self) -> int:
        """Bricks that need a mask."""
        return self.bricks - self.full

    @property
    def barriers(self) -> int:
        """Barriers that threadgroups pass."""
        return 2 * self.chunks


@cached("boxes of axes", 4096)
def axis_boxes(axis: Axis, transposed: bool, extent: int) -> tuple[tuple[int, int], ...]:
    """(columns, tiles) pairs: how many tiles of ``extent`` rows on an axis, of all dilation groups, have such a box."""
    found: Counter[int] = Counter()
    rows, columns = at_hand(axis, transposed)
    for group in range(axis.dilation):
        (begin, end), at = (positions(*side, group, axis.dilation) for side in (rows, columns))
        n = group_length(axis.full, group, axis.dilation)
        for first in range(begin, end, extent):
            low, _, _, high = span(axis, transposed, (first, min(first + extent, end)), at, n)
            found[high - low] += 1
    return tuple(found.items())


def pieces(length: int, chunk: int) -> tuple[int, int]:
    """(chunks, columns) of a row of ``length`` columns that does not fit a chunk: 7 columns belong to two of them."""
    starts = range(0, length, chunk)
    return len(starts), sum(min(chunk + 7, length - start) for start in starts)


def staging(rows: int, length: int, chunk: int) -> tuple[int, int]:
    """(chunks, columns) of a box of ``rows`` rows: whole rows, evenly spread, or pieces of one row."""
    if not rows or not length:
        return 0, 0
    if length > chunk + 1:
        chunks, columns = pieces(length, chunk)
        return rows * chunks, rows * columns
    fewest = -(-rows // ((chunk + 1) // length))
    return -(-rows // -(-rows // fewest)), rows * length


def _staged(boxes: Iterable[tuple[int, int, int]], chunk: int) -> tuple[int, int]:
    """(chunks, columns) of boxes given as (how many, rows, columns of a row)."""
    chunks = columns = 0
    for times, rows, length in boxes:
        own, copied = staging(rows, length, chunk)
        chunks, columns = chunks + times * own, columns + times * copied
    return chunks, columns


def _boxes(problem: Problem, instance: Instance) -> list[tuple[int, int, int]]:
    """The boxes of one batch item and block of heads, as (how many, rows, columns of a row)."""
    extents = list(instance.patch[3 - problem.rank :])
    extents[-1] *= instance.simdgroups
    transposed = instance.record.transposed
    axes = [axis_boxes(axis, transposed, extent) for axis, extent in zip(problem.axes, extents, strict=True)]
    return [
        (math.prod(times for _, times in box), math.prod(length for length, _ in box[:-1]), box[-1][0])
        for box in itertools.product(*axes)
    ]


def walked(problem: Problem, instance: Instance) -> Counts:
    """The work of a walk of ``instance``'s tiles over ``problem``, apart from the tensors' own bytes."""
    i, transposed = instance, instance.record.transposed
    boxes = _boxes(problem, i)
    number = sum(times for times, _, _ in boxes)
    chunks, staged = _staged(boxes, i.chunk) if i.stage else (0, 0)
    # Where rows are keys, a threadgroup walks its box for each query head; else each block of heads has its own.
    walks = problem.group_heads // i.heads
    groups = problem.batch * problem.kv_heads * (1 if transposed else walks)
    patches = patch_count(problem, i.patch, transposed) * groups
    per_item = count_bricks(problem, i.patch, i.heads, transposed)
    own = problem.batch * problem.kv_heads
    bricks, full = per_item.executed * own, per_item.full * own
    if i.additional:
        bricks += patches * -(-problem.additional // COLUMNS)
        full += patches * (problem.additional // COLUMNS)
        if i.stage:
            more, columns = staging(1, problem.additional, i.chunk)
            chunks, staged = chunks + more * number, staged + columns * number
    return _with_bytes(
        i,
        Counts(
            threadgroups=number * groups,
            boxes=number * own * walks,
            patches=patches,
            idle=number * groups * i.simdgroups - patches,
            bricks=bricks,
            full=full,
            chunks=chunks * own * walks,
            staged=staged * own * walks,
        ),
    )


def _with_bytes(instance: Instance, counts: Counts) -> Counts:
    """Counts with what follows from the sizes of the instance."""
    size, products = ITEM_SIZES[instance.dtype], counts.bricks * instance.products
    staged_bytes = counts.staged * (instance.dim + instance.dim_v) * size
    return counts._replace(products=products, staged_bytes=staged_bytes, fragment_bytes=products * FRAGMENT * size)


def _param(launch: Launch, name: str) -> int:
    return launch.params[PARAMS[name][0]]


def _of_additional(problem: Problem, launch: Launch) -> Counts:
    """The work of the key walk over additional keys: every threadgroup visits its part of all queries, head by head."""
    i, parts, shape = launch.instance, _param(launch, "kParts"), problem.query_shape
    cuts = [shape[0] * (part + 1) // parts - shape[0] * part // parts for part in range(parts)]
    boxes = [(1, cut * math.prod(shape[1:-1]), shape[-1]) if len(shape) > 1 else (1, 1, cut) for cut in cuts]
    rows = -(-problem.additional // ROWS)
    tiles, walks = -(-rows // i.simdgroups), problem.batch * problem.heads
    groups = parts * problem.batch * problem.kv_heads
    chunks, staged = _staged(boxes, i.chunk) if i.stage else (0, 0)
    return _with_bytes(
        i,
        Counts(
            threadgroups=math.prod(launch.grid),
            boxes=tiles * parts * walks,
            patches=rows * groups,
            idle=(tiles * i.simdgroups - rows) * groups,
            bricks=launch.bricks,
            full=launch.full,
            chunks=chunks * tiles * walks,
            staged=staged * tiles * walks,
        ),
    )


def counts_of(problem: Problem, launch: Launch) -> Counts:
    """The exact work of ``launch``, one of a program for ``problem``."""
    i = launch.instance
    if i.of_additional:
        found = _of_additional(problem, launch)
    elif i.record.walks:
        found = walked(problem, i)._replace(threadgroups=math.prod(launch.grid))
    elif i.record.tables:
        patches = patch_count(problem, i.patch, False) * problem.batch * problem.heads
        found = _with_bytes(i, Counts(math.prod(launch.grid), patches=patches, bricks=launch.bricks, full=launch.full))
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
