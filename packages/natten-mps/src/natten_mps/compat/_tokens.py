"""Upstream's token permutation: the order of tokens in which its Hopper and Blackwell kernels see tiles.

Each axis is padded to a multiple of tile * dilation and split as (rest r, tile t, dilation group g), position
``(r * tile + t) * dilation + g``. A permuted tensor has the groups in its batch (0.21.5 and later) or in its heads
(before), and the tokens of one tile side by side. ``flip_tiled_dims``: the last axis varies slowest, as CuTe's layouts
have it.
"""

import math
from typing import Any

from torch import Tensor, nn

from .._metal.compat.checks import ceil_div_tuple, mul_tuple, sub_tuple
from .._metal.compat.tensors import named
from .._metal.problem.problem import RANKS

Ints = tuple[int, ...]


def _tiling(face: str, rank: int, tile_shape: Any, dilation: Any) -> tuple[Ints, Ints]:
    """tile_shape and dilation (None means 1) of ``rank`` axes each; ValueError otherwise."""
    if rank not in RANKS:
        raise ValueError(f"{face}: tensor must be [B, *shape, H, D] with 1, 2 or 3 axes; got {rank}")
    tile, groups = tuple(tile_shape), tuple(dilation) if dilation is not None else (1,) * rank
    for name, sizes in (("tile_shape", tile), ("dilation", groups)):
        if len(sizes) != rank or min(sizes) < 1:
            raise ValueError(f"{face}: {name} must be {rank} ints >= 1; got {sizes}")
    return tile, groups


def _orders(rank: int, flip: bool, groups_first: bool) -> list[int]:
    """The positions of the axes (rest, tile, group) of each axis, numbered from 0, in a permuted tensor."""
    axes = range(rank)[::-1] if flip else range(rank)
    rest, tile, group = ([3 * axis + part for axis in axes] for part in range(3))
    return [*group, *rest, *tile] if groups_first else [*rest, *tile, *group]


