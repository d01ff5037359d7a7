"""How many columns the box of a tile must hold: the widest span of columns that the rows of any tile see."""

from collections.abc import Iterable

from ..caches import cached
from ..problem.interval import at_hand, positions, row_interval
from ..problem.problem import Axis
from ..problem.window import group_length

# Up to this many tiles of an axis are all examined for the widest span.
MAX_SPANS = 16_384


@cached("box sizes", 4096)
def box_size(axis: Axis, transposed: bool, tile: int) -> int:
    """A number of columns that holds the span of any tile of ``tile`` rows: the widest span, or on long axes a bound on
    it.
    """
    widest = 1
    for rows, columns, n in _kinds_of_groups(axis, transposed):
        firsts: Iterable[int] = rows[::tile]
        if len(rows) > MAX_SPANS * tile:
            firsts = _widest_at_ends(axis, tile, rows, n) if transposed else ()
            widest = max(widest, min(_inner_span(axis, transposed, tile), len(columns)))
        for first in firsts:
            low, _ = row_interval(axis, transposed, first, n)
            _, high = row_interval(axis, transposed, min(first + tile, rows.stop) - 1, n)
            widest = max(widest, min(high, columns.stop) - max(low, columns.start))
    return widest


def _kinds_of_groups(axis: Axis, transposed: bool) -> set[tuple[range, range, int]]:
    """Positions of the rows and columns at hand, and the whole length, of every dilation group that has a row.

    These numbers change from one group to the next only at a token at which the axis, the rows or the columns begin or
    end.
    """
    d, sides = axis.dilation, at_hand(axis, transposed)
    bounds = [axis.full, *(bound for start, count in sides for bound in (start, start + count))]
    kinds = set()
    for group in {0, *(bound % d for bound in bounds)}:
        rows, columns = (range(*positions(*side, group, d)) for side in sides)
        if rows:
            kinds.add((rows, columns, group_length(axis.full, group, d)))
    return kinds


def _inner_span(axis: Axis, transposed: bool, tile: int) -> int:
    """An upper bound of a tile's span; if ``transposed``, away from the ends of the axis.

    Leaders of rows ``tile - 1`` apart differ by at most that distance rounded up to strides, and borders only push
    windows together. The queries that see a key begin and end at multiples of the stride, and so do those of a tile.
    """
    w, s = axis.window, axis.stride
    if axis.causal:
        return tile + w - 1
    return s * ((tile + w - 2) // s + 1) if transposed else w + s * ((tile + s - 2) // s)


def _widest_at_ends(axis: Axis, tile: int, keys: range, n: int) -> set[int]:
    """First keys of the tiles near either end of a group of ``n`` that the most queries see.

    The keys before ``window`` are seen from the first query on, so spans grow up to the last tile that begins there;
    those from ``n - window`` on are seen up to the last query, so spans shrink from the first tile that ends there.
    """
    ends = (min(max(end, keys.start), keys.stop - 1) for end in (axis.window - 1, n - axis.window))
    return {end - (end - keys.start) % tile for end in ends}
