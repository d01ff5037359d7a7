"""The split ops of the all-in-one music model, which attends over time, and over time and instruments.

    from natten_mps.extras.allin1 import na1d_av_fused, na1d_qk_rpb
    logits = na1d_qk_rpb(query, key, rpb, kernel_size=5, dilation=2)     # [B, L, H, 5]
    out = na1d_av_fused(logits.softmax(-1), value, kernel_size=5, dilation=2)

Heads-last, unlike the ``natten*`` ops that the model itself calls: those are in :mod:`natten_mps.compat.v014`.
"""

from torch import Tensor

from ... import split
from ..._signatures import Ints

__all__ = ["na1d_av_fused", "na1d_qk_rpb", "na2d_av_fused", "na2d_qk_rpb"]


def na1d_qk_rpb(
    query: Tensor,
    key: Tensor,
    rpb: Tensor | None,
    kernel_size: Ints,
    dilation: Ints = 1,
    *,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Logits of each query's window, ``scale * q.k + rpb``: :func:`~natten_mps.na1d_qk` with rpb by position.

    Args:
        query, key: ``[B, L, H, D]`` and ``[B, L, H_kv, D]``, of one float dtype.
        rpb: relative positional bias ``[H, 2 * kernel_size - 1]``, or None.
        kernel_size, dilation, scale, backend: as in :func:`~natten_mps.na1d_qk`; scale None is ``D ** -0.5``.

    Returns:
        ``[B, L, H, slots]`` in the query's dtype.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`~natten_mps.na1d_qk`.

    Source: natten_mps 0.3, after NATTEN 0.14's ``natten1dqkrpb``.
    """
    return split.na1d_qk(query, key, kernel_size, dilation, scale=scale, rpb=rpb, backend=backend)


def na2d_qk_rpb(
    query: Tensor,
    key: Tensor,
    rpb: Tensor | None,
    kernel_size: Ints,
    dilation: Ints = 1,
    *,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Logits of each query's window, ``scale * q.k + rpb``: :func:`~natten_mps.na2d_qk` with rpb by position.

    Args:
        query, key: ``[B, X, Y, H, D]`` and ``[B, X, Y, H_kv, D]``, of one float dtype.
        rpb: relative positional bias ``[H, 2 * kernel_size - 1 per axis]``, or None.
        kernel_size, dilation, scale, backend: as in :func:`~natten_mps.na2d_qk`; scale None is ``D ** -0.5``.

    Returns:
        ``[B, X, Y, H, slots]`` in the query's dtype.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`~natten_mps.na2d_qk`.

    Source: natten_mps 0.3, after NATTEN 0.14's ``natten2dqkrpb``.
    """
    return split.na2d_qk(query, key, kernel_size, dilation, scale=scale, rpb=rpb, backend=backend)


def na1d_av_fused(
    attn: Tensor,
    value: Tensor,
    kernel_size: Ints,
    dilation: Ints = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """Each query's weights times the values of its window: :func:`~natten_mps.na1d_av`.

    Args:
        attn, value: ``[B, L, H, slots]`` and ``[B, L, H_kv, D_v]``, of float dtypes.
        kernel_size, dilation, backend: as in :func:`~natten_mps.na1d_av`.

    Returns:
        ``[B, L, H, D_v]`` in the value's dtype.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`~natten_mps.na1d_av`.

    Source: natten_mps 0.3, after NATTEN 0.14's ``natten1dav``.
    """
    return split.na1d_av(attn, value, kernel_size, dilation, backend=backend)


def na2d_av_fused(
    attn: Tensor,
    value: Tensor,
    kernel_size: Ints,
    dilation: Ints = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """Each query's weights times the values of its window: :func:`~natten_mps.na2d_av`.

    Args:
        attn, value: ``[B, X, Y, H, slots]`` and ``[B, X, Y, H_kv, D_v]``, of float dtypes.
        kernel_size, dilation, backend: as in :func:`~natten_mps.na2d_av`.

    Returns:
        ``[B, X, Y, H, D_v]`` in the value's dtype.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`~natten_mps.na2d_av`.

    Source: natten_mps 0.3, after NATTEN 0.14's ``natten2dav``.
    """
    return split.na2d_av(attn, value, kernel_size, dilation, backend=backend)
