"""A problem cut into shards: which process holds which tokens, and which keys it needs from which others.

Processes form a grid over the axes that are cut; each holds the queries, keys and values of one shard, a box of tokens.
To attend, a process needs the keys of :attr:`Shards.reach`, its shard and a halo around it, which other shards hold.
Every process knows the bounds of all shards, and computes the same messages as the others without asking.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from ..caches import cached
from .interval import column_span
from .problem import Axis
from .wrap import unroll

Range = tuple[int, int]
# One range of tokens of the whole problem on each axis.
Box = tuple[Range, ...]


def tokens(box: Box) -> int:
    """How many tokens a box holds."""
    return math.prod(high - low for low, high in box)


def shifted(box: Box, by: Sequence[int]) -> Box:
    return tuple((low + step, high + step) for (low, high), step in zip(box, by, strict=True))


def common(a: Box, b: Box) -> Box | None:
    """The tokens that are in both boxes; None if there are none."""
    found = tuple((max(x[0], y[0]), min(x[1], y[1])) for x, y in zip(a, b, strict=True))
    return found if all(low < high for low, high in found) else None


@dataclass(frozen=True)
class Shards:
    """The shards of one problem.

    bounds: for each axis, where its shards begin, and its length: ``(0, length)`` for an axis that is not cut.
    cut: the axes that are cut; processes are numbered in row-major order over them.
    window: kernel_size, stride, dilation and is_causal, one entry per axis each.
    wrap: the axes that wrap around; beyond their ends, numbering continues with the tokens of another turn.
    """

    bounds: tuple[tuple[int, ...], ...]
    cut: tuple[int, ...]
    window: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[bool, ...]]
    wrap: tuple[int, ...] = ()

    def on_longer_axes(self, box: Box) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The problem's size and where ``box`` begins in it, with the axes that wrap unrolled (:mod:`.wrap`)."""
        full, starts = list(self.full_shape), [low for low, _ in box]
        for axis in self.wrap:
            w, s, d = (each[axis] for each in self.window[:3])
            longer = unroll(full[axis], w, s, d)
            full[axis], starts[axis] = longer.full, starts[axis] + longer.start
        return tuple(full), tuple(starts)

    @property
    def full_shape(self) -> tuple[int, ...]:
        return tuple(bounds[-1] for bounds in self.bounds)

    @property
    def count(self) -> int:
        """How many shards, and processes, there are."""
        return math.prod(len(bounds) - 1 for bounds in self.bounds)

    def coordinates(self, process: int) -> tuple[int, ...]:
        """Which shard of each axis a process holds."""
        found = [0] * len(self.bounds)
        for axis in reversed(self.cut):
            process, found[axis] = divmod(process, len(self.bounds[axis]) - 1)
        return tuple(found)

    def process_at(self, coordinates: Sequence[int]) -> int:
        """The process that holds a shard: the inverse of :meth:`coordinates`."""
        process = 0
        for axis in self.cut:
            process = process * (len(self.bounds[axis]) - 1) + coordinates[axis]
        return process

    def own(self, process: int) -> Box:
        """The tokens that a process holds."""
        return tuple(
            (bounds[at], bounds[at + 1]) for bounds, at in zip(self.bounds, self.coordinates(process), strict=True)
        )

    def keys_of(self, queries: Box) -> Box:
        """The keys that the queries of a box attend to, from the lowest to the highest on each axis."""
        return tuple(self._keys(axis, queries[axis]) for axis in range(len(self.bounds)))

    def _keys(self, axis: int, queries: Range) -> Range:
        w, s, d = (each[axis] for each in self.window[:3])
        full = self.bounds[axis][-1]
        longer, shift = (full, 0) if axis not in self.wrap else unroll(full, w, s, d)[:2]
        low, high = _span(longer, w, s, d, self.window[3][axis], queries[0] + shift, queries[1] + shift)
        return low - shift, high - shift

    def reach(self, process: int) -> Box:
        """The shard of a process with its halo: all keys that its queries attend to, and its own."""
        own = self.own(process)
        needed = self.keys_of(own)
        return tuple((min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(own, needed, strict=True))

    def holders(self, box: Box) -> list[list[tuple[int, int]]]:
        """For each axis, in ascending order, the shards that hold some of ``box``: their coordinate, and the first
        token of the turn that they are on (0 on an axis that does not wrap).
        """
        found = []
        for bounds, (low, high) in zip(self.bounds, box, strict=True):
            full = bounds[-1]
            turns = range(low // full * full, high, full)
            every_shard = [(at, turn) for turn in turns for at in range(len(bounds) - 1)]
            found.append(
                [(at, turn) for at, turn in every_shard if bounds[at] + turn < high and low < bounds[at + 1] + turn]
            )
        return found

    def received(self, process: int) -> "Iterator[Message]":
        """The parts of a process's halo. Where axes wrap, some are its own tokens on another turn."""
        reach = self.reach(process)
        for held in product(*self.holders(reach)):
            owner = self.process_at([at for at, _ in held])
            turn = tuple(turn for _, turn in held)
            part = common(reach, shifted(self.own(owner), turn))
            if part is not None and (owner != process or any(turn)):
                yield Message(owner, process, part, turn)

    def copies(self, process: int) -> "list[Message]":
        """The parts of a process's halo that its own shard holds."""
        return [each for each in self.received(process) if each.source == process]

    def messages(self) -> "tuple[Message, ...]":
        """All messages sent before the forward pass; gradients of the same tokens are sent back in the backward."""
        return _messages(self)

    def interior(self, process: int) -> Box | None:
        """A box of queries that attend only to keys of their own shard: between those that need a key before it and
        those that need a key after it. None if there are none.
        """
        found = tuple(self._interior(axis, own) for axis, own in enumerate(self.own(process)))
        return found if all(low < high for low, high in found) else None

    def _interior(self, axis: int, own: Range) -> Range:
        """By bisection: with more queries before or after, the first and the last key can only move outwards."""
        low, high = own
        first = bisect_left(range(low, high), True, key=lambda q: self._keys(axis, (q, high))[0] >= low)
        last = bisect_left(range(low + 1, high + 1), True, key=lambda q: self._keys(axis, (low, q))[1] > high)
        return low + first, low + last


@dataclass(frozen=True, slots=True)
class Message:
    """Tokens that one process sends to another."""

    source: int
    target: int
    box: Box
    turn: tuple[int, ...]  # the first token of the turn that ``box`` is on

    @property
    def at_source(self) -> Box:
        """The same tokens as the source numbers them."""
        return shifted(self.box, tuple(-start for start in self.turn))


@cached("messages between shards", 64)
def _messages(shards: Shards) -> tuple[Message, ...]:
    return tuple(each for process in range(shards.count) for each in shards.received(process) if each.source != process)


@cached("key ranges of shards", 4096)
def _span(full: int, w: int, s: int, d: int, causal: bool, low: int, high: int) -> Range:
    return column_span(Axis(high - low, full, w, s, d, causal, full, query_start=low), False)


def bytes_sent(shards: Shards, process: int, bytes_per_token: int) -> int:
    """What a process sends before the forward pass when every message goes straight to its target.

    bytes_per_token: of key and value together, ``batch * kv_heads * (head_dim + head_dim_v) * bytes of the dtype``.
    """
    return bytes_per_token * sum(tokens(each.box) for each in shards.messages() if each.source == process)


def bytes_returned(shards: Shards, process: int, bytes_per_token: int) -> int:
    """What a process sends in the backward pass: the gradients of its halo."""
    copied = sum(tokens(each.box) for each in shards.copies(process))
    return bytes_per_token * (tokens(shards.reach(process)) - tokens(shards.own(process)) - copied)


# --- over a ring, where a process reaches only its two neighbours ------------------------------------


def hops(count: int, source: int, target: int) -> int:
    """Steps along a ring of ``count`` processes, the shorter way: positive towards the next one, negative back."""
    forward = (target - source) % count
    return forward if 2 * forward <= count else forward - count


@dataclass(frozen=True, slots=True)
class Round:
    """Messages that move one step along a ring at the same time, each in one direction, by their index."""

    step: int
    moving: dict[int, tuple[int, ...]]  # by the process that sends


def rounds(count: int, ends: Sequence[tuple[int, int]]) -> list[Round]:
    """The steps of messages from ``ends[i][0]`` to ``ends[i][1]`` along a ring, in the order of all processes."""
    ways = [hops(count, *each) for each in ends]
    found = []
    for turn in range(max(map(abs, ways), default=0)):
        for step in (1, -1):
            moving: dict[int, list[int]] = {}
            for index, way in enumerate(ways):
                if way * step > turn:
                    moving.setdefault((ends[index][0] + turn * step) % count, []).append(index)
            if moving:
                found.append(Round(step, {process: tuple(each) for process, each in moving.items()}))
    return found


def bytes_sent_in_ring(shards: Shards, process: int, bytes_per_token: int, back: bool = False) -> int:
    """What a process sends when messages pass from neighbour to neighbour: its own, and those that it forwards."""
    messages = shards.messages()
    ends = [(each.target, each.source) if back else (each.source, each.target) for each in messages]
    sent = [index for each in rounds(shards.count, ends) for index in each.moving.get(process, ())]
    return bytes_per_token * sum(tokens(messages[index].box) for index in sent)
