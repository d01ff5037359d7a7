"""Whose turn it is: tiles of a step that may add to the same columns do so one after the other.

Each tile of a walk over queries has a part of the gradients of all keys in its box, and boxes overlap. A key's parts
are added in the order of the walk: tiles whose boxes have no key in common take a turn together, each reading, adding
to and writing rows of its own, so that no result depends on who is first. No atomic additions, and a repeated run is
equal to the bit.
"""

from functools import lru_cache

from .blocks import AxisBlocks, Blocks, box_size

Tiles = slice | list[int]


def apart(blocks: AxisBlocks) -> int:
    """Tiles of a dilation group that are this many apart see no column in common.

    The rows that see a column lie side by side, at most so many as a box of the inverse walk holds. Rows of two tiles
    that are n apart have ``(n - 1) * tile`` rows at least between them.
    """
    rows = box_size(blocks.axis, not blocks.transposed, 1)
    return 1 - (1 - rows) // blocks.tile


@lru_cache(maxsize=4096)
def turns(blocks: Blocks, first: int, count: int) -> tuple[Tiles, ...]:
    """The tiles ``first .. first + count - 1``, numbered from 0, by turns; those of a turn have no column in common.

    On each axis, tiles of different dilation groups share nothing, and those of one group take turns by their place
    in it. Two tiles need but one axis on which they share nothing; equal turns on all axes leave only such.
    """
    found: dict[int, list[int]] = {}
    axes = [(axis.tiles, axis.axis.dilation, apart(axis)) for axis in reversed(blocks.axes)]
    for place in range(count):
        rest, turn = first + place, 0
        for tiles, dilation, most in axes:
            turn = turn * most + rest % tiles // dilation % most
            rest //= tiles
        found.setdefault(turn, []).append(place)
    return tuple(map(_evenly, found.values()))


def _evenly(places: list[int]) -> Tiles:
    """A slice, where they are evenly spaced."""
    step = places[1] - places[0] if len(places) > 1 else 1
    even = places == list(range(places[0], places[-1] + 1, step))
    return slice(places[0], places[-1] + 1, step) if even else places
