"""The split ops by the names of NATTEN 0.14, heads-last and unscaled, as natten-mps 0.3 had them here.

``natten{1,2}dqkrpb(query, key, rpb, kernel_size, dilation)`` are the logits ``q.k + rpb`` of the window slots,
``[B, *shape, H, D]`` -> ``[B, *shape, H, slots]``; ``natten{1,2}dav(attention_probs, value, kernel_size, dilation)``
their weights times values. Heads-first ones, as NATTEN itself had them, are in :mod:`natten_mps.compat.v014`.
"""

from torch import Tensor

from ... import functional
from ..._signatures import Ints

__all__ = ["natten1dav", "natten1dqkrpb", "natten2dav", "natten2dqkrpb"]


def natten1dqkrpb(query: Tensor, key: Tensor, rpb: Tensor | None, kernel_size: Ints, dilation: Ints) -> Tensor:
    """The logits ``q.k + rpb`` of each query's window, unscaled.

    Args:
        query, key: ``[B, L, H, D]`` and ``[B, L, H_kv, D]``, of one float dtype, heads-last.
        rpb: relative positional bias ``[H, 2 * kernel_size - 1]``, or None.
        kernel_size, dilation: in tokens.

    Returns:
        ``[B, L, H, slots]`` in the query's dtype.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`natten_mps.na1d_qk`.

    Source: natten-mps 0.3, after NATTEN 0.14's ``natten1dqkrpb``, which is heads-first.
    """
    return functional.na1d_qk(query, key, kernel_size, dilation, scale=1.0, rpb=rpb)


def natten2dqkrpb(query: Tensor, key: Tensor, rpb: Tensor | None, kernel_size: Ints, dilation: Ints) -> Tensor:
    """The logits ``q.k + rpb`` of each query's window, unscaled.

    Args:
        query, key: ``[B, X, Y, H, D]`` and ``[B, X, Y, H_kv, D]``, of one float dtype, heads-last.
        rpb: relative positional bias ``[H, 2 * kernel_size - 1 per axis]``, or None.
        kernel_size, dilation: in tokens.

    Returns:
        ``[B, X, Y, H, slots]`` in the query's dtype.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`natten_mps.na2d_qk`.

    Source: natten-mps 0.3, after NATTEN 0.14's ``natten2dqkrpb``, which is heads-first.
    """
    return functional.na2d_qk(query, key, kernel_size, dilation, scale=1.0, rpb=rpb)


def natten1dav(attention_probs: Tensor, value: Tensor, kernel_size: Ints, dilation: Ints) -> Tensor:
    """Each query's weights times the values of its window.

    Args:
        attention_probs, value: ``[B, L, H, slots]`` and ``[B, L, H_kv, D_v]``, of float dtypes, heads-last.
        kernel_size, dilation: in tokens.

    Returns:
        ``[B, L, H, D_v]`` in the value's dtype.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`natten_mps.na1d_av`.

    Source: natten-mps 0.3, after NATTEN 0.14's ``natten1dav``, which is heads-first.
    """
    return functional.na1d_av(attention_probs, value, kernel_size, dilation)


def natten2dav(attention_probs: Tensor, value: Tensor, kernel_size: Ints, dilation: Ints) -> Tensor:
    """Each query's weights times the values of its window.

    Args:
        attention_probs, value: ``[B, X, Y, H, slots]`` and ``[B, X, Y, H_kv, D_v]``, of float dtypes, heads-last.
        kernel_size, dilation: in tokens.

    Returns:
        ``[B, X, Y, H, D_v]`` in the value's dtype.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`natten_mps.na2d_av`.

    Source: natten-mps 0.3, after NATTEN 0.14's ``natten2dav``, which is heads-first.
    """
    return functional.na2d_av(attention_probs, value, kernel_size, dilation)
