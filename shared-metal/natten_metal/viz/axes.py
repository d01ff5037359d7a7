"""One axis as a picture shows it: tokens by their numbers, whatever groups, pieces and wrapped ends the kernels see.

:mod:`..problem.interval` counts positions in dilation groups, on axes that are unrolled if they wrap. A picture shows
tokens: those of the whole axis, ``0 .. length - 1``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..metal.tiles import COLUMNS, span
from ..problem.faces import explained
from ..problem.interval import at_hand, positions, row_interval
from ..problem.problem import Axis, Problem, TensorSpec
from ..problem.window import group_length, window


class Box(NamedTuple):
    """What some rows read on one axis, in tokens. columns: in the box's order; common: whether all rows see each."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    common: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class ShownAxis:
    """One axis of a problem; wraps: whether ``axis`` was unrolled, since windows pass over its end."""

    axis: Axis
    wraps: bool = False

    @property
    def length(self) -> int:
        """Tokens of the whole axis."""
        return self.axis.queries if self.wraps else self.axis.full

    @property
    def _first(self) -> int:
        """The place of token 0 on the axis that the kernels see."""
        return self.axis.query_start if self.wraps else 0

    def _place(self, token: int) -> tuple[int, int, int]:
        """Dilation group of a token, its position there, and the group's length."""
        d = self.axis.dilation
        group, position = (token + self._first) % d, (token + self._first) // d
        return group, position, group_length(self.axis.full, group, d)

    def _tokens(self, group: int, begin: int, end: int) -> tuple[int, ...]:
        places = (position * self.axis.dilation + group for position in range(begin, end))
        return tuple((place - self._first) % self.length for place in places)

    def given(self, transposed: bool) -> range:
        """The rows at hand: queries, or keys if ``transposed``."""
        start, count = at_hand(self.axis, transposed)[0]
        return range(self.length) if self.wraps else range(start, start + count)

    def seen(self, transposed: bool, token: int) -> tuple[int, ...]:
        """The keys that a query attends to, from the start of its window; or the queries that attend to a key."""
        (start, count), columns = at_hand(self.axis, transposed)
        found: list[int] = []
        # Near an end that wraps, a key is at hand more than once.
        copies = range(-1, 2) if self.wraps else (0,)
        for copy in copies:
            if not start <= token + copy * self.length + self._first < start + count:
                continue
            group, position, n = self._place(token + copy * self.length)
            lowest, highest = positions(*columns, group, self.axis.dilation)
            low, high = row_interval(self.axis, transposed, position, n)
            found += self._tokens(group, max(low, lowest), min(high, highest))
        return tuple(found)

    def stride_group(self, query: int) -> tuple[tuple[int, ...], int]:
        """The queries that have the window of ``query``, and their leader, whose window it is."""
        group, position, n = self._place(query)
        s = self.axis.stride
        first = position - position % s
        _, end = positions(*at_hand(self.axis, False)[0], group, self.axis.dilation)
        leader, _ = window(position, n, 1, s, self.axis.causal)  # a window of one key holds the leader alone
        (token,) = self._tokens(group, leader, leader + 1)
        return self._tokens(group, first, min(first + s, end)), token

    def box(self, transposed: bool, extent: int, token: int) -> Box:
        """The rows of the patch, or tile, of ``extent`` rows that holds a token, and what they read."""
        group, position, n = self._place(token)
        (begin, end), columns = (positions(*side, group, self.axis.dilation) for side in at_hand(self.axis, transposed))
        first = position - (position - begin) % extent
        rows = first, min(first + extent, end)
        low, common_low, common_high, high = span(self.axis, transposed, rows, columns, n)
        common = tuple(common_low <= column < common_high for column in range(low, high))
        return Box(self._tokens(group, *rows), self._tokens(group, low, high), common)


@dataclass(frozen=True, slots=True)
class Shown:
    """A problem to look at. problem: with the axes that wrap unrolled; axes: one for each of its own."""

    problem: Problem
    axes: tuple[ShownAxis, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Tokens of the whole problem."""
        return tuple(axis.length for axis in self.axes)


def shown(
    shape: Sequence[int],
    key_shape: Sequence[int] | None = None,
    *,
    wrap: Sequence[bool],
    heads: tuple[int, int] = (1, 1),
    dims: tuple[int, int] = (64, 64),
    dtype: str = "float16",
    **window_arguments: Any,
) -> Shown:
    """The problem of ``na{1,2,3}d`` on tensors of these sizes, to look at.

    shape, key_shape: of queries and keys; heads: of queries, and of keys and values; dims: D and D_v; window_arguments:
    as those functions take them. Raises what they raise.
    """
    keys = tuple(shape if key_shape is None else key_shape)
    query = TensorSpec((1, *shape, heads[0], dims[0]), dtype)
    key, value = (TensorSpec((1, *keys, heads[1], dim), dtype) for dim in dims)
    problem = explained("viz", f"na{len(shape)}d", [query, key, value], {"wrap": tuple(wrap), **window_arguments})
    return Shown(problem, tuple(ShownAxis(axis, wraps) for axis, wraps in zip(problem.axes, wrap, strict=True)))


def brick_of(boxes: Sequence[Box], token: Sequence[int], flat: bool = False) -> bool | None:
    """Whether the brick that holds a column needs no mask; a flat one always does. None outside the box of a patch."""
    full = not flat
    for place, (box, column) in enumerate(zip(boxes, token, strict=True)):
        if column not in box.columns:
            return None
        index, size = box.columns.index(column), COLUMNS if place == len(boxes) - 1 else 1
        brick = box.common[index - index % size :][:size]
        full = full and len(brick) == size and all(brick)
    return full
