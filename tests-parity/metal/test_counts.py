"""Counts of a launch against the definition: the simulated walks of work.py, which follow every tile."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest

from natten_mps._metal.metal.counts import Counts, chain_of, counts_of, walked
from natten_mps._metal.metal.dealing import Pattern, bricks_in_order, busiest, dealt
from natten_mps._metal.metal.op_launches import backward, forward
from natten_mps._metal.metal.source import Instance
from natten_mps._metal.metal.tiles import patches
from natten_mps._metal.plan.costs import chips, family, launch_times, predict, predicted, table
from natten_mps._metal.plan.device import Device
from natten_mps._metal.plan.limits import metal_limit
from natten_mps._metal.plan.plan import plan
from natten_mps._metal.problem.problem import Problem

from .test_tiles import random_problem, small_problem
from .work import AdditionalWork, Array, groups, patch_steps, seen_by, span, work_of
from .work_table import NAMED


def chain_along_x(tile: Array, instance: Instance) -> int:
    """Bricks that follow one another in one row of a tile's ``[rows, columns]``: patch by patch, piece by piece."""
    i, (low, high) = instance, span(tile)
    whole = not i.stage or high - low <= i.chunk + 1
    starts = [0, high] if whole else [*range(low, high, i.chunk), high]
    chain = 0
    for begin, end in itertools.pairwise(starts):
        own = []
        for first in range(0, len(tile), i.patch[-1]):
            columns = range(*span(tile[first : first + i.patch[-1]]), 8)
            own.append(sum(begin <= start < end for start in columns))
        chain += max(own)
    return chain