def _split(sizes: Ints, tile: Ints, groups: Ints) -> list[int]:
    """``(rest, tile, group)`` of each padded axis."""
    return [part for n, t, d in zip(sizes, tile, groups, strict=True) for part in (n // (t * d), t, d)]


def maybe_pad(tensor: Tensor, tile_shape: Any, dilation: Any = None) -> tuple[Tensor, Ints]:
    """``[B, *shape, H, D]`` with zeros at the end of each axis up to a multiple of tile * dilation, and how many."""
    sizes = tuple(tensor.shape[1:-2])
    tile, groups = _tiling("maybe_pad", len(sizes), tile_shape, dilation)
    step = mul_tuple(tile, groups)
    missing = sub_tuple(mul_tuple(ceil_div_tuple(sizes, step), step), sizes)
    behind = [each for count in reversed(missing) for each in (0, count)]
    return nn.functional.pad(tensor, (0, 0, 0, 0, *behind)) if any(missing) else tensor, missing


def maybe_unpad(tensor: Tensor, padding: Any) -> Tensor:
    """``[B, *shape, H, D]`` without its last tokens on each axis."""
    kept = sub_tuple(tuple(tensor.shape[1:-2]), tuple(padding))
    return tensor[(slice(None), *(slice(count) for count in kept))].contiguous()


def _permuted(face: str, tensor: Tensor, tile: Ints, groups: Ints, flip: bool, groups_first: bool) -> Tensor:
    """The tokens of a padded tensor in permuted order, with separate axes: ``[B, 3 * rank axes, H, D]``."""
    sizes = tuple(tensor.shape[1:-2])
    if any(n % (t * d) for n, t, d in zip(sizes, tile, groups, strict=True)):
        raise ValueError(f"{face}: shape must be a multiple of tile_shape * dilation; got {sizes}, {tile}, {groups}")
    apart = tensor.reshape(tensor.shape[0], *_split(sizes, tile, groups), *tensor.shape[-2:])
    order = _orders(len(sizes), flip, groups_first)
    return apart.permute(0, *(1 + axis for axis in order), apart.dim() - 2, apart.dim() - 1)


def _restored(tensor: Tensor, sizes: Ints, tile: Ints, groups: Ints, flip: bool, groups_first: bool) -> Tensor:
    """The inverse of :func:`_permuted`; ``tensor [B, 3 * rank axes, H, D]`` in any grouping of its axes."""
    split, order = _split(sizes, tile, groups), _orders(len(sizes), flip, groups_first)
    apart = tensor.reshape(-1, *(split[axis] for axis in order), *tensor.shape[-2:])
    back = [1 + order.index(axis) for axis in range(len(order))]
    whole = apart.permute(0, *back, apart.dim() - 2, apart.dim() - 1)
    return whole.reshape(apart.shape[0], *sizes, *tensor.shape[-2:])


# --- 0.20 to 0.21.1: groups in the heads -----------------------------------------------------------


def token_permute(
    tensor: Tensor, tile_shape: Any, dilation: Any = None, flip_tiled_dims: bool = True
) -> tuple[Tensor, Ints, Ints]:
    """Padded ``[B, *shape, H, D]`` -> ``[B, tokens, groups * H, D]``, each axis' length in a group, and tiles."""
    sizes = tuple(tensor.shape[1:-2])
    tile, groups = _tiling("token_permute", len(sizes), tile_shape, dilation)
    moved = _permuted("token_permute", tensor, tile, groups, flip_tiled_dims, groups_first=False)
    heads, dim = tensor.shape[-2:]
    own = ceil_div_tuple(sizes, groups)
    flat = moved.reshape(tensor.shape[0], math.prod(own), math.prod(groups) * heads, dim)
    return flat.contiguous(), own, ceil_div_tuple(own, tile)


def token_unpermute(
    tensor: Tensor,
    tile_shape: Any,
    orig_shape: Any,
    rest_shape: Any,
    dilation: Any = None,
    flip_tiled_dims: bool = True,
) -> Tensor:
    """The inverse of :func:`token_permute`: ``[B, tokens, groups * H, D]`` -> padded ``[B, *shape, H, D]``."""
    tile, groups = _tiling("token_unpermute", len(orig_shape), tile_shape, dilation)
    number, heads = math.prod(groups), tensor.shape[-2]
    if heads % number:
        raise ValueError(f"token_unpermute: heads must be a multiple of {number} dilation groups; got {heads}")
    apart = tensor.reshape(tensor.shape[0], -1, heads // number, tensor.shape[-1])
    sizes = mul_tuple(tuple(orig_shape), groups)
    return _restored(apart, sizes, tile, groups, flip_tiled_dims, groups_first=False).contiguous()


# --- 0.21.5 and later: groups in the batch ---------------------------------------------------------


def token_permute_torch(tensor: Tensor, tile_shape: Any, dilation: Any, flip_tiled_dims: bool) -> Tensor:
    """``[B, *shape, H, D]`` -> ``[B * groups, tokens of a group, H, D]``, padded with zeros."""
    face = "token_permute_torch"
    tile, groups = _tiling(face, tensor.dim() - 3, tile_shape, dilation)
    padded, _ = maybe_pad(tensor, tile, groups)
    moved = _permuted(face, padded, tile, groups, flip_tiled_dims, groups_first=True)
    number = math.prod(groups)
    tokens = math.prod(padded.shape[1:-2]) // number
    return moved.reshape(tensor.shape[0] * number, tokens, *tensor.shape[-2:]).contiguous()


def token_unpermute_torch(
    tensor: Tensor, token_layout: Any, tile_shape: Any, dilation: Any, flip_tiled_dims: bool
) -> Tensor:
    """The inverse of :func:`token_permute_torch`; token_layout: the shape before padding."""
    face = "token_unpermute_torch"
    tile, groups = _tiling(face, len(token_layout), tile_shape, dilation)
    if tensor.dim() != 4:
        raise ValueError(f"{face}: tensor must be [B * groups, tokens, H, D] (4-D); got {tuple(tensor.shape)}")
    if tensor.shape[0] % math.prod(groups):
        raise ValueError(f"{face}: batch must be a multiple of {math.prod(groups)} groups; got {tensor.shape[0]}")
    step = mul_tuple(tile, groups)
    sizes = mul_tuple(ceil_div_tuple(tuple(token_layout), step), step)
    whole = _restored(tensor, sizes, tile, groups, flip_tiled_dims, groups_first=True)
    return maybe_unpad(whole, sub_tuple(sizes, tuple(token_layout)))


def token_permute_operation(
    tensor: Tensor, tile_shape: Any, dilation: Any = None, flip_tiled_dims: bool = True, use_torch: bool = True
) -> tuple[Tensor, Ints, Ints]:
    """The permuted tensor, the shape before, and each axis' padded length in a dilation group."""
    sizes = tuple(tensor.shape[1:-2])
    tile, groups = _tiling("token_permute_operation", len(sizes), tile_shape, dilation)
    padded = mul_tuple(ceil_div_tuple(sizes, mul_tuple(tile, groups)), tile)
    return token_permute_torch(tensor, tile, groups, flip_tiled_dims), sizes, padded


def token_unpermute_operation(
    tensor: Tensor,
    token_layout_shape: Any,
    tile_shape: Any,
    dilation: Any = None,
    flip_tiled_dims: bool = True,
    use_torch: bool = True,
) -> Tensor:
    """The inverse of :func:`token_permute_operation`; token_layout_shape: the shape before."""
    return token_unpermute_torch(tensor, token_layout_shape, tile_shape, dilation, flip_tiled_dims)


TOKENS = {
    "v020": named(maybe_pad, maybe_unpad, token_permute, token_unpermute),
    "v021": named(token_permute_operation, token_unpermute_operation, token_permute_torch, token_unpermute_torch),
}
