"""Neighborhood attention as ``torch.nn`` modules: projections around the functional op.

State dict: ``qkv.{weight,bias}`` and ``proj.{weight,bias}``; with fewer key/value heads ``q_proj``,
``kv_proj`` and ``proj``; with a bias table ``rpb``. The keys are upstream NATTEN's and natten-mlx's, so
weights travel.
"""

from typing import Any

import torch
from torch import Tensor, nn

from . import functional, varlen
from ._config import BACKENDS
from ._metal.problem import checks, checks_modules
from ._metal.problem.problem import FACE_OF
from ._plain import dense as _dense
from ._signatures import Bools, Ints
from ._tensors import spec


class _NeighborhoodAttention(nn.Module):
    """The module of any rank; its subclasses name theirs."""

    rank: int
    _sizes_name = "spatial_sizes"
    backend: str | None = None  # modules that were pickled without one have this

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
        super().__init__()
        given = checks_modules.constructor(
            type(self).__name__, self.rank, embed_dim, num_heads, num_kv_heads,
            (kernel_size, stride, dilation, is_causal), qk_scale, qkv_bias, (attn_drop, proj_drop), rel_pos_bias,
        )  # fmt: skip
        self.embed_dim, self.num_heads, self.num_kv_heads = given.embed_dim, given.num_heads, given.num_kv_heads
        BACKENDS.resolve(type(self).__name__, backend)
        self.backend = backend
        self.head_dim, self.scale = self.embed_dim // self.num_heads, given.scale
        self.kernel_size, self.stride, self.dilation, self.is_causal = given.window
        embed_dim, num_heads, qkv_bias = given.embed_dim, given.num_heads, given.qkv_bias
        if self.num_kv_heads == num_heads:
            self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        else:
            self.q_proj = nn.Linear(embed_dim, embed_dim, bias=qkv_bias)
            self.kv_proj = nn.Linear(embed_dim, 2 * self.num_kv_heads * self.head_dim, bias=qkv_bias)
        self.rpb: nn.Parameter | None = None
        if given.rel_pos_bias:
            self.rpb = nn.Parameter(torch.zeros(num_heads, *(2 * w - 1 for w in self.kernel_size)))
            nn.init.trunc_normal_(self.rpb, std=0.02)
        self.attn_drop = nn.Dropout(given.attn_drop)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_drop = nn.Dropout(given.proj_drop)

    def _geometry(self, shape: tuple[int, ...]) -> checks.Window:
        """kernel_size, stride, dilation and is_causal for an input ``[B, *shape, C]``."""
        return self.kernel_size, self.stride, self.dilation, self.is_causal

    def _attend_module(self, x: Tensor, sizes: Any, backend: str | None = None) -> Tensor:
        """``x [B, *shape, C]`` -> ``[B, *shape, C]``; sizes as the varlen ops take them, or None."""
        face = type(self).__name__
        checks_modules.check_input(face, spec(face, "input", x), self.rank, self.embed_dim)
        chosen = self.backend if backend is None else backend
        query, key, value = self._project(x)
        window = self._geometry(tuple(x.shape[1:-1]))
        dropping = self.training and _drops(self.attn_drop)
        if sizes is not None:
            if dropping:
                checks_modules.reject_dropout(face, self._sizes_name)
            op, tensors = FACE_OF[self.rank] + "_varlen", (query, key, value)
            out = varlen.padded_items(op, self._sizes_name, tensors, sizes, window, self.scale, False, chosen, self.rpb)
        elif dropping:
            out = self._attend_dropping(query, key, value, window, chosen)
        else:
            out = functional.neighborhood_attention(
                query, key, value, *window, self.scale, rpb=self.rpb, backend=chosen
            )
        return self.proj_drop(self.proj(out.flatten(-2)))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value ``[B, *shape, heads, head_dim]``, with the heads that the module has now."""
        if hasattr(self, "qkv"):
            query, key, value = self._heads("qkv", self.qkv(x), 3, "num_heads")
            return query, key, value
        key, value = self._heads("kv_proj", self.kv_proj(x), 2, "num_kv_heads")
        return self._heads("q_proj", self.q_proj(x), 1, "num_heads")[0], key, value

    def _heads(self, layer: str, projected: Tensor, parts: int, heads: str) -> tuple[Tensor, ...]:
        """``[B, *shape, parts * heads * head_dim]`` apart. heads: the name of their number."""
        count, width = getattr(self, heads), projected.shape[-1]
        checks_modules.check_projection(type(self).__name__, layer, width, parts, (heads, count), self.head_dim)
        return projected.view(*projected.shape[:-1], parts, count, self.head_dim).unbind(-3)

    def _attend_dropping(
        self, query: Tensor, key: Tensor, value: Tensor, window: checks.Window, backend: str | None
    ) -> Tensor:
        """Attention with dropped weights: the split ops, with all of a query's weights in between."""
        qk, av = (getattr(functional, FACE_OF[self.rank] + part) for part in ("_qk", "_av"))
        kernel_size, stride, dilation, is_causal = window
        more = {"stride": stride, "is_causal": is_causal, "backend": backend}
        logits = qk(query, key, kernel_size, dilation, scale=self.scale, rpb=self.rpb, **more)
        weights = self.attn_drop(_dense.softmax(logits))
        return av(weights, value, kernel_size, dilation, **more)

    def extra_repr(self) -> str:
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, "
            f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}, "
            f"is_causal={self.is_causal}, rel_pos_bias={self.rpb is not None}"
        )


def _drops(dropout: nn.Module) -> bool:
    """Whether the layer in the place of ``attn_drop`` changes anything in training."""
    return not isinstance(dropout, nn.Identity) and getattr(dropout, "p", 1.0) > 0


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
