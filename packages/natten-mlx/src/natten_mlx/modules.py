"""Neighborhood attention as ``mlx.nn`` modules: projections around the functional op.

State dict: ``qkv.{weight,bias}`` and ``proj.{weight,bias}``; with fewer key/value heads ``q_proj``, ``kv_proj`` and
``proj``; with a relative positional bias ``rpb``. Upstream NATTEN and natten-mps have the same keys, so their weights
can be loaded.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from . import _framework
from ._metal.api import modules as bodies
from ._signatures import Bools, Ints
from ._tensors import StreamOrDevice
from .key_value_cache import KeyValueCache


class _NeighborhoodAttention(bodies.NeighborhoodAttention, nn.Module):
    """The module of any rank; its subclasses name theirs."""

    layers = nn
    _framework = staticmethod(lambda: _framework)

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
        wrap: Bools = False,
        backend: str | None = None,
    ) -> None:
        window, drops = (kernel_size, stride, dilation, is_causal), (attn_drop, proj_drop)
        self._build(embed_dim, num_heads, num_kv_heads, window, qk_scale, qkv_bias, drops, rel_pos_bias, wrap, backend)

    def _drops(self, dropout: Any) -> bool:
        # MLX's layer has no public probability.
        return not isinstance(dropout, nn.Identity) and getattr(dropout, "_p_1", 0.0) != 1

    def _new_rpb(self, shape: tuple[int, ...]) -> mx.array:
        return mx.random.normal(shape, scale=0.02)

    _extra_repr = bodies.NeighborhoodAttention._described


class NeighborhoodAttention1D(_NeighborhoodAttention):
    """Neighborhood attention over sequences ``x [B, L, embed_dim]``, between linear projections.

    Args:
        embed_dim: width C of the tokens, a multiple of num_heads.
        num_heads: query heads; num_kv_heads: key/value heads, a divisor of it (grouped queries), None for as many.
        kernel_size, stride, dilation, is_causal: as in :func:`natten_mlx.na1d`, in tokens.
        qkv_bias: whether the input projections have a bias.
        qk_scale: factor on q.k; None is ``head_dim ** -0.5``.
        attn_drop, proj_drop: probabilities of dropping an attention weight, and an output, in training only.
        rel_pos_bias: learn a relative positional bias ``rpb [num_heads, 2 * kernel_size - 1]``; stride 1 only.
        wrap: per axis, whether windows pass over its end, as in :func:`natten_mlx.neighborhood_attention`.
        backend: of every call, as the functional ops take it; None follows :func:`natten_mlx.use_backend`.

    Raises:
        TypeError, ValueError, NotImplementedError: arguments that are illegal, with the module's name.

    Heads may be pruned, or distributed among machines, after construction: replace the projections (and ``rpb``) by
    those of the heads that are left, and set ``num_heads`` (and ``num_kv_heads``) to their number; ``head_dim`` does
    not change. ``attn_drop`` and ``proj_drop`` may be replaced by other layers.

    Source: upstream NATTEN's ``NeighborhoodAttention1D``, whose state dict it has; GQA and backend are this project's.
    """

    rank = 1

    def __call__(
        self,
        x: mx.array,
        seq_lens: Any = None,
        *,
        backend: str | None = None,
        cache: KeyValueCache | None = None,
        key_mask: mx.array | None = None,
        stream: StreamOrDevice = None,
    ) -> mx.array:
        """The module's output.

        Args:
            x: ``[B, L, C]`` in the parameters' dtype.
            seq_lens: ints ``[B]``, tokens of each item of a padded batch; None: all are full.
            cache: for a sequence whose tokens arrive in chunks along axis 0, of which x is the next.
            key_mask: bool ``[B, L]``, the tokens that may be seen.
            backend: of this call. stream: that of the whole module; None is the default.

        Returns:
            ``[B, L, C]`` in the same dtype; at padding, the output projection's bias.

        Raises:
            TypeError: x or key_mask of a wrong dtype, or a cache of another class.
            ValueError: x of another shape, tokens that the window does not fit, or a cache with another window.
            NotImplementedError: seq_lens with wrap or cache; attn_drop in training with seq_lens or cache;
                key_mask with any of these.
        """
        return self._attend_module(x, seq_lens, backend, cache, stream, key_mask)


class NeighborhoodAttention2D(_NeighborhoodAttention):
    """Neighborhood attention over images ``x [B, X, Y, embed_dim]``, between linear projections.

    Args:
        embed_dim: width C of the tokens, a multiple of num_heads.
        num_heads: query heads; num_kv_heads: key/value heads, a divisor of it (grouped queries), None for as many.
        kernel_size, stride, dilation, is_causal: as in :func:`natten_mlx.na2d`, in tokens per axis.
        qkv_bias: whether the input projections have a bias.
        qk_scale: factor on q.k; None is ``head_dim ** -0.5``.
        attn_drop, proj_drop: probabilities of dropping an attention weight, and an output, in training only.
        rel_pos_bias: learn a relative positional bias ``rpb [num_heads, 2 * kernel_size - 1 per axis]``; stride 1 only.
        wrap: per axis, whether windows pass over its end, as in :func:`natten_mlx.neighborhood_attention`.
        backend: of every call, as the functional ops take it; None follows :func:`natten_mlx.use_backend`.

    Raises:
        TypeError, ValueError, NotImplementedError: arguments that are illegal, with the module's name.

    Source: upstream NATTEN's ``NeighborhoodAttention2D``, whose state dict it has; GQA and backend are this project's.
    """

    rank = 2

    def __call__(
        self,
        x: mx.array,
        spatial_sizes: Any = None,
        *,
        backend: str | None = None,
        cache: KeyValueCache | None = None,
        key_mask: mx.array | None = None,
        stream: StreamOrDevice = None,
    ) -> mx.array:
        """The module's output.

        Args:
            x: ``[B, X, Y, C]`` in the parameters' dtype.
            spatial_sizes: ints ``[B, 2]``, tokens of each item of a padded batch; None: all are full.
            cache: for a sequence whose tokens arrive in chunks along axis 0, of which x is the next.
            key_mask: bool ``[B, X, Y]``, the tokens that may be seen.
            backend: of this call. stream: that of the whole module; None is the default.

        Returns:
            ``[B, X, Y, C]`` in the same dtype; at padding, the output projection's bias.

        Raises:
            TypeError: x or key_mask of a wrong dtype, or a cache of another class.
            ValueError: x of another shape, tokens that the window does not fit, or a cache with another window.
            NotImplementedError: spatial_sizes with wrap or cache; attn_drop in training with spatial_sizes or cache;
                key_mask with spatial_sizes, cache, or attn_drop in training.
        """
        return self._attend_module(x, spatial_sizes, backend, cache, stream, key_mask)


class NeighborhoodAttention3D(_NeighborhoodAttention):
    """Neighborhood attention over volumes ``x [B, X, Y, Z, embed_dim]``, between linear projections.

    Args:
        embed_dim: width C of the tokens, a multiple of num_heads.
        num_heads: query heads; num_kv_heads: key/value heads, a divisor of it (grouped queries), None for as many.
        kernel_size, stride, dilation, is_causal: as in :func:`natten_mlx.na3d`, in tokens per axis.
        qkv_bias: whether the input projections have a bias.
        qk_scale: factor on q.k; None is ``head_dim ** -0.5``.
        attn_drop, proj_drop: probabilities of dropping an attention weight, and an output, in training only.
        rel_pos_bias: learn a relative positional bias ``rpb [num_heads, 2 * kernel_size - 1 per axis]``; stride 1 only.
        wrap: per axis, whether windows pass over its end, as in :func:`natten_mlx.neighborhood_attention`.
        backend: of every call, as the functional ops take it; None follows :func:`natten_mlx.use_backend`.

    Raises:
        TypeError, ValueError, NotImplementedError: arguments that are illegal, with the module's name.

    Source: upstream NATTEN's ``NeighborhoodAttention3D``, whose state dict it has; GQA and backend are this project's.
    """

    rank = 3

    def __call__(
        self,
        x: mx.array,
        spatial_sizes: Any = None,
        *,
        backend: str | None = None,
        cache: KeyValueCache | None = None,
        key_mask: mx.array | None = None,
        stream: StreamOrDevice = None,
    ) -> mx.array:
        """The module's output.

        Args:
            x: ``[B, X, Y, Z, C]`` in the parameters' dtype.
            spatial_sizes: ints ``[B, 3]``, tokens of each item of a padded batch; None: all are full.
            cache: for a sequence whose tokens arrive in chunks along axis 0, of which x is the next.
            key_mask: bool ``[B, X, Y, Z]``, the tokens that may be seen.
            backend: of this call. stream: that of the whole module; None is the default.

        Returns:
            ``[B, X, Y, Z, C]`` in the same dtype; at padding, the output projection's bias.

        Raises:
            TypeError: x or key_mask of a wrong dtype, or a cache of another class.
            ValueError: x of another shape, tokens that the window does not fit, or a cache with another window.
            NotImplementedError: spatial_sizes with wrap or cache; attn_drop in training with spatial_sizes or cache;
                key_mask with spatial_sizes, cache, or attn_drop in training.
        """
        return self._attend_module(x, spatial_sizes, backend, cache, stream, key_mask)