def chains(one: Problem, instance: Instance) -> tuple[int, int]:
    """Bricks that follow one another, of all threadgroups and of the one with the most, from the masks of each axis."""
    i, transposed = instance, instance.record.transposed
    total = most = 1
    for number, axis in enumerate(one.axes):
        along_x = number == one.rank - 1
        extent = i.patch[3 - one.rank + number] * (i.simdgroups if along_x and not i.flat else 1)
        seen, lengths = seen_by(axis, transposed), []
        for rows, columns in groups(axis, transposed):
            for first in range(0, len(seen[rows]), extent):
                tile = seen[rows, columns][first : first + extent]
                lengths.append(chain_along_x(tile, i) if along_x and not i.flat else patch_steps(tile, False)[0])
        total, most = total * sum(lengths), most * max(lengths)
    more = -(-one.additional // 8) if i.additional else 0
    return total, (-(-most // 8) if i.flat else most) + more


def assert_dealt_exactly(one: Problem, i: Instance, counts: Counts, threadgroups: int) -> None:
    """The threadgroups in order have all bricks of the window between them."""
    pattern = counts.walk.pattern
    in_order = list(bricks_in_order(pattern)) * pattern.times
    more = -(-one.additional // 8) * counts.patches if i.additional else 0
    assert sum(in_order) * (one.group_heads if i.record.transposed else 1) + more == counts.bricks
    assert len(in_order) == threadgroups
    if sum(in_order):  # with a core for each, the busiest has the longest
        average = sum(in_order) / threadgroups
        assert busiest(counts.walk, threadgroups, 1) == pytest.approx(max(in_order) / average)


def test_walks_are_counted_exactly() -> None:
    """Every patch of small problems, any number of simdgroups, chunks short and long, staged, direct and flat."""
    rng, chunks, idle, run_on = random.Random(5), 0, 0, 0
    for _ in range(150):
        one = replace(small_problem(rng), batch=rng.randint(1, 2), additional=rng.choice((0, 0, 5, 50)))
        for transposed, heads in itertools.product((False, True), (1, 2, 4, 8)):
            if one.heads % heads or (transposed and heads > 1):
                continue
            for patch in patches(one.rank, heads):
                template = "na_bwd_dkv" if transposed else "na_fwd"
                found = Instance(template, "float32", one.rank, 16, 16, patch, heads, rng.randint(1, 5))
                found = replace(
                    found, chunk=rng.choice((8, 16, 32)), additional=bool(one.additional and not transposed)
                )
                ways = ((False, False), (True, False), *([(False, True)] if one.rank > 1 else []))
                for instance in (replace(found, stage=stage, flat=flat) for stage, flat in ways):
                    counts, work = walked(one, instance), work_of(one, instance)
                    assert (counts.bricks, counts.full, counts.patches) == (*work.bricks, work.patches)
                    assert counts.chunks == work.chunks and counts.barriers == 2 * work.chunks
                    tiles = math.prod(len(axis.boxes) for axis in work.axes)
                    groups = one.batch * (1 if transposed else one.heads // heads)
                    assert counts.threadgroups >= tiles * groups
                    assert_dealt_exactly(one, instance, counts, tiles * groups)
                    assert counts.boxes == tiles * one.batch * one.heads // heads
                    assert counts.idle == tiles * groups * instance.simdgroups - counts.patches
                    copied = work.read(1).sum() + (work.read_additional(1).sum() if instance.additional else 0)
                    # A key walk reads each query head by itself; else all heads read those of their one key/value head.
                    copied *= one.batch * (one.heads if transposed else 1)
                    assert counts.staged.columns == (copied if instance.stage else 0)
                    (total, longest), times = chains(one, instance), one.group_heads if transposed else 1
                    assert counts.longest_bricks == longest * times
                    more = -(-one.additional // 8) * tiles * groups if instance.additional else 0
                    if instance.flat:
                        assert counts.bricks <= counts.chained_bricks * instance.simdgroups
                    else:
                        assert counts.chained_bricks == total * times * groups + more
                    assert (
                        counts.longest_staged.chunks
                        <= counts.chunks
                        <= counts.longest_staged.chunks * counts.threadgroups
                    )
                    chunks, idle = chunks + counts.chunks, idle + counts.idle
                    run_on += instance.flat and counts.masked == counts.bricks
    assert chunks > 10_000 and idle > 1000 and run_on > 500


def test_launches_are_counted_exactly() -> None:
    """The planner's own launches of every template, those of additional keys among them."""
    rng, seen = random.Random(6), set()
    for _ in range(150):
        one = random_problem(rng)
        if metal_limit(one) or math.prod(one.query_shape) > 2000:
            continue
        for launch in (*forward(one), *backward(one, True)):
            i, counts = launch.instance, counts_of(one, launch)
            assert (counts.bricks, counts.full, counts.products) == (launch.bricks, launch.full, launch.products)
            assert counts.threadgroups == math.prod(launch.grid)
            assert counts.tensor_bytes >= sum(math.prod(o.shape) for o in launch.outputs) > 0
            if i.of_additional:
                work = AdditionalWork(one, i, launch.outputs[0].shape[0])
                assert counts.chunks == work.chunks
                assert counts.staged.columns == (work.read(1).sum() * one.batch * one.heads if i.stage else 0)
            elif i.record.walks:
                assert counts.chunks == work_of(one, i).chunks
            seen.add((i.template, i.of_additional))
    assert seen >= {("na_fwd", False), ("na_bwd_dq", False), ("na_bwd_dkv", True), ("na_rpb", False), ("na_sum", False)}


def test_predictions_follow_the_chip() -> None:
    """Every chip of the table has a prediction for every named problem; more cores of a family take less time."""
    for name, one in NAMED.items():
        planned = plan(one, Device("gpu", "some gpu", float64=False), "metal", ("metal",))
        for program in (planned.forward, planned.backward):
            times = {chip: predict(program, predicted(chip)) for chip in chips()}
            assert all(time > 0 for time in times.values()), name
            assert times["Apple M4 Max"] < times["Apple M4"] and times["Apple M2 Ultra"] < times["Apple M2"]
            assert times["Apple M1"] == pytest.approx(sum(launch_times(program, predicted("Apple M1"))))
            assert predict(program, predicted("no such chip")) == times[table()["default"]]


def test_no_model_of_the_frameworks_own_operations() -> None:
    one = NAMED["16x16x16 K3"]
    planned = plan(one, Device("cpu", "cpu"), "pure", ("pure",))
    assert predict(planned.forward, predicted("Apple M1")) is None


def test_predicted_unit_costs_are_marked() -> None:
    assert not predicted("Apple M3").measured and predicted("Apple M3").device == "Apple M3"
    assert predicted("Apple M4 Max", 20).prices["mask"] == 2 * predicted("Apple M4 Max").prices["mask"]
    assert family("Apple10")["product_single_direct"] == 5.0 and family("Apple8") == family("Apple7")


def test_the_chain_of_any_row_and_pieces() -> None:
    """Whatever patches read of a row, also nothing, and whether its pieces are whole bricks or not."""
    rng = random.Random(17)
    for _ in range(5000):
        low, length = rng.randrange(50), rng.randrange(1, 300)
        bounds = [sorted(rng.randrange(low, low + length + 1) for _ in range(2)) for _ in range(rng.randrange(1, 5))]
        pieces = range(low, low + length, rng.choice((1, 5, 8, 16, 48, 104, length)))
        chain = 0
        for start in pieces:
            piece = range(start, start + pieces.step)
            chain += max(sum(column in piece for column in range(first, end, 8)) for first, end in bounds)
        assert chain_of([(first, end) for first, end in bounds], pieces) == chain, (bounds, pieces)


# --- dealing to cores --------------------------------------------------------------------------------------


def line(*tiles: int) -> tuple[tuple[int, ...], ...]:
    """Tiles of one patch each."""
    return tuple((columns,) for columns in tiles)


def test_the_order_of_threadgroups() -> None:
    """Line by line along x; in the key walk both ends of every line first: ``ends_first`` in kernels/coord.h."""
    axes = (line(1, 2),), (line(8, 24, 40, 16),)
    own = Pattern(axes, side=8, run_on=False, ends_first=False, times=1)
    assert list(bricks_in_order(own)) == [1, 3, 5, 2, 2, 6, 10, 4]
    assert list(bricks_in_order(own._replace(ends_first=True))) == [1, 2, 2, 4, 3, 5, 6, 10]
    short = own._replace(axes=((line(1, 2),), (line(9, 7),)), ends_first=True)
    assert list(bricks_in_order(short)) == [2, 1, 4, 2]
    # Rows of 9 and 7 columns run on: 18 columns are three bricks, 14 are two.
    assert list(bricks_in_order(short._replace(run_on=True))) == [2, 1, 3, 2]
    groups = Pattern(((line(1), line(2)), (line(8), line(8, 8))), 8, False, False, 3)
    assert list(bricks_in_order(groups)) == [1, 1, 1, 2, 2, 2]


def test_the_busiest_core() -> None:
    assert dealt([1, 1, 1, 1], cores=2, held=2) == dealt([1, 1, 1], cores=2, held=2) == 2
    assert dealt([3], cores=4, held=1) == 3
    # Both long ones go to the first core if each core takes two at once, and to different ones if the second is taken
    # when a core is free.
    assert dealt([4, 1, 4, 1], cores=2, held=2) == 8
    assert dealt([4, 1, 4, 1], cores=2, held=1) == 5
    assert dealt([5, 1, 1, 1, 1, 1], cores=2, held=1) == 5
