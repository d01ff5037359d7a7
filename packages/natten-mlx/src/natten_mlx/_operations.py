"""MLX's plain operations, as :class:`natten_metal.api.operations.Operations` describes them.

Indexing that is differentiated is by ``take_along_axis`` and ``put_along_axis``, the gathers that MLX differentiates
in forward and reverse mode.
"""

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from ._tensors import MlxTables
from ._tensors import compute_dtype as compute_dtype
from ._tensors import exp as exp
from ._tensors import fixed_shape as fixed_shape

where, log, isfinite = mx.where, mx.log, mx.isfinite
stack, concatenate, einsum, moveaxis = mx.stack, mx.concatenate, mx.einsum, mx.moveaxis
int32, int64 = mx.int32, mx.int64
# Under mx.vmap, MLX 0.32 gives ``|`` of a mapped and another array a wrong shape.
either = mx.logical_or
astype = mx.array.astype


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


def largest(tensor: mx.array, axis: int, keepdims: bool) -> mx.array:
    return mx.stop_gradient(tensor.max(axis, keepdims=keepdims))


def softmax(tensor: mx.array) -> mx.array:
    return mx.softmax(tensor, -1, precise=True)


def contiguous(tensor: mx.array) -> mx.array:
    """MLX's arrays show no strides."""
    return tensor


def unflatten(tensor: mx.array, axis: int, shape: tuple[int, ...]) -> mx.array:
    return mx.unflatten(tensor, axis, shape)


def parts(tensor: mx.array) -> Sequence[mx.array]:
    return [tensor[..., part, :, :] for part in range(tensor.shape[-3])]


def repeat_heads(tensor: mx.array, count: int) -> mx.array:
    return mx.repeat(tensor, count, axis=1)


def pad_end(tensor: mx.array, counts: Sequence[int]) -> mx.array:
    inner = [(0, 0)] * (tensor.ndim - 1 - len(counts))
    return mx.pad(tensor, [(0, 0), *((0, count) for count in counts), *inner])


def pad_first(tensor: mx.array, before: int, after: int) -> mx.array:
    return mx.pad(tensor, [(before, after), *[(0, 0)] * (tensor.ndim - 1)])


def pad_last(tensor: mx.array, count: int, value: Any) -> mx.array:
    return mx.concatenate([tensor, mx.full((*tensor.shape[:-1], count), value, tensor.dtype)], -1)


def write(buffer: mx.array, start: int, tensor: mx.array) -> mx.array:
    buffer[:, start : start + tensor.shape[1]] = mx.stop_gradient(tensor)
    return buffer


def add_at(tensor: mx.array, where: tuple[slice, ...], part: mx.array) -> mx.array:
    return tensor.at[where].add(part)


def flip(tensor: mx.array, axis: int) -> mx.array:
    return tensor[(..., slice(None, None, -1), *[slice(None)] * (-1 - axis))]


def take(tensor: mx.array, index: mx.array, axis: int) -> mx.array:
    if tensor.size == 0:  # MLX gathers nothing from arrays without elements
        return mx.zeros((*tensor.shape[:axis], *index.shape, *tensor.shape[axis + 1 :]), tensor.dtype)
    return mx.take(tensor, index, axis)


def rows(tensor: mx.array, index: mx.array) -> mx.array:
    return mx.take(tensor, index, 0)


def take_differentiably(tensor: mx.array, index: mx.array) -> mx.array:
    flat = mx.broadcast_to(index.reshape(1, -1), (tensor.shape[0], index.size))
    return mx.take_along_axis(tensor, flat, axis=-1).reshape(tensor.shape[0], *index.shape)


def gather(tensor: mx.array, index: mx.array) -> mx.array:
    return mx.take_along_axis(tensor, mx.broadcast_to(index, (*tensor.shape[:-1], index.shape[-1])), axis=-1)


def scatter(tensor: mx.array, index: mx.array, entries: int) -> mx.array:
    whole = mx.zeros((*tensor.shape[:-1], entries), tensor.dtype)
    return mx.put_along_axis(whole, mx.broadcast_to(index, (*tensor.shape[:-1], index.shape[-1])), tensor, axis=-1)
