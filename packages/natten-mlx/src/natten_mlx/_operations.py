"""MLX's plain operations, as :class:`natten_metal.api.operations.Operations` describes them.

Indexing that is differentiated is by ``take_along_axis`` and ``put_along_axis``, the gathers that MLX differentiates
in forward and reverse mode.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import mlx.core as mx

from ._tensors import MlxTables
from ._tensors import exp as exp
from ._tensors import fixed_shape as fixed_shape

where, log, isfinite = mx.where, mx.log, mx.isfinite
stack, concatenate, einsum, moveaxis = mx.stack, mx.concatenate, mx.einsum, mx.moveaxis
float32, float64, int32, int64 = mx.float32, mx.float64, mx.int32, mx.int64
# Under mx.vmap, MLX 0.32 gives ``|`` of a mapped and another array a wrong shape.
either = mx.logical_or
amax, astype, detach, unflatten = mx.max, mx.array.astype, mx.stop_gradient, mx.unflatten
softmax, repeat_heads = partial(mx.softmax, axis=-1, precise=True), partial(mx.repeat, axis=1)


def zeros(shape: tuple[int, ...], dtype: mx.Dtype, like: mx.array) -> mx.array:
    return mx.zeros(shape, dtype)


def integers(values: Sequence[int], dtype: mx.Dtype, like: mx.array) -> mx.array:
    return mx.array(list(values), dtype=dtype)


def device(tensor: mx.array) -> None:
    """MLX's arrays have no device; operations have a stream."""


def tables(device: None) -> MlxTables:
    return MlxTables()


def spoil(result: mx.array, marks: mx.array) -> mx.array:
    """By a gather: MLX multiplies by the mask where it differentiates ``where``, and a NaN would pass it."""
    both = mx.stack([result, mx.full(result.shape, math.nan, result.dtype)], axis=-1)
    chosen = mx.broadcast_to(marks, result.shape).astype(mx.int64)[..., None]
    return mx.take_along_axis(both, mx.stop_gradient(chosen), axis=-1)[..., 0]


def contiguous(tensor: mx.array) -> mx.array:
    """MLX's arrays show no strides."""
    return tensor


def parts(tensor: mx.array) -> Sequence[mx.array]:
    return [tensor[..., part, :, :] for part in range(tensor.shape[-3])]


def pad(tensor: mx.array, widths: list[tuple[int, int]], value: Any) -> mx.array:
    return mx.pad(tensor, widths, constant_values=mx.array(value, tensor.dtype))


def add_at(tensor: mx.array, where: tuple[slice, ...], part: mx.array) -> mx.array:
    return tensor.at[where].add(part)


def flip(tensor: mx.array, axis: int) -> mx.array:
    return tensor[(..., slice(None, None, -1), *[slice(None)] * (-1 - axis))]


def take(tensor: mx.array, index: mx.array, axis: int) -> mx.array:
    if tensor.size == 0:  # MLX gathers nothing from arrays without elements
        return mx.zeros((*tensor.shape[:axis], *index.shape, *tensor.shape[axis + 1 :]), tensor.dtype)
    return mx.take(tensor, index, axis)


def gather(tensor: mx.array, index: mx.array) -> mx.array:
    return mx.take_along_axis(tensor, mx.broadcast_to(index, (*tensor.shape[:-1], index.shape[-1])), axis=-1)


def scatter(tensor: mx.array, index: mx.array, entries: int) -> mx.array:
    whole = mx.zeros((*tensor.shape[:-1], entries), tensor.dtype)
    return mx.put_along_axis(whole, mx.broadcast_to(index, (*tensor.shape[:-1], index.shape[-1])), tensor, axis=-1)
