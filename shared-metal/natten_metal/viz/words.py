"""What a picture shows, in words and characters: for a terminal, and beside the squares."""

import itertools
import math
from collections.abc import Sequence

from ..metal.flat import bricks_of
from ..metal.tiles import COLUMNS, ROWS
from ..problem.mask import pairs
from .axes import Shown, ShownAxis, brick_of
from .pictures import Sight, Token, around

# Tokens of an axis, planes, and lines of a mask that a terminal is shown.
MOST_COLUMNS, MOST_ROWS, MOST_PLANES = 64, 32, 6


def named(token: Sequence[int]) -> str:
    """A token in words: a number on a single axis."""
    return str(token[0]) if len(token) == 1 else str(tuple(token))


def listed(tokens: Sequence[int], step: int) -> str:
    """Tokens in runs: '6-10', '14-15, 0-2', '2-20 by 3'."""
    runs: list[list[int]] = []
    for token in tokens:
        if runs and token == runs[-1][1] + step:
            runs[-1][1] = token
        else:
            runs.append([token, token])
    every = f" by {step}" if step > 1 else ""
    return ", ".join(str(first) if first == last else f"{first}-{last}{every}" for first, last in runs) or "none"


def call(shown: Shown) -> str:
    """The call in Python, without arguments that have their defaults."""
    p = shown.problem
    given: list[tuple[str, tuple[int | bool, ...], int | bool | None]] = [
        ("kernel_size", p.kernel_size, None),
        ("stride", p.stride, 1),
        ("dilation", p.dilation, 1),
        ("is_causal", p.is_causal, False),
        ("wrap", tuple(axis.wraps for axis in shown.axes), False),
    ]
    whole = (len(axis.given(side)) == axis.length for axis in shown.axes for side in (False, True))
    if not all(whole):
        given += [("full_shape", shown.shape, None), ("query_start", _starts(shown, False), 0)]
        given += [("key_start", _starts(shown, True), 0)]
    parts = ["query, key, value"]
    for name, values, default in given:
        if any(value != default for value in values):
            parts.append(f"{name}={values[0] if len(set(values)) == 1 else values}")
    return f"{p.name}({', '.join(parts)})"


def _starts(shown: Shown, transposed: bool) -> tuple[int, ...]:
    return tuple(axis.given(transposed).start for axis in shown.axes)


def about(sight: Sight) -> list[str]:
    """What the token sees, its leader and its dilation group: a few lines."""
    shown, token = sight.shown, sight.token
    axes = list(zip(shown.axes, token, strict=True))
    found = [axis.seen(sight.transposed, token) for axis, token in axes]
    row, does, others = ("key", "is seen by", "queries") if sight.transposed else ("query", "attends to", "keys")
    total = math.prod(len(axis.given(not sight.transposed)) for axis in shown.axes)
    count = math.prod(map(len, found))
    lines = [f"{row} {named(token)} {does} {count:,} of {total:,} {others}"]
    lines += [
        f"axis {place}: {listed(tokens, axis.axis.dilation)}"
        for place, (tokens, (axis, _)) in enumerate(zip(found, axes, strict=True))
    ]
    if not sight.transposed and any(axis.axis.stride > 1 for axis, _ in axes):
        groups = [axis.stride_group(token) for axis, token in axes]
        leader, mates = named([leader for _, leader in groups]), math.prod(len(mates) for mates, _ in groups)
        lines.append(f"its leader is {leader}, whose window {mates} queries share")
    if any(axis.axis.dilation > 1 for axis, _ in axes):
        group = named([token % axis.axis.dilation for axis, token in axes])
        lines.append(f"dilation group {group} of {named(shown.problem.dilation)}")
    return lines


def about_all(shown: Shown) -> str:
    """Sparsity and the ideal speed-up, in a line."""
    tokens, found = math.prod(len(axis.given(False)) for axis in shown.axes), pairs(shown.problem)
    every = tokens * math.prod(len(axis.given(True)) for axis in shown.axes)
    return f"sparsity {1 - found / every:.2%}: ideal speed-up over dense {every / found:.3g}x"


