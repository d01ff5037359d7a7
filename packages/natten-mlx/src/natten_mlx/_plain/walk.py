"""MLX's walk over tiles, as :class:`natten_metal.api.walk.Walk` describes it.

Nothing is evaluated here; each function adds to MLX's graph. MLX runs a graph in an order of its own, so what a step
gathers is made to depend on what the step before it computed: steps then run one after another, each in the memory that
the last one freed.
"""

import math
from collections.abc import Callable

import mlx.core as mx

from .. import _operations
from .._metal.api import walk
from .._metal.plan.blocks import Blocks, Chunk, Tables
from .._tensors import MlxTables, Optional, exp
from .._tensors import constant as constant

operations, add = _operations, mx.add


class Step(walk.Step):
    """A step of a graph.

    start: a zero that MLX knows only when the step before is done (None: there is none). parts: what this step computes
    for later ones, collected here.
    """

    def __init__(self, chunk: Chunk, items: range, before: "Step | None") -> None:
        super().__init__(chunk, items, before)
        self.start = None if before is None else _zero_after(before.parts)
        self.parts: list[mx.array] = []

    def keep(self, *made: mx.array) -> None:
        self.parts.extend(made)

    def when_due(self, index: mx.array) -> mx.array:
        return index if self.start is None else index + self.start


def _zero_after(parts: list[mx.array]) -> Optional:
    """The integer 0, computed from ``parts``; unlike ``mx.depends``, it has a vmap."""
    if not parts:
        return None
    firsts = mx.stack([mx.isnan(part[(0,) * part.ndim]) for part in parts])
    return firsts.sum().astype(mx.int64) * 0


def tables(blocks: Blocks, device: None) -> Tables:
    made = Tables(blocks, MlxTables())
    made.freeze(constant)
    return made


def put(buffer: Optional, shape: tuple[int, ...], dtype: mx.Dtype, step: Step, part: mx.array) -> mx.array:
    chunk, items = step.chunk, step.items
    part = part.astype(dtype).reshape(len(items), chunk.count, *shape[2:])
    step.keep(part)
    if tuple(part.shape) == shape:
        return part
    if buffer is None:
        buffer = mx.zeros(shape, dtype)
    # MLX writes in place, because nothing else reads this version of the buffer.
    buffer[items.start : items.stop, chunk.first : chunk.first + chunk.count] = part
    return buffer


def add_rows(buffer: mx.array, index: mx.array, part: mx.array) -> mx.array:
    # MLX writes in place, because nothing else reads this version of the buffer.
    buffer[index] = buffer[index] + part
    return buffer


def softmax(logits: mx.array) -> tuple[mx.array, mx.array, Callable[[mx.array], mx.array]]:
    top = logits.max(-1, keepdims=True)
    weights = exp(logits - top)
    total = weights.sum(-1, keepdims=True)
    # A query whose logits are all -inf has no weights: they are NaN.
    empty = top == -math.inf
    lse = mx.where(empty, top, top + mx.log(total))
    return weights, lse, lambda part: mx.where(empty, 0.0, part / total)


def exponentials(logits: mx.array, lse: mx.array) -> mx.array:
    return exp(logits - lse)


def gradient_of_logits(d_weights: mx.array, delta: mx.array, weights: mx.array) -> mx.array:
    return (d_weights - delta) * weights


def hide(tensor: mx.array, held: mx.array, empty: float) -> mx.array:
    return mx.where(held, tensor, empty)
