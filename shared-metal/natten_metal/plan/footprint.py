"""How much memory a forward program needs at most, besides its inputs and outputs."""

import math
import os

from ..problem.problem import Problem
from .blocks import Blocks, Tables
from .programs import CpuCall, DenseOperations, Program, Walks

ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
# Scratch memory of one thread of the CPU kernels (`Scratch` in shared-metal/cpu/launch.h) with up to 64 rows side by
# side: for each channel, and for the pairs that it computes at once.
CPU_CHANNEL_BYTES, CPU_PAIR_BYTES = 1536, 32 << 10
# Tensors as large as the logits that the plain backends hold at once: before and after the mask, the mask, weights.
LOGITS_AT_ONCE = 5
INDEX_BYTES = 8


def working_bytes(program: Program) -> int:
    """Bytes of the intermediate tensors and scratch memory of a forward program.

    The Metal kernels have none. What the framework itself keeps is not counted.
    """
    p = program.problem
    if isinstance(program, CpuCall):
        threads = min(os.cpu_count() or 1, 256)
        channels = sum(-(-dim // 16) * 16 for dim in (p.head_dim, p.head_dim_v))
        return threads * (CPU_CHANNEL_BYTES * channels + CPU_PAIR_BYTES)
    if isinstance(program, DenseOperations):
        return _dense_bytes(p)
    if isinstance(program, Walks):
        assert program.queries is not None
        return _walk_bytes(p, program.queries)
    return 0


def _sum_bytes(problem: Problem) -> int:
    return 8 if problem.dtype == "float64" else 4


def _dense_bytes(p: Problem) -> int:
    queries, keys = math.prod(p.query_shape), math.prod(p.key_shape)
    logits = p.batch * p.heads * queries * (keys + p.additional)
    rows = p.batch * p.heads * (queries + keys + p.additional) * (p.head_dim + p.head_dim_v)
    return _sum_bytes(p) * (LOGITS_AT_ONCE * logits + 2 * rows)


def _walk_bytes(p: Problem, blocks: Blocks) -> int:
    """The walk's steps, the results in the order of the tiles, the index of each result's row, and the tables."""
    size, tiles = _sum_bytes(p), blocks.tiles_at_once * blocks.items_at_once
    # Rows before and after they are scaled, and their results twice; keys, and then values, as gathered and converted.
    rows = tiles * p.heads * blocks.tile_rows * 2 * (p.head_dim + p.head_dim_v)
    columns = tiles * p.kv_heads * (blocks.box_columns + p.additional) * 2 * max(p.head_dim, p.head_dim_v)
    pairs = tiles * blocks.tile_rows * (blocks.box_columns + p.additional)
    step = size * (LOGITS_AT_ONCE * pairs * p.heads + rows + columns) + INDEX_BYTES * pairs
    # Twice: a step leaves holes in the allocator's memory that the next step's tensors may not fit.
    steps = 2 * step
    results = p.batch * blocks.tiles * blocks.tile_rows * p.heads
    collected = results * (p.head_dim_v * ITEM_BYTES[p.dtype] + size)
    # The index of every result's row, and two intermediate results of the same size while it is computed.
    indices = 3 * INDEX_BYTES * p.batch * p.heads * math.prod(p.query_shape)
    entries = sum(min(axis.tiles * (axis.tile + axis.box), Tables.KEEP_POSITIONS) for axis in blocks.axes)
    return steps + collected + indices + 6 * INDEX_BYTES * entries
