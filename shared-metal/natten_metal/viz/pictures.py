"""Pictures of windows: the tokens with what one of them sees, masks of whole axes, and what a patch and a tile read."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .axes import Box, Shown, ShownAxis, brick_of
from .drawing import INK, Drawing, Line, Square, Words

CELL, GAP, MARGIN, TITLE = 14, 40, 20, 44
# How much of a larger problem a picture shows, around a token: tokens of an axis, planes of rank 3.
MOST_TOKENS, MOST_PLANES, ACROSS = 64, 12, 4
SPACE = CELL - 2  # of a square
TITLE_LINE = 18


@dataclass(frozen=True, slots=True)
class Token:
    """How one square of a picture looks. brick: that of the patch's box which holds it: full, masked or None."""

    seen: bool = False
    own: bool = False
    leader: bool = False
    mate: bool = False
    same_group: bool = False
    given: bool = True
    hidden: bool = False
    brick: bool | None = None
    in_patch: bool = False
    in_tile: bool = False


def square(token: Token, x: float, y: float) -> list[Square | Line | Words]:
    """The shapes of one square."""

    def inner(color: str, inset: float) -> Square:
        return Square(x + inset, y + inset, SPACE - 2 * inset, SPACE - 2 * inset, INK[color], round=1)

    shapes: list[Square | Line | Words] = [Square(x, y, SPACE, SPACE, INK[_ground(token)], round=2)]
    if not token.given:
        shapes.append(Square(x, y, SPACE, SPACE, "", INK["line"], 1, 2))
    if token.brick is False:
        shapes.append(Line(x + 1, y + SPACE - 1, x + SPACE - 1, y + 1, INK["hatch"], 1))
    if token.seen and token.brick is not None:
        shapes.append(inner("query" if token.own else "seen", 0 if token.own else 2.5))
    if not token.seen:
        if token.own:
            shapes.append(inner("query", 3))
        elif token.same_group and token.brick is None:
            shapes.append(inner("group", 4))
    if token.mate and not (token.own or token.leader):
        shapes.append(inner("query", 4))
    if token.in_tile and not token.in_patch:
        shapes.append(Square(x, y, SPACE, SPACE, "", INK["muted"], 1, 2))
    if token.in_patch:
        shapes.append(Square(x, y, SPACE, SPACE, "", INK["ink"], 2, 2))
    if token.leader and not token.own:
        shapes.append(Square(x + 1, y + 1, SPACE - 2, SPACE - 2, "", INK["query"], 2, 1))
    return shapes


def _ground(token: Token) -> str:
    if token.brick is not None:
        return "full" if token.brick else "masked"
    if token.seen:
        return "query" if token.own else "seen"
    return "hidden" if token.hidden else "empty" if token.given else "panel"


def grid(
    title: str,
    caption: str,
    rows: range,
    columns: range,
    token: Callable[[int, int], Token],
    place: tuple[float, float],
    numbered: bool = True,
) -> Iterable[Square | Line | Words]:
    """A panel of squares, with its top left corner at ``place``; numbered: with token numbers along its edges."""
    left, top = place
    above = 20 if numbered else 9  # the numbers lie between the words and the squares
    yield Words(left, top - above - (15 if caption else 0), title, "title")
    if caption:
        yield Words(left, top - above, caption, "caption")
    if numbered:
        heights = rows if len(rows) > 1 else ()
        for column in columns:
            if _is_marked(column, columns):
                middle = left + (column - columns.start) * CELL + SPACE / 2
                yield Words(middle, top - 5, str(column), "label", "middle")
        for row in heights:
            if _is_marked(row, rows):
                yield Words(left - 5, top + (row - rows.start) * CELL + SPACE - 2, str(row), "label", "end")
    for row, column in itertools.product(rows, columns):
        at = left + (column - columns.start) * CELL, top + (row - rows.start) * CELL
        yield from square(token(row, column), *at)


def _is_marked(number: int, numbers: range) -> bool:
    return number % (5 if len(numbers) > 8 else 2) == 0


