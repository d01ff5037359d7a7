"""torch's plain operations, as :class:`natten_metal.api.operations.Operations` describes them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ._tensors import TorchTables
from ._tensors import compute_dtype as compute_dtype

where, exp, log, isfinite = torch.where, torch.exp, torch.log, torch.isfinite
stack, concatenate, einsum, moveaxis = torch.stack, torch.cat, torch.einsum, torch.movedim
int32, int64 = torch.int32, torch.int64
either, astype, contiguous = torch.logical_or, Tensor.to, Tensor.contiguous


def zeros(shape: tuple[int, ...], dtype: torch.dtype, like: Tensor) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=like.device)


def integers(values: Sequence[int], dtype: torch.dtype, like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=like.device)


def device(tensor: Tensor) -> torch.device:
    return tensor.device


def tables(device: torch.device) -> TorchTables:
    return TorchTables(device)


def fixed_shape(tensor: Tensor) -> Tensor:
    """Torch's tracers know sizes."""
    return tensor


def spoil(result: Tensor, marks: Tensor) -> Tensor:
    return result.masked_fill(marks, math.nan)


def largest(tensor: Tensor, axis: int, keepdims: bool) -> Tensor:
    return tensor.detach().amax(axis, keepdim=keepdims)


def softmax(tensor: Tensor) -> Tensor:
    return torch.softmax(tensor, -1)


def unflatten(tensor: Tensor, axis: int, shape: tuple[int, ...]) -> Tensor:
    return tensor.unflatten(axis, shape)


def parts(tensor: Tensor) -> Sequence[Tensor]:
    return tensor.unbind(-3)


def repeat_heads(tensor: Tensor, count: int) -> Tensor:
    return tensor.repeat_interleave(count, 1)


def pad_end(tensor: Tensor, counts: Sequence[int]) -> Tensor:
    at_ends = [size for count in reversed(counts) for size in (0, count)]
    inner = [0, 0] * (tensor.dim() - 1 - len(counts))
    return pad(tensor, [*inner, *at_ends])


def pad_first(tensor: Tensor, before: int, after: int) -> Tensor:
    return pad(tensor, [*[0, 0] * (tensor.dim() - 1), before, after])


def pad_last(tensor: Tensor, count: int, value: Any) -> Tensor:
    return pad(tensor, [0, count], value=value)


def write(buffer: Tensor, start: int, tensor: Tensor) -> Tensor:
    buffer[:, start : start + tensor.shape[1]] = tensor.detach()
    return buffer


def add_at(tensor: Tensor, where: tuple[slice, ...], part: Tensor) -> Tensor:
    tensor[where] += part
    return tensor


def flip(tensor: Tensor, axis: int) -> Tensor:
    return tensor.flip(axis)


def take(tensor: Tensor, index: Tensor, axis: int) -> Tensor:
    if index.dim() == 1:
        return tensor.index_select(axis, index)
    return tensor.index_select(axis, index.flatten()).unflatten(axis, index.shape)


def rows(tensor: Tensor, index: Tensor) -> Tensor:
    return tensor.index_select(0, index.view(-1))


def take_differentiably(tensor: Tensor, index: Tensor) -> Tensor:
    return tensor[:, index]


def gather(tensor: Tensor, index: Tensor) -> Tensor:
    return tensor.gather(-1, index.expand(*tensor.shape[:-1], -1))


def scatter(tensor: Tensor, index: Tensor, entries: int) -> Tensor:
    return pad(tensor[..., :0], (0, entries)).scatter_add(-1, index.expand_as(tensor), tensor)
