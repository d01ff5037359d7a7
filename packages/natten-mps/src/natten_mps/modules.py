"""Neighborhood attention as ``torch.nn`` modules: projections around the functional op.

State dict: ``qkv.{weight,bias}`` and ``proj.{weight,bias}``; with fewer key/value heads ``q_proj``, ``kv_proj`` and
``proj``; with a relative positional bias ``rpb``. These are also the keys of upstream NATTEN and of natten-mlx, so that
their weights load.
"""

from typing import Any

import torch
from torch import Tensor, nn

from . import _framework
from ._metal.api import modules as bodies
from ._signatures import Bools, Ints


class _NeighborhoodAttention(bodies.NeighborhoodAttention, nn.Module):
    """The module of any rank; its subclasses name theirs."""

    framework, layers = _framework, nn

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_size: Ints,
        stride: Ints = 1,
        dilation: Ints = 1,
        is_causal: Bools = False,
        num_kv_heads: int | None = None,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        rel_pos_bias: bool = False,
        *,
        backend: str | None = None,
    ) -> None:
        window = (kernel_size, stride, dilation, is_causal)
        self._build(
            embed_dim, num_heads, num_kv_heads, window, qk_scale, qkv_bias, attn_drop, proj_drop, rel_pos_bias, backend
        )

    def _drops(self, dropout: nn.Module) -> bool:
        return not isinstance(dropout, nn.Identity) and getattr(dropout, "p", 1.0) > 0

    def _table(self, shape: tuple[int, ...]) -> nn.Parameter:
        return nn.Parameter(nn.init.trunc_normal_(torch.zeros(shape), std=0.02))

    extra_repr = bodies.NeighborhoodAttention._described


class NeighborhoodAttention1D(_NeighborhoodAttention):
    """Neighborhood attention over sequences ``x [B, L, embed_dim]``.

    Args:
        embed_dim: width C of the tokens, a multiple of num_heads.
        kernel_size, stride, dilation, is_causal: as :func:`natten_mps.neighborhood_attention`.
        num_kv_heads: key/value heads, a divisor of num_heads (grouped queries); None is num_heads.
        qkv_bias: whether the input projections have a bias.
        qk_scale: factor on q.k; None is ``head_dim ** -0.5``.
        attn_drop: probability of dropping an attention weight, in training only.
        proj_drop: dropout after the output projection.
        rel_pos_bias: learn a relative positional bias ``rpb [num_heads, 2 * kernel_size - 1 per axis]``.
        backend: the path of every call, as the functional ops take it; None follows ``use_backend``.

    Heads may be pruned, or shared out among machines, after construction: replace the projections (and ``rpb``) by
    those of the heads that stay, and set ``num_heads`` (and ``num_kv_heads``) to their number. ``head_dim`` stays.
    ``attn_drop`` and ``proj_drop`` may be replaced by other layers.

    Raises ValueError or TypeError with the module's name for dims or windows that are illegal.
    """

    rank = 1
    _sizes_name = "seq_lens"

    def forward(self, x: Tensor, seq_lens: Any = None, backend: str | None = None) -> Tensor:
        """``[B, L, C]`` -> ``[B, L, C]``; seq_lens ``[B]`` ints make x a padded batch; backend: of this call."""
        return self._attend_module(x, seq_lens, backend)


class NeighborhoodAttention2D(_NeighborhoodAttention):
    """Neighborhood attention over images ``x [B, X, Y, embed_dim]``; see :class:`NeighborhoodAttention1D`."""

    rank = 2

    def forward(self, x: Tensor, spatial_sizes: Any = None, backend: str | None = None) -> Tensor:
        """``[B, X, Y, C]`` -> the same; spatial_sizes ``[B, 2]`` ints make x a padded batch."""
        return self._attend_module(x, spatial_sizes, backend)


class NeighborhoodAttention3D(_NeighborhoodAttention):
    """Neighborhood attention over volumes ``x [B, X, Y, Z, embed_dim]``; see :class:`NeighborhoodAttention1D`."""

    rank = 3

    def forward(self, x: Tensor, spatial_sizes: Any = None, backend: str | None = None) -> Tensor:
        """``[B, X, Y, Z, C]`` -> the same; spatial_sizes ``[B, 3]`` ints make x a padded batch."""
        return self._attend_module(x, spatial_sizes, backend)
