"""The public split ops: the logits of each query's window, and weights of the window times values.

Between the two, weights can be inspected and changed. The result of the first holds every query's window in memory,
which the fused ops avoid.
"""

import mlx.core as mx

from . import _framework
from ._metal.api import attention as bodies
from ._signatures import Bools, Ints
from ._tensors import StreamOrDevice


def na1d_qk(
    query: mx.array,
    key: mx.array,
    kernel_size: Ints,
    dilation: Ints = 1,
    *,
    stride: Ints = 1,
    is_causal: Bools = False,
    scale: float | None = None,
    rpb: mx.array | None = None,
    full_shape: Ints | None = None,
    query_start: Ints = 0,
    key_start: Ints = 0,
    wrap: Bools = False,
    backend: str | None = None,
    stream: StreamOrDevice = None,
) -> mx.array:
    """The first half of :func:`na1d`: the logits ``scale * q.k + rpb`` of each query's window.

    Args:
        query, key: ``[B, L, H, D]`` and ``[B, L, H_kv, D]``, of one float dtype.
        rpb: relative positional bias ``[H, 2 * kernel_size - 1]``, stride 1 only.
        kernel_size, dilation, stride, is_causal, scale, full_shape, query_start, key_start, wrap, backend, stream: as
            in :func:`neighborhood_attention`.

    Returns:
        ``[B, L, H, kernel_size]`` in the query's dtype; float16 may round to inf. Slot j of an axis is key
        ``start + j`` of the query's dilation group; a slot without a key (causal) is -inf, with gradient 0.
        Differentiable any number of times, in reverse and forward mode.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`neighborhood_attention`.

    Source: upstream NATTEN's ``na1d_qk`` up to release 0.17, but heads-last and scaled.
    """
    return bodies.qk(
        _framework,
        "na1d_qk",
        (query, key, rpb),
        (kernel_size, stride, dilation, is_causal),
        scale,
        (full_shape, query_start, key_start, wrap),
        backend,
        stream,
    )


def na2d_qk(
    query: mx.array,
    key: mx.array,
    kernel_size: Ints,
    dilation: Ints = 1,
    *,
    stride: Ints = 1,
    is_causal: Bools = False,
    scale: float | None = None,
    rpb: mx.array | None = None,
    full_shape: Ints | None = None,
    query_start: Ints = 0,
    key_start: Ints = 0,
    wrap: Bools = False,
    backend: str | None = None,
    stream: StreamOrDevice = None,
) -> mx.array:
    """The first half of :func:`na2d`: the logits ``scale * q.k + rpb`` of each query's window.

    Args:
        query, key: ``[B, X, Y, H, D]`` and ``[B, X, Y, H_kv, D]``, of one float dtype.
        rpb: relative positional bias ``[H, 2 * kernel_size - 1 per axis]``, stride 1 only.
        kernel_size, dilation, stride, is_causal, scale, full_shape, query_start, key_start, wrap, backend, stream: as
            in :func:`neighborhood_attention`.

    Returns:
        ``[B, X, Y, H, prod(kernel_size)]`` in the query's dtype, row-major over the window; float16 may round to inf.
        Slot j of an axis is key ``start + j`` of the query's dilation group; a slot without a key (causal) is -inf,
        with gradient 0. Differentiable any number of times, in reverse and forward mode.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`neighborhood_attention`.

    Source: upstream NATTEN's ``na2d_qk`` up to release 0.17, but heads-last and scaled.
    """
    return bodies.qk(
        _framework,
        "na2d_qk",
        (query, key, rpb),
        (kernel_size, stride, dilation, is_causal),
        scale,
        (full_shape, query_start, key_start, wrap),
        backend,
        stream,
    )


def na3d_qk(
    query: mx.array,
    key: mx.array,
    kernel_size: Ints,
    dilation: Ints = 1,
    *,
    stride: Ints = 1,
    is_causal: Bools = False,
    scale: float | None = None,
    rpb: mx.array | None = None,
    full_shape: Ints | None = None,
    query_start: Ints = 0,
    key_start: Ints = 0,
    wrap: Bools = False,
    backend: str | None = None,
    stream: StreamOrDevice = None,
) -> mx.array:
    """The first half of :func:`na3d`: the logits ``scale * q.k + rpb`` of each query's window.

    Args:
        query, key: ``[B, X, Y, Z, H, D]`` and ``[B, X, Y, Z, H_kv, D]``, of one float dtype.
        rpb: relative positional bias ``[H, 2 * kernel_size - 1 per axis]``, stride 1 only.
        kernel_size, dilation, stride, is_causal, scale, full_shape, query_start, key_start, wrap, backend, stream: as
            in :func:`neighborhood_attention`.

    Returns:
        ``[B, X, Y, Z, H, prod(kernel_size)]`` in the query's dtype, row-major over the window; float16 may round to
        inf. Slot j of an axis is key ``start + j`` of the query's dilation group; a slot without a key (causal) is
        -inf, with gradient 0. Differentiable any number of times, in reverse and forward mode.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`neighborhood_attention`.

    Source: upstream NATTEN's ``na3d_qk`` up to release 0.17, but heads-last and scaled.
    """
    return bodies.qk(
        _framework,
        "na3d_qk",
        (query, key, rpb),
        (kernel_size, stride, dilation, is_causal),
        scale,
        (full_shape, query_start, key_start, wrap),
        backend,
        stream,
    )


