"""Which columns a row of a walk sees: keys that a query attends to, or queries that attend to a key."""

from typing import Any, Protocol

from .problem import Axis
from .window import INTEGERS, ArrayNamespace, group_length, inverse, window


class TableNamespace(ArrayNamespace, Protocol):
    """:class:`~.window.ArrayNamespace` that also makes arrays."""

    def arange(self, count: int, /) -> Any: ...


def row_interval(axis: Axis, transposed: bool, p: Any, n: Any, xp: ArrayNamespace = INTEGERS) -> tuple[Any, Any]:
    """``[low, high)``: the columns, out of ``n`` in the group, that the row at ``p`` sees."""
    interval = inverse if transposed else window
    return interval(p, n, axis.window, axis.stride, axis.causal, xp)


def positions(start: int, count: int, group: Any, dilation: int) -> tuple[Any, Any]:
    """``[first, last)``: the tokens ``[start, start + count)`` of a dilation group, as positions inside the group."""
    return group_length(start, group, dilation), group_length(start + count, group, dilation)


def at_hand(axis: Axis, transposed: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns at hand, ``(start, count)`` in tokens each."""
    queries, keys = (axis.query_start, axis.queries), (axis.key_start, axis.keys)
    return (keys, queries) if transposed else (queries, keys)


def column_span(axis: Axis, transposed: bool) -> tuple[int, int]:
    """``[low, high)`` in tokens of the whole axis: from the first to the last column that a row at hand sees."""
    start, count = at_hand(axis, transposed)[0]
    d, lows, highs = axis.dilation, [], []
    for token in range(start, start + min(count, d)):  # one per group, whose ends decide: intervals never move back
        group = token % d
        first, last = positions(start, count, group, d)
        n = group_length(axis.full, group, d)
        lows.append(row_interval(axis, transposed, first, n)[0] * d + group)
        highs.append((row_interval(axis, transposed, last - 1, n)[1] - 1) * d + group + 1)
    return (min(lows), max(highs)) if lows else (start, start)