def around(length: int, token: int, most: int) -> range:
    """At most ``most`` of the tokens of an axis, around one of them."""
    first = min(max(token - most // 2, 0), max(length - most, 0))
    return range(first, min(first + most, length))


# --- what a token sees --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sight:
    """One token and what it sees: a query and its keys, or, transposed, a key and the queries that attend to it.

    patch, tile: rows on each axis whose reading is shown too; None for windows alone. flat: whether the patch's bricks
    run on from row to row.
    """

    shown: Shown
    token: tuple[int, ...]
    transposed: bool = False
    patch: tuple[int, ...] | None = None
    tile: tuple[int, ...] | None = None
    flat: bool = False

    def boxes(self, extents: Sequence[int]) -> tuple[Box, ...]:
        """What the rows of the patch, or tile, around the token read."""
        axes = zip(self.shown.axes, extents, self.token, strict=True)
        return tuple(axis.box(self.transposed, extent, token) for axis, extent, token in axes)

    def looks(self) -> Callable[[Sequence[int]], Token]:
        """How each token of the problem looks."""
        axes = list(zip(self.shown.axes, self.token, strict=True))
        seen = [set(axis.seen(self.transposed, token)) for axis, token in axes]
        groups = [axis.stride_group(token) if not self.transposed else ((), -1) for axis, token in axes]
        patch = None if self.patch is None else self.boxes(self.patch)
        tile = None if self.tile is None else self.boxes(self.tile)
        given = [axis.given(not self.transposed) for axis, _ in axes]
        dilated = any(axis.axis.dilation > 1 for axis, _ in axes)

        def look(other: Sequence[int]) -> Token:
            def on_all(holds: Callable[[int, int], bool]) -> bool:
                return all(holds(place, token) for place, token in enumerate(other))

            same = on_all(lambda place, token: (token - self.token[place]) % axes[place][0].axis.dilation == 0)
            return Token(
                seen=on_all(lambda place, token: token in seen[place]),
                own=tuple(other) == self.token,
                leader=on_all(lambda place, token: token == groups[place][1]),
                mate=on_all(lambda place, token: token in groups[place][0]),
                same_group=dilated and same,
                given=on_all(lambda place, token: token in given[place]),
                brick=None if patch is None else brick_of(patch, other, self.flat),
                in_patch=patch is not None and on_all(lambda place, token: token in patch[place].rows),
                in_tile=tile is not None and on_all(lambda place, token: token in tile[place].rows),
            )

        return look


def tokens(sight: Sight, title: Sequence[str], lines: Sequence[str]) -> Drawing:
    """The tokens of a problem, planes of rank 3 side by side, with what one of them sees; words below."""
    shape, look = sight.shown.shape, sight.looks()
    *leading, height, width = (1, *shape) if len(shape) == 1 else shape
    *before, row, column = (0, *sight.token) if len(shape) == 1 else sight.token
    rows, columns = around(height, row, MOST_TOKENS), around(width, column, MOST_TOKENS)
    planes = around(leading[0], before[0], MOST_PLANES) if leading else range(1)
    across = min(len(planes), max(1, min(ACROSS, 2 * MOST_TOKENS // len(columns))))
    step_x, step_y = len(columns) * CELL + GAP, len(rows) * CELL + TITLE + 12
    shapes: list[Square | Line | Words] = []
    top = MARGIN + 8 + TITLE_LINE * len(title)
    for index, plane in enumerate(planes):
        named = f"plane {plane}" if leading else ""
        place = MARGIN + 20 + index % across * step_x, top + TITLE - (0 if leading else 20) + index // across * step_y

        def token(row: int, column: int, plane: int = plane) -> Token:
            return look((plane, row, column)[-len(shape) :])

        shapes += grid(named, "", rows, columns, token, place)
    below = top + math.ceil(len(planes) / across) * step_y + (8 if leading else -12)
    shapes += _titles(title)
    shapes += [Words(MARGIN, below + 10 + 18 * at, line, "caption") for at, line in enumerate(lines)]
    longest = max(*(7.9 * len(line) for line in title), *(6.4 * len(line) for line in lines))
    entries = legend(sight)
    shapes += _entries(entries, MARGIN, below + 18 * len(lines) + 12)
    room = max(across * step_x - GAP + 20, longest, max(map(_entry_width, entries)))
    return Drawing(2 * MARGIN + room, below + 18 * (len(lines) + len(entries)) + 24, shapes)


def _titles(lines: Sequence[str]) -> Iterable[Words]:
    return (Words(MARGIN, MARGIN + 8 + TITLE_LINE * at, line, "title") for at, line in enumerate(lines))


def legend(sight: Sight) -> list[tuple[Token, str]]:
    """What the squares of :func:`tokens` mean."""
    row, rows, does = ("key", "queries", "attend to it") if sight.transposed else ("query", "keys", "it attends to")
    axes = [axis.axis for axis in sight.shown.axes]
    found = [(Token(own=True, seen=True), f"the {row}"), (Token(seen=True), f"{rows} that {does}")]
    if not sight.transposed and any(axis.stride > 1 for axis in axes):
        found += [(Token(leader=True, seen=True), "its leader, whose window it shares")]
        found += [(Token(mate=True, seen=True), "the queries of its stride group")]
    if any(axis.dilation > 1 for axis in axes):
        found.append((Token(same_group=True), "tokens of its dilation group"))
    if any(len(axis.given(not sight.transposed)) < axis.length for axis in sight.shown.axes):
        found.append((Token(given=False), f"{rows} that are not given to this piece"))
    if sight.patch is not None:
        found.append((Token(in_patch=True), "the patch: rows of one simdgroup"))
        found.append((Token(in_tile=True), "the tile: rows of one threadgroup"))
        if not sight.flat:
            found.append((Token(brick=True), "bricks that all rows of the patch see: no mask"))
        found.append((Token(brick=False), "bricks that run on from row to row" if sight.flat else "bricks with a mask"))
    return found


def _entry_width(entry: tuple[Token, str]) -> float:
    return 24 + 6.4 * len(entry[1])


def _entries(entries: Sequence[tuple[Token, str]], left: float, top: float) -> Iterable[Square | Line | Words]:
    for at, (token, text) in enumerate(entries):
        yield from square(token, left, top + 18 * at)
        yield Words(left + 22, top + 18 * at + 10, text, "caption")


# --- masks of axes ------------------------------------------------------------------------------------------------


def mask(
    title: str, caption: str, axis: ShownAxis, place: tuple[float, float], numbered: bool = False
) -> list[Square | Line | Words]:
    """The mask of one axis: a row for each query, a column for each key."""
    queries, keys = axis.given(False), axis.given(True)
    rows, columns = queries[:MOST_TOKENS], range(min(axis.length, MOST_TOKENS))
    seen = {query: set(axis.seen(False, query)) for query in rows}

    def pair(query: int, key: int) -> Token:
        return Token(seen=key in seen[query], own=query == key, given=key in keys)

    return list(grid(title, caption, rows, columns, pair, place, numbered))


def masks(shown: Shown, title: Sequence[str], lines: Sequence[str]) -> Drawing:
    """The masks of all axes, side by side: a query sees a key if it sees it on every axis."""
    shapes: list[Square | Line | Words] = list(_titles(title))
    left, top, tallest = MARGIN + 20.0, MARGIN + TITLE_LINE * len(title) + TITLE, 0
    for number, axis in enumerate(shown.axes):
        shapes += mask(f"axis {number}", "", axis, (left, top), numbered=True)
        left += min(axis.length, MOST_TOKENS) * CELL + GAP
        tallest = max(tallest, min(len(axis.given(False)), MOST_TOKENS))
    below = top + tallest * CELL + 22
    said = [*lines, "rows: queries; columns: keys; orange: the query's own position; blue: the keys that it attends to"]
    shapes += [Words(MARGIN, below + 18 * at, line, "caption") for at, line in enumerate(said)]
    room = max(left - MARGIN - GAP, *(6.4 * len(line) for line in said), *(7.9 * len(line) for line in title))
    return Drawing(2 * MARGIN + room, below + 18 * len(said), shapes)
