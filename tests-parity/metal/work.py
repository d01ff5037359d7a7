"""The work that a launch has to do, counted from the definition: columns read, bricks visited.

Everything factorises over the axes (coord.h, walk.h), so each axis is simulated by itself, tile by tile, and the
counts are multiplied. :func:`bricks_by_force` shares nothing with that: it looks at all pairs.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

from natten_mps._metal.metal.source import Instance
from natten_mps._metal.problem.interval import at_hand, positions
from natten_mps._metal.problem.mask import NumpyTables, axis_mask
from natten_mps._metal.problem.problem import Axis, Problem

from .flat_work import flat_bricks, flat_reads

Array = Any


@dataclass
class AxisWork:
    """One axis of a launch, summed over its tiles and dilation groups.

    staged: how often staging copies each token as a column. direct: how often a product that reads device memory itself
    reads it as one. seen: patches whose box it lies in. steps, full: bricks along x, or rows of the box on other axes,
    and those of them that need no mask. boxes: columns that each tile sees. idle: rows of patches that do not exist.
    """

    staged: Array
    direct: Array
    seen: Array
    steps: int = 0
    full: int = 0
    patches: int = 0
    idle: int = 0
    boxes: list[int] = field(default_factory=list)


def seen_by(axis: Axis, transposed: bool) -> Array:
    """``[rows, columns]`` bool: the row sees the column."""
    mask = axis_mask(axis, NumpyTables())
    return mask.T if transposed else mask


def groups(axis: Axis, transposed: bool) -> list[tuple[slice, slice]]:
    """The rows and the columns at hand of each dilation group."""
    d = axis.dilation
    (rows, _), (columns, _) = at_hand(axis, transposed)
    return [(slice((g - rows) % d, None, d), slice((g - columns) % d, None, d)) for g in range(d)]


def span(mask: Array) -> tuple[int, int]:
    """``[first, last + 1)`` of the columns that any row of ``mask [rows, columns]`` sees; empty if none."""
    columns = np.flatnonzero(mask.any(0))
    return (int(columns[0]), int(columns[-1]) + 1) if columns.size else (0, 0)


def pieces(length: int, chunk: int) -> Array:
    """How often staging copies each of ``length`` columns of a row: once, or twice where pieces overlap."""
    counts = np.zeros(length, int)
    if length <= chunk + 1:
        return counts + 1
    for first in range(0, length, chunk):
        counts[first : first + chunk + 7] += 1
    return counts


def chunks(rows: int, length: int, chunk: int) -> int:
    """In how many chunks a box of ``rows`` rows is staged: whole rows, evenly spread, or pieces of a row."""
    if not rows or not length:
        return 0
    if length > chunk + 1:
        return rows * -(-length // chunk)
    fewest = -(-rows // ((chunk + 1) // length))
    return -(-rows // -(-rows // fewest))


def in_bricks(length: int) -> Array:
    """How often direct reads read each of ``length`` columns of a row: the last one stands in for those that its brick
    lacks.
    """
    counts = np.ones(length, int)
    counts[-1:] += -length % 8
    return counts


def axis_work(axis: Axis, transposed: bool, extent: int, simdgroups: int, chunk: int, along_x: bool) -> AxisWork:
    """Simulate an axis. extent: rows of a patch on it; simdgroups: patches side by side (1 except along x)."""
    seen = seen_by(axis, transposed)
    columns = seen.shape[1]
    work = AxisWork(*(np.zeros(columns, int) for _ in range(3)))
    for row_group, column_group in groups(axis, transposed):
        own = seen[row_group, column_group]
        n = len(own)
        staged, direct = work.staged[column_group], work.direct[column_group]
        for corner in range(0, n, extent * simdgroups):
            tile = own[corner : corner + extent * simdgroups]
            low, high = span(tile)
            staged[low:high] += pieces(high - low, chunk) if along_x else 1
            work.boxes.append(high - low)
            for first in range(corner, corner + extent * simdgroups, extent):
                if first >= n:
                    continue  # an idle simdgroup
                patch = own[first : first + extent]
                work.idle += extent - len(patch)
                low, high = span(patch)
                direct[low:high] += in_bricks(high - low) if along_x else 1
                work.seen[column_group][low:high] += 1
                steps, full = patch_steps(patch, along_x)
                work.steps += steps
                work.full += full
                work.patches += 1
    return work


def patch_steps(patch: Array, along_x: bool) -> tuple[int, int]:
    """Steps of a patch's ``[rows, columns]`` on one axis, and how many of them all its rows see completely."""
    low, high = span(patch)
    if not along_x:
        return high - low, int(patch[:, low:high].all(0).sum())
    whole = [patch[:, x : x + 8] for x in range(low, high, 8)]
    return len(whole), sum(brick.shape[1] == 8 and bool(brick.all()) for brick in whole)


