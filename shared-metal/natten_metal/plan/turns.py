"""Turns: tiles computed at once that may add to the same columns do so one after the other.

Each tile of a walk over queries contributes to the gradients of all keys in its box, and boxes overlap. A key's
contributions are added in the order of the walk: tiles whose boxes have no key in common take a turn together, each
reading, adding to and writing rows of its own, so that the result does not depend on the order within a turn. No atomic
additions, and repeated runs are equal to the bit.
"""

from functools import lru_cache

from .blocks import AxisBlocks, Blocks, box_size

Tiles = slice | list[int]


def apart(blocks: AxisBlocks) -> int:
    """Tiles of a dilation group at least this far apart have no column in common.

    The rows that see a column are adjacent, at most as many as a box of the inverse walk holds. Rows of two tiles that
    are n apart are at least ``(n - 1) * tile`` rows apart.
    """
    rows = box_size(blocks.axis, not blocks.transposed, 1)
    return 1 - (1 - rows) // blocks.tile


@lru_cache(maxsize=4096)
def turns(blocks: Blocks, first: int, count: int) -> tuple[Tiles, ...]:
    """The tiles ``first .. first + count - 1``, numbered from 0, by turns; those of a turn have no column in common.

    On each axis, tiles of different dilation groups share nothing, and those of one group take turns by their position
    in it. Two tiles are independent if they share nothing on at least one axis; equal turns on all axes guarantee that.
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
    """As a slice, if they are evenly spaced."""
    step = places[1] - places[0] if len(places) > 1 else 1
    even = places == list(range(places[0], places[-1] + 1, step))
    return slice(places[0], places[-1] + 1, step) if even else places
