"""Memory layouts that models produce: views of one tensor, other orders of axes, repeated elements."""

from __future__ import annotations

import torch
from torch import Tensor

BATCH, X, Y, HEADS, DIM = 2, 6, 7, 2, 8
Triple = tuple[Tensor, Tensor, Tensor]


def fused_qkv() -> Triple:
    """One projection ``[B, X, Y, 3, H, D]`` sliced into query, key and value."""
    query, key, value = torch.randn(BATCH, X, Y, 3, HEADS, DIM).unbind(3)
    return query, key, value


def heads_first() -> Triple:
    """``[B, H, X, Y, D]``, as in ordinary attention."""
    query, key, value = torch.randn(3, BATCH, HEADS, X, Y, DIM).movedim(2, 4).unbind()
    return query, key, value


def channels_last() -> Triple:
    """A convolution's ``[B, 3 * H * D, X, Y]`` in torch.channels_last."""
    image = torch.randn(BATCH, 3 * HEADS * DIM, X, Y).to(memory_format=torch.channels_last)
    query, key, value = image.permute(0, 2, 3, 1).unflatten(-1, (3, HEADS, DIM)).unbind(3)
    return query, key, value


def expanded() -> Triple:
    """One item's keys for the whole batch, one head's values for all heads."""
    query = torch.randn(BATCH, X, Y, HEADS, DIM)
    return query, torch.randn(1, X, Y, HEADS, DIM).expand_as(query), torch.randn(BATCH, X, Y, 1, DIM).expand_as(query)


def channels_first() -> Triple:
    """A plain convolution's ``[B, 3 * H * D, X, Y]``: a token's channels are not contiguous."""
    query, key, value = torch.randn(BATCH, 3, HEADS, DIM, X, Y).permute(1, 0, 4, 5, 2, 3).unbind()
    return query, key, value


# The layouts with contiguous channels, and with the one whose channels are not.
SIDE_BY_SIDE = {make.__name__: make for make in (fused_qkv, heads_first, channels_last, expanded)}
LAYOUTS = SIDE_BY_SIDE | {channels_first.__name__: channels_first}
Where = tuple[int, tuple[int, ...]]


def where(tensor: Tensor) -> Where:
    """Where a tensor lies: its address and strides."""
    return tensor.data_ptr(), tuple(tensor.stride())
