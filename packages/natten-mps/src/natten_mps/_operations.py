"""torch's plain operations, as :class:`natten_metal.api.operations.Operations` describes them."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_flat

from ._tensors import TorchTables

where, exp, log, isfinite = torch.where, torch.exp, torch.log, torch.isfinite
stack, concatenate, einsum, moveaxis = torch.stack, torch.cat, torch.einsum, torch.movedim
float32, float64, int32, int64 = torch.float32, torch.float64, torch.int32, torch.int64
either, amax, astype, contiguous = torch.logical_or, torch.amax, Tensor.to, Tensor.contiguous
detach, unflatten, flip = Tensor.detach, torch.unflatten, Tensor.flip
softmax, repeat_heads = partial(torch.softmax, dim=-1), partial(torch.repeat_interleave, dim=1)


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


def parts(tensor: Tensor) -> Sequence[Tensor]:
    return tensor.unbind(-3)


def pad(tensor: Tensor, widths: list[tuple[int, int]], value: Any) -> Tensor:
    return pad_flat(tensor, [count for width in reversed(widths) for count in width], value=value)


def add_at(tensor: Tensor, where: tuple[slice, ...], part: Tensor) -> Tensor:
    tensor[where] += part
    return tensor


def take(tensor: Tensor, index: Tensor, axis: int) -> Tensor:
    if index.dim() == 1:
        return tensor.index_select(axis, index)
    return tensor.index_select(axis, index.flatten()).unflatten(axis, index.shape)


def gather(tensor: Tensor, index: Tensor) -> Tensor:
    return tensor.gather(-1, index.expand(*tensor.shape[:-1], -1))


def scatter(tensor: Tensor, index: Tensor, entries: int) -> Tensor:
    return pad_flat(tensor[..., :0], (0, entries)).scatter_add(-1, index.expand_as(tensor), tensor)
