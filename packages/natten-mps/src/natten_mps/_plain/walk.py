"""torch's walk over tiles, as :class:`natten_metal.api.walk.Walk` describes it: step by step, in place."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import _operations
from .._metal.api.walk import Step as Step
from .._metal.plan.blocks import Blocks, Tables
from .._tensors import TorchTables

operations, add = _operations, Tensor.add_


def tables(blocks: Blocks, device: torch.device) -> Tables:
    return Tables(blocks, TorchTables(device))


def constant(table: Tensor) -> Tensor:
    """Torch has computed it."""
    return table


def put(buffer: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, step: Step, part: Tensor) -> Tensor:
    if buffer is None:
        buffer = torch.empty(shape, dtype=dtype, device=part.device)
    chunk, items = step.chunk, step.items
    target = buffer[items.start : items.stop, chunk.first : chunk.first + chunk.count]
    target.copy_(part.reshape(target.shape))
    return buffer


def add_rows(buffer: Tensor, index: Tensor, part: Tensor) -> Tensor:
    index = index.reshape(-1)
    buffer[index] = buffer.index_select(0, index).view(part.shape).add_(part).view(-1, part.shape[-1])
    return buffer


def softmax(logits: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    top = logits.amax(-1, keepdim=True)
    weights = torch.softmax(logits, -1)
    # The largest weight is exp(top - lse). A query whose logits are all -inf has no weights: the softmax is NaN.
    empty = top == -math.inf
    lse = torch.where(empty, top, top - weights.amax(-1, keepdim=True).log())
    return weights, lse, lambda part: part.masked_fill_(empty, 0.0)


def exponentials(logits: Tensor, lse: Tensor) -> Tensor:
    """In base 2, because torch's CPU exp takes a slow path for what underflows."""
    return logits.sub_(lse).mul_(math.log2(math.e)).exp2_()


def gradient_of_logits(d_weights: Tensor, delta: Tensor, weights: Tensor) -> Tensor:
    return d_weights.sub_(delta).mul_(weights)


def hide(tensor: Tensor, held: Tensor, empty: float) -> Tensor:
    return tensor.masked_fill_(~held, empty)
