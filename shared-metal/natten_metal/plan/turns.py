"""Turns: tiles that are computed at once but may add to the same columns add one after the other.

Each tile of a walk over queries contributes to the gradients of all keys in its box, and boxes overlap. A key's
contributions are added in the order of the walk: tiles whose boxes have no key in common take a turn together, each
reading, adding to and writing rows of its own, so that the result does not depend on the order within a turn. No atomic
additions, and repeated runs are equal to the bit.
"""

from ..caches import cached
from .blocks import AxisBlocks, Blocks
from .boxes import box_size

Tiles = slice | list[int]


def apart(blocks: AxisBlocks) -> int:
    """Tiles of a dilation group at least this far apart have no column in common.

    The rows that see a column are adjacent, at most as many as a box of the inverse walk holds. Rows of two tiles that
    are n apart are at least ``(n - 1) * tile`` rows apart.
    """
    rows = box_size(blocks.axis, not blocks.transposed, 1)
    return 1 - (1 - rows) // blocks.tile


@cached("turns of tiles", 4096)
def turns(blocks: Blocks, first: int, count: int) -> tuple[Tiles, ...]:
    """The tiles ``first .. first + count - 1``, numbered from 0, by turns; those of a turn have no column in common.

    On each axis, tiles of different dilation groups share nothing, and those of one group take turns by their position
    in it. Two tiles are independent if they share nothing on at least one axis; equal turns on all axes guarantee that.
    """
    found: dict[int, list[int]] = {}
    axes = [(axis.tiles, axis.groups, apart(axis)) for axis in reversed(blocks.axes)]
    for tile in range(count):
        rest, turn = first + tile, 0
        for tiles, groups, distance in axes:
            turn = turn * distance + rest % tiles // groups % distance
            rest //= tiles
        found.setdefault(turn, []).append(tile)
    return tuple(map(_as_slice, found.values()))


def _as_slice(tiles: list[int]) -> Tiles:
    """The tiles as a slice if they are evenly spaced, otherwise as they are."""
    gap = tiles[1] - tiles[0] if len(tiles) > 1 else 1
    even = tiles == list(range(tiles[0], tiles[-1] + 1, gap))
    return slice(tiles[0], tiles[-1] + 1, gap) if even else tiles