def about_kernels(sight: Sight) -> list[str]:
    """What the patch and the tile of the token read, and the work of the whole problem."""
    assert sight.patch is not None and sight.tile is not None
    shown = sight.shown
    lines = []
    kind = "flat bricks" if sight.flat else "bricks"
    rows, columns = ("keys", "queries") if sight.transposed else ("queries", "keys")
    for name, extents in (("patch", sight.patch), ("tile", sight.tile)):
        boxes = sight.boxes(extents)
        held = " x ".join(str(len(box.rows)) for box in boxes)
        read = " x ".join(str(len(box.columns)) for box in boxes)
        lines.append(f"{name} of {held} {rows}: reads a box of {read} {columns}")
    boxes = sight.boxes(sight.patch)
    lengths = [len(box.columns) for box in boxes]
    in_rows = math.prod(lengths[:-1]) * -(-lengths[-1] // COLUMNS)
    bricks = -(-math.prod(lengths) // COLUMNS) if sight.flat else in_rows
    # A brick in a row is known by any of its columns: here by its first.
    corners = itertools.product(*(box.columns for box in boxes[:-1]), boxes[-1].columns[::COLUMNS])
    full = sum(brick_of(boxes, corner, sight.flat) is True for corner in corners)
    seen = _patch_pairs(sight)
    computed = bricks * math.prod(sight.patch) * COLUMNS
    lines.append(
        f"the patch: {bricks} {kind}, {full} without a mask; {1 - seen / computed:.0%} of its pairs are wasted"
    )
    heads = ROWS // math.prod(sight.patch)
    patch = (1,) * (3 - len(sight.patch)) + sight.patch
    three = patch[0], patch[1], patch[2]
    executed, inner = bricks_of(shown.problem, three, heads, sight.transposed, sight.flat)
    useful = pairs(shown.problem) * shown.problem.group_heads
    ratio = executed * ROWS * COLUMNS / useful
    lines.append(
        f"the problem: {executed:,} {kind}, {inner / executed:.0%} without a mask; executed / useful {ratio:.2f}"
    )
    return lines


def _patch_pairs(sight: Sight) -> int:
    """Pairs of the patch's rows that the window wants."""
    assert sight.patch is not None
    counts = []
    for axis, box in zip(sight.shown.axes, sight.boxes(sight.patch), strict=True):
        columns = set(box.columns)
        counts.append(sum(len(columns.intersection(axis.seen(sight.transposed, row))) for row in box.rows))
    return math.prod(counts)


# --- characters ---------------------------------------------------------------------------------------------------

LEGEND = (
    ("Q", "q", "the token", lambda t: t.own),
    ("L", "l", "its leader", lambda t: t.leader),
    ("+", "-", "its stride group", lambda t: t.mate),
)


def character(token: Token) -> str:
    """One square as a character."""
    for seen, unseen, _, holds in LEGEND:
        if holds(token):
            return seen if token.seen else unseen
    if token.seen:
        return "#"
    if token.brick is not None:
        return "=" if token.brick else "x"
    if not token.given:
        return " "
    return ":" if token.same_group else "."


MEANINGS = {
    "Q": "the token",
    "L": "its leader",
    "+": "its stride group",
    "#": "what it sees",
    "x": "read by its patch, masked for it",
    ":": "its dilation group",
    ".": "other tokens",
}


def text(sight: Sight) -> str:
    """The tokens around the one that is looked at, as characters; planes of rank 3 that hold something of it."""
    shape, look = sight.shown.shape, sight.looks()
    *leading, height, width = (1, *shape) if len(shape) == 1 else shape
    *before, row, column = (0, *sight.token) if len(shape) == 1 else sight.token
    rows, columns = around(height, row, MOST_ROWS), around(width, column, MOST_COLUMNS)
    planes = around(leading[0], before[0], MOST_PLANES) if leading else range(1)
    lines, used = [], set()
    margin = max(len(str(rows.stop)), 2) + 2
    for plane in planes:
        if leading:
            lines.append(f"plane {plane}")
        lines.append(" " * margin + _ruler(columns))
        for row in rows:
            marks = [character(look((plane, row, column)[-len(shape) :])) for column in columns]
            used.update(marks)
            lines.append((f"{row:>{margin - 2}}" if len(shape) > 1 else "").ljust(margin) + " ".join(marks))
        lines.append("")
    said = {mark: what for mark, what in MEANINGS.items() if {mark, mark.lower(), "-" if mark == "+" else mark} & used}
    lines.append("   ".join(f"{mark} {what}" for mark, what in said.items()))
    return "\n".join(line.rstrip() for line in lines)


def _ruler(columns: range) -> str:
    marks = [" "] * (2 * len(columns) + 8)
    for column in columns:
        if column % 5 == 0:
            at = 2 * (column - columns.start)
            marks[at : at + len(str(column))] = str(column)
    return "".join(marks).rstrip()


def mask_text(axis: ShownAxis) -> str:
    """The mask of one axis: a line for each query, a character for each key."""
    queries = axis.given(False)[:MOST_COLUMNS]
    lines = []
    for query in queries:
        seen = set(axis.seen(False, query))
        marks = (
            ("Q" if key in seen else "q") if key == query else "#" if key in seen else "."
            for key in range(min(axis.length, MOST_COLUMNS))
        )
        lines.append(f"{query:>4}  " + "".join(marks))
    return "\n".join(lines)
