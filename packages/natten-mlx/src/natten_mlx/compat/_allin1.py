"""The ops of :mod:`natten_mlx.extras.allin1`: the split ops under the names of natten-mlx 0.3."""

from collections.abc import Callable

import mlx.core as mx

from .. import functional
from .._signatures import Ints
from .._tensors import StreamOrDevice


def _qk_rpb(rank: int) -> Callable[..., mx.array]:
    qk = getattr(functional, f"na{rank}d_qk")

    def qk_rpb(
        query: mx.array, key: mx.array, rpb: mx.array | None, kernel_size: Ints, dilation: Ints = 1, *,
        scale: float | None = None, backend: str | None = None, stream: StreamOrDevice = None,
    ) -> mx.array:  # fmt: skip
        """Logits of the window slots with rpb: ``[B, *shape, H, D]`` -> ``[B, *shape, H, slots]``.

        rpb: ``[H, 2 * kernel_size - 1 per axis]`` or None. scale: None is ``D ** -0.5``.
        """
        out: mx.array = qk(query, key, kernel_size, dilation, scale=scale, rpb=rpb, backend=backend, stream=stream)
        return out

    qk_rpb.__name__ = qk_rpb.__qualname__ = f"na{rank}d_qk_rpb"
    return qk_rpb


def _av_fused(rank: int) -> Callable[..., mx.array]:
    av = getattr(functional, f"na{rank}d_av")

    def av_fused(
        attn: mx.array, value: mx.array, kernel_size: Ints, dilation: Ints = 1, *, backend: str | None = None,
        stream: StreamOrDevice = None,
    ) -> mx.array:  # fmt: skip
        """Weights of the window slots times values: ``[B, *shape, H, slots]`` -> ``[B, *shape, H, D_v]``."""
        out: mx.array = av(attn, value, kernel_size, dilation, backend=backend, stream=stream)
        return out

    av_fused.__name__ = av_fused.__qualname__ = f"na{rank}d_av_fused"
    return av_fused


na1d_qk_rpb, na2d_qk_rpb = _qk_rpb(1), _qk_rpb(2)
na1d_av_fused, na2d_av_fused = _av_fused(1), _av_fused(2)