@dataclass(frozen=True)
class Work:
    """A launch of a walking template: per-axis work and what follows from it."""

    problem: Problem
    instance: Instance
    axes: tuple[AxisWork, ...]

    @property
    def repeat(self) -> int:
        """How often each patch is walked: for every batch item, and for the heads that do not share a patch."""
        p, i = self.problem, self.instance
        return p.batch * p.kv_heads * (p.group_heads // i.heads)

    @property
    def patches(self) -> int:
        """Patches that have work, of all batch items and heads."""
        heads = self.problem.kv_heads if self.instance.record.transposed else self.problem.heads
        heads //= 1 if self.instance.record.transposed else self.instance.heads
        return self.problem.batch * heads * math.prod(axis.patches for axis in self.axes)

    @property
    def bricks(self) -> tuple[int, int]:
        """Executed bricks and full ones of the launch, those of additional keys included."""
        additional = self.problem.additional if self.instance.additional else 0
        if self.instance.flat:
            own = flat_bricks(self.problem, self.instance) * self.repeat  # always masked
            return own + self.patches * -(-additional // 8), self.patches * (additional // 8)
        steps = math.prod(axis.steps for axis in self.axes) * self.repeat + self.patches * -(-additional // 8)
        full = math.prod(axis.full for axis in self.axes) * self.repeat + self.patches * (additional // 8)
        return steps, full

    @property
    def chunks(self) -> int:
        """Chunks that the launch stages, those of additional keys included."""
        if not self.instance.stage:
            return 0
        boxes = list(itertools.product(*(axis.boxes for axis in self.axes)))
        own = sum(chunks(math.prod(rows), x, self.instance.chunk) for *rows, x in boxes)
        additional = self.problem.additional if self.instance.additional else 0
        return (own + chunks(1, additional, self.instance.chunk) * len(boxes)) * self.repeat

    def outer(self, name: str) -> Array:
        """``[tokens..]``: the product of a per-axis count over all tokens."""
        return reduce(np.multiply.outer, [getattr(axis, name) for axis in self.axes])

    def read(self, products: int) -> Array:
        """``[tokens..]``: how often each column of one head is read, if ``products`` products of a brick read it."""
        # Rows of different heads read the columns of their key/value head separately.
        times = 1 if self.instance.record.transposed else self.problem.group_heads // self.instance.heads
        if self.instance.flat:
            return flat_reads(self.problem, self.instance) * times * products
        return self.outer("staged") * times if self.instance.stage else self.outer("direct") * times * products

    @property
    def mask_reads(self) -> Array:
        """``[tokens..]``: how often each key's bit in the key mask is read, by all heads together: once for each brick
        that holds the key; where keys are rows, once for each of the four lanes of a row. By each member of a team.
        """
        team = self.instance.team
        if self.instance.record.transposed:
            return np.full(self.problem.key_shape, 4 * self.problem.kv_heads * team)
        return self.outer("seen") * (self.problem.heads // self.instance.heads) * team

    def read_additional(self, products: int) -> Array:
        """``[S]``: the same for additional keys, which all patches see in full."""
        times, i = self.problem.group_heads // self.instance.heads, self.instance
        if i.stage:
            return pieces(self.problem.additional, i.chunk) * math.prod(len(axis.boxes) for axis in self.axes) * times
        patches = math.prod(axis.patches for axis in self.axes)
        return in_bricks(self.problem.additional) * patches * times * products


def work_of(problem: Problem, instance: Instance) -> Work:
    """The work of a launch of ``instance`` on ``problem``."""
    transposed, axes = instance.record.transposed, []
    for number, axis in enumerate(problem.axes):
        along_x = number == problem.rank - 1
        extent = instance.patch[3 - problem.rank + number]
        simdgroups = instance.simdgroups if along_x else 1
        axes.append(axis_work(axis, transposed, extent, simdgroups, instance.chunk, along_x))
    return Work(problem, instance, tuple(axes))


@dataclass(frozen=True)
class AdditionalWork:
    """A launch of na_bwd_dkv for additional keys: each patch of 8 of them visits every query of every head.

    parts: shares of the outermost axis, each with its own threadgroups.
    """

    problem: Problem
    instance: Instance
    parts: int

    @property
    def cuts(self) -> list[int]:
        """Queries of the outermost axis, part by part."""
        n = self.problem.query_shape[0]
        return [n * (part + 1) // self.parts - n * part // self.parts for part in range(self.parts)]

    @property
    def shares(self) -> list[int]:
        """Lengths along x of the boxes that one patch visits, part by part in rank 1."""
        return [self.problem.query_shape[-1]] if self.problem.rank > 1 else self.cuts

    @property
    def chunks(self) -> int:
        """Chunks that the launch stages: each threadgroup those of its part, for every head."""
        if not self.instance.stage:
            return 0
        shape, chunk = self.problem.query_shape, self.instance.chunk
        rows = [n * math.prod(shape[1:-1]) for n in self.cuts] if len(shape) > 1 else [1] * self.parts
        lengths = [shape[-1]] * self.parts if len(shape) > 1 else self.cuts
        own = sum(chunks(n, x, chunk) for n, x in zip(rows, lengths, strict=True))
        return own * self.tiles * self.problem.batch * self.problem.heads

    @property
    def patches(self) -> int:
        return -(-self.problem.additional // 8)

    @property
    def tiles(self) -> int:
        return -(-self.patches // self.instance.simdgroups)

    @property
    def bricks(self) -> tuple[int, int]:
        """Executed bricks and full ones."""
        rows = math.prod(self.problem.query_shape[:-1]) * self.problem.batch * self.problem.heads * self.patches
        return rows * sum(-(-n // 8) for n in self.shares), rows * sum(n // 8 for n in self.shares)

    def read(self, products: int) -> Array:
        """``[tokens..]``: reads of each query of one head, that ``products`` products of a brick take part in."""
        if self.instance.stage:
            along_x = [pieces(n, self.instance.chunk) * self.tiles for n in self.shares]
        else:
            along_x = [in_bricks(n) * self.patches * products for n in self.shares]
        return np.broadcast_to(np.concatenate(along_x), self.problem.query_shape)


def bricks_by_force(problem: Problem, patch: tuple[int, ...], heads: int, transposed: bool) -> tuple[int, int]:
    """Bricks, and full ones, of one batch item and key/value head, from the mask of all pairs of tokens.

    A brick is 8 columns in a row along x, from the first that its patch sees; it counts if any of its
    pairs is seen, and is full if all are.
    """
    seen = [seen_by(axis, transposed) for axis in problem.axes]
    sizes, extents = [len(own) for own in seen], patch[3 - problem.rank :]
    executed = full = 0
    for group in itertools.product(*(groups(axis, transposed) for axis in problem.axes)):
        own = [s[at] for s, at in zip(seen, group, strict=True)]
        if any(not s.size for s in own):
            continue
        pairs = reduce(_pairs, own)
        rows, columns = ([s.shape[side] for s in own] for side in (0, 1))
        pairs = pairs.reshape(*rows, *columns)
        for corner in itertools.product(*(range(0, n, e) for n, e in zip(rows, extents, strict=True))):
            part = pairs[tuple(slice(c, c + e) for c, e in zip(corner, extents, strict=True))]
            part = part.reshape(-1, math.prod(columns[:-1]), columns[-1])
            if not part.any():
                continue  # keys that no query at hand sees
            first = int(np.flatnonzero(part.any((0, 1)))[0])
            for line in range(part.shape[1]):
                for x in range(first, columns[-1], 8):
                    brick = part[:, line, x : x + 8]
                    executed += bool(brick.any())
                    full += brick.shape[1] == 8 and bool(brick.all())
    assert all(sizes)
    repeat = problem.group_heads // heads
    return executed * repeat, full * repeat


def _pairs(a: Array, b: Array) -> Array:
    """The ``[rows, columns]`` of two axes together, flattened to one axis each."""
    return (a[:, None, :, None] & b[None, :, None, :]).reshape(a.shape[0] * b.shape[0], -1)


def dispatched_rows(problem: Problem, instance: Instance, tiles: tuple[int, ...]) -> Array:
    """``[*rows]``: how often a grid of ``tiles`` stores each row, by the arithmetic of coord.h on whole arrays."""
    transposed, counts = instance.record.transposed, []
    for number, (axis, count) in enumerate(zip(problem.axes, tiles, strict=True)):
        start, length = at_hand(axis, transposed)[0]
        extent = instance.patch[3 - problem.rank + number]
        extent *= instance.simdgroups if number == problem.rank - 1 else 1
        found = np.zeros(length, int)
        for group in range(axis.dilation):
            first, last = positions(start, length, group, axis.dilation)
            p = first + np.arange(count * extent)
            np.add.at(found, p[p < last] * axis.dilation + group - start, 1)
        counts.append(found)
    return reduce(np.multiply.outer, counts)
