"""The work of a launch on matrix units, counted from the definition: bricks of 16 columns, and what is read of each.

Patch by patch and column by column, from the masks of the axes; it shares nothing with the planner's count.
"""

from __future__ import annotations

import math

import numpy as np

from natten_mps._metal.metal.source import Instance
from natten_mps._metal.problem.problem import Problem

from .launch import Run, computes
from .patch_boxes import Array, Box, boxes

SIDE = 16
# Columns: argument -> how many products of a brick read it, and how often it is gathered.
READS = {
    "na_fwd": {"k": (1, 1), "v": (1, 1)},
    "na_bwd_dq": {"k": (2, 1), "v": (1, 1)},
    "na_bwd_dkv": {"q": (2, 2), "out_grad": (2, 1)},
}
ROWS = {"na_fwd": ("q",), "na_bwd_dq": ("q", "out_grad"), "na_bwd_dkv": ("k", "v")}


def seen_by_all(box: tuple[Box, ...]) -> Array:
    """``[*lengths]``: the columns of a box that every row of the patch sees. Rows are products of those of the axes."""
    whole = np.ones((), bool)
    for axis in box:
        whole = np.multiply.outer(whole, axis.seen.all(0))
    return whole


def in_rows(box: tuple[Box, ...]) -> tuple[int, int, Array]:
    """Bricks of a box in rows of their own, full ones, and how often each token along x is read in a row."""
    *_, x = box
    whole, length = seen_by_all(box), len(x.columns)
    lines, reads, full = math.prod(whole.shape[:-1]), np.zeros(int(x.held[-1]) + 1 if x.held.size else 1, int), 0
    for due in range(0, length, SIDE):
        first = max(min(x.first + due, x.first + length - SIDE), 0)
        reads[x.held[first : first + SIDE]] += 1
        part = whole[..., due : due + SIDE]
        full += int(part.all(-1).sum()) if part.shape[-1] == SIDE else 0
    return lines * -(-length // SIDE), full, reads


def running_on(box: tuple[Box, ...]) -> tuple[int, int]:
    """Bricks of a box that run on from row to row, and full ones."""
    flat = seen_by_all(box).reshape(-1)
    bricks = [flat[first : first + SIDE] for first in range(0, len(flat), SIDE)]
    return len(bricks), sum(len(brick) == SIDE and bool(brick.all()) for brick in bricks)


def mpp_bricks(problem: Problem, instance: Instance) -> tuple[int, int]:
    """Bricks of a launch and full ones, those of additional keys included."""
    flat, executed, full, patches = instance.flat and problem.rank > 1, 0, 0, 0
    for box in boxes(problem, instance):
        found = running_on(box) if flat else in_rows(box)[:2]
        executed, full, patches = executed + found[0], full + found[1], patches + 1
    if instance.additional:
        executed += patches * -(-problem.additional // SIDE)
        full += patches * (problem.additional // SIDE)
    times = problem.batch * problem.kv_heads * (problem.group_heads // instance.heads)
    return executed * times, full * times


def mpp_reads(problem: Problem, instance: Instance) -> Array:
    """``[tokens..]``: how often one product, or one gathering, reads each column of one key/value head."""
    shape = problem.query_shape if instance.record.transposed else problem.key_shape
    counts = np.zeros(shape, int)
    for box in boxes(problem, instance):
        if instance.flat:
            counts[np.ix_(*(axis.columns for axis in box))] += 1
            continue
        along_x = in_rows(box)[2]
        tokens = np.flatnonzero(along_x)
        counts[np.ix_(*(axis.columns for axis in box[:-1]), tokens)] += along_x[tokens]
    return counts * (1 if instance.record.transposed else problem.group_heads // instance.heads)


def additional_reads(problem: Problem, instance: Instance) -> Array:
    """``[S]``: the same of additional keys, which every patch sees."""
    patches = sum(1 for _ in boxes(problem, instance)) * (problem.group_heads // instance.heads)
    counts = np.zeros(problem.additional, int)
    for due in range(0, problem.additional, SIDE):
        first = due if instance.flat else min(due, problem.additional - SIDE)
        counts[first : first + SIDE] += patches
    return counts


def check_mpp_work(problem: Problem, done: Run) -> None:
    """Assert that bricks, products and reads are those of the definition, and that no threadgroup barrier is met."""
    instance, template = done.launch.instance, computes(done.launch.instance)
    bricks = mpp_bricks(problem, instance)
    assert done.bricks == bricks, f"{instance.name}, {problem}: {done.bricks}, not {bricks}"
    products = bricks[0] * instance.record.matmuls
    found = done.report.tensor_products
    assert found == products, f"{instance.name}: {found}, not {products} products"
    assert done.report.barriers == done.report.multiply_accumulates == 0
    for argument in ROWS[template]:
        own, _ = done.reads(argument)
        assert (own == 1).all(), f"{instance.name}: rows of {argument} are not read once"
    for argument, each in READS[template].items():
        times = each[1 if instance.flat else 0]
        _assert_read(done, argument, mpp_reads(problem, instance) * times)
        if instance.additional:
            _assert_read(done, f"additional_{argument}", additional_reads(problem, instance) * times)


def _assert_read(done: Run, argument: str, tokens: Array) -> None:
    own, _ = done.reads(argument)
    wanted = np.broadcast_to(tokens[None, ..., None, None], own.shape)
    assert np.array_equal(own, wanted), f"{done.launch.instance.name} reads {argument} otherwise than planned"