def na1d_av(
    attn: mx.array,
    value: mx.array,
    kernel_size: Ints,
    dilation: Ints = 1,
    *,
    stride: Ints = 1,
    is_causal: Bools = False,
    full_shape: Ints | None = None,
    query_start: Ints = 0,
    key_start: Ints = 0,
    wrap: Bools = False,
    backend: str | None = None,
    stream: StreamOrDevice = None,
) -> mx.array:
    """The second half of :func:`na1d`: each query's weights times the values of its window.

    Args:
        attn: ``[B, L, H, kernel_size]``, slots as in :func:`na1d_qk`.
        value: ``[B, L, H_kv, D_v]``. Both of any float dtype; attn is converted to the value's.
        kernel_size, dilation, stride, is_causal, full_shape, query_start, key_start, wrap, backend, stream: as in
            :func:`neighborhood_attention`.

    Returns:
        ``[B, L, H, D_v]`` in the value's dtype. A slot without a key is never read, and gets gradient 0.
        Differentiable any number of times, in reverse and forward mode.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`neighborhood_attention`.

    Source: upstream NATTEN's ``na1d_av`` up to release 0.17, but heads-last.
    """
    return bodies.av(
        _framework,
        "na1d_av",
        (attn, value),
        (kernel_size, stride, dilation, is_causal),
        (full_shape, query_start, key_start, wrap),
        backend,
        stream,
    )


def na2d_av(
    attn: mx.array,
    value: mx.array,
    kernel_size: Ints,
    dilation: Ints = 1,
    *,
    stride: Ints = 1,
    is_causal: Bools = False,
    full_shape: Ints | None = None,
    query_start: Ints = 0,
    key_start: Ints = 0,
    wrap: Bools = False,
    backend: str | None = None,
    stream: StreamOrDevice = None,
) -> mx.array:
    """The second half of :func:`na2d`: each query's weights times the values of its window.

    Args:
        attn: ``[B, X, Y, H, prod(kernel_size)]``, slots as in :func:`na2d_qk`.
        value: ``[B, X, Y, H_kv, D_v]``. Both of any float dtype; attn is converted to the value's.
        kernel_size, dilation, stride, is_causal, full_shape, query_start, key_start, wrap, backend, stream: as in
            :func:`neighborhood_attention`.

    Returns:
        ``[B, X, Y, H, D_v]`` in the value's dtype. A slot without a key is never read, and gets gradient 0.
        Differentiable any number of times, in reverse and forward mode.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`neighborhood_attention`.

    Source: upstream NATTEN's ``na2d_av`` up to release 0.17, but heads-last.
    """
    return bodies.av(
        _framework,
        "na2d_av",
        (attn, value),
        (kernel_size, stride, dilation, is_causal),
        (full_shape, query_start, key_start, wrap),
        backend,
        stream,
    )


def na3d_av(
    attn: mx.array,
    value: mx.array,
    kernel_size: Ints,
    dilation: Ints = 1,
    *,
    stride: Ints = 1,
    is_causal: Bools = False,
    full_shape: Ints | None = None,
    query_start: Ints = 0,
    key_start: Ints = 0,
    wrap: Bools = False,
    backend: str | None = None,
    stream: StreamOrDevice = None,
) -> mx.array:
    """The second half of :func:`na3d`: each query's weights times the values of its window.

    Args:
        attn: ``[B, X, Y, Z, H, prod(kernel_size)]``, slots as in :func:`na3d_qk`.
        value: ``[B, X, Y, Z, H_kv, D_v]``. Both of any float dtype; attn is converted to the value's.
        kernel_size, dilation, stride, is_causal, full_shape, query_start, key_start, wrap, backend, stream: as in
            :func:`neighborhood_attention`.

    Returns:
        ``[B, X, Y, Z, H, D_v]`` in the value's dtype. A slot without a key is never read, and gets gradient 0.
        Differentiable any number of times, in reverse and forward mode.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`neighborhood_attention`.

    Source: upstream NATTEN's ``na3d_av`` up to release 0.17, but heads-last.
    """
    return bodies.av(
        _framework,
        "na3d_av",
        (attn, value),
        (kernel_size, stride, dilation, is_causal),
        (full_shape, query_start, key_start, wrap),
        backend,
        stream,
    )
