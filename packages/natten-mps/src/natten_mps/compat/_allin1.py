"""The ops of :mod:`natten_mps.extras.allin1`: the split ops under the names of natten-mps 0.3."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import functional
from .._signatures import Ints


def _qk_rpb(rank: int) -> Callable[..., Tensor]:
    qk = getattr(functional, f"na{rank}d_qk")

    def qk_rpb(
        query: Tensor, key: Tensor, rpb: Tensor | None, kernel_size: Ints, dilation: Ints = 1, *,
        scale: float | None = None, backend: str | None = None,
    ) -> Tensor:  # fmt: skip
        """Logits of the window slots with rpb: ``[B, *shape, H, D]`` -> ``[B, *shape, H, slots]``.

        rpb: ``[H, 2 * kernel_size - 1 per axis]`` or None. scale: None is ``D ** -0.5``.
        """
        out: Tensor = qk(query, key, kernel_size, dilation, scale=scale, rpb=rpb, backend=backend)
        return out

    qk_rpb.__name__ = qk_rpb.__qualname__ = f"na{rank}d_qk_rpb"
    return qk_rpb


def _av_fused(rank: int) -> Callable[..., Tensor]:
    av = getattr(functional, f"na{rank}d_av")

    def av_fused(
        attn: Tensor, value: Tensor, kernel_size: Ints, dilation: Ints = 1, *, backend: str | None = None
    ) -> Tensor:
        """Weights of the window slots times values: ``[B, *shape, H, slots]`` -> ``[B, *shape, H, D_v]``."""
        out: Tensor = av(attn, value, kernel_size, dilation, backend=backend)
        return out

    av_fused.__name__ = av_fused.__qualname__ = f"na{rank}d_av_fused"
    return av_fused


na1d_qk_rpb, na2d_qk_rpb = _qk_rpb(1), _qk_rpb(2)
na1d_av_fused, na2d_av_fused = _av_fused(1), _av_fused(2)


def _unscaled(op: Any, name: str) -> Callable[..., Tensor]:
    def qkrpb(query: Tensor, key: Tensor, rpb: Tensor | None, kernel_size: Ints, dilation: Ints) -> Tensor:
        """``q.k + rpb`` of the window slots, heads-last and unscaled."""
        out: Tensor = op(query, key, rpb, kernel_size, dilation, scale=1.0)
        return out

    qkrpb.__name__ = qkrpb.__qualname__ = name
    return qkrpb


def _weighted(op: Any, name: str) -> Callable[..., Tensor]:
    def av(attention_probs: Tensor, value: Tensor, kernel_size: Ints, dilation: Ints) -> Tensor:
        """The window slots' weights times values, heads-last."""
        out: Tensor = op(attention_probs, value, kernel_size, dilation)
        return out

    av.__name__ = av.__qualname__ = name
    return av


natten1dqkrpb, natten2dqkrpb = _unscaled(na1d_qk_rpb, "natten1dqkrpb"), _unscaled(na2d_qk_rpb, "natten2dqkrpb")
natten1dav, natten2dav = _weighted(na1d_av_fused, "natten1dav"), _weighted(na2d_av_fused, "natten2dav")
