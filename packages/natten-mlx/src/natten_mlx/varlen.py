"""Items of different sizes in one call: padded batches, lists, and packed (concatenated) items.

Each item attends within its own size. Padding is never read; it gives output 0, lse -inf and gradient 0. Items of equal
size are computed together where that is faster. Time and memory grow with the number of tokens. Lists of arrays
``[*shape, H, D]`` in place of padded batches give lists back.
"""

from typing import Any

import mlx.core as mx

from . import _framework, _signatures
from ._metal.api import varlen as bodies
from ._signatures import Bools, Ints, Padded, PaddedResult, Result
from ._tensors import StreamOrDevice


def generate_varlen_parameters(
    query: mx.array, key: mx.array, value: mx.array, seqlens_Q: Any = None, seqlens_KV: Any = None
) -> tuple[mx.array | None, mx.array | None, int, int]:
    """What packed :func:`~natten_mlx.attention` takes, made once for many calls, in upstream's order.

    Args:
        query, key, value: ``[1, tokens, H, D]``, ``[1, tokens_KV, H_kv, D]`` and ``[1, tokens_KV, H_kv, D_v]``.
        seqlens_Q, seqlens_KV: lengths of the packed sequences in tokens, ints ``[n]``.

    Returns:
        cumulative_seqlen_Q and cumulative_seqlen_KV, int32 ``[n + 1]``,
        max_seqlen_Q and max_seqlen_KV; (None, None, 0, 0) without lengths.

    Raises:
        TypeError, ValueError: what :func:`~natten_mlx.attention` refuses, and lengths that MLX is tracing.

    Source: upstream NATTEN's ``generate_varlen_parameters``.
    """
    return bodies.parameters(_framework, (query, key, value), (seqlens_Q, seqlens_KV))


def configure_varlen(
    token_layout_list: Any,
    head_dim: int | None = None,
    device: Any = None,
    dtype: Any = None,
    requires_grad: bool = False,
    head_dim_v: int | None = None,
    kernel_size: Ints | None = None,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Bools = False,
    kernel_size_list: Any = None,
    stride_list: Any = None,
    dilation_list: Any = None,
    backend: str | None = None,
    **upstream: Any,
) -> dict[str, Any]:
    """The ``metadata`` of :func:`neighborhood_attention_varlen`: checked once, for many calls.

    Args:
        token_layout_list: the shapes of the packed items in tokens, tuples of 1, 2 or 3 ints, all of one rank; 0 is
            legal.
        head_dim, device, dtype, requires_grad, head_dim_v: upstream chooses its kernel by these; ignored here.
        kernel_size, stride, dilation, is_causal: of all items, as in :func:`~natten_mlx.neighborhood_attention`.
        kernel_size_list, stride_list, dilation_list: one per item; they take precedence.
        backend: of the calls; None follows :func:`~natten_mlx.use_backend` at each call.
        **upstream: tuning arguments of upstream's CUDA kernels, accepted and ignored.

    Returns:
        A dict, to be passed on unchanged.

    Raises:
        TypeError, ValueError: illegal shapes or windows, or shapes too small for them; the message names the item.

    Source: upstream NATTEN's ``configure_varlen``.
    """
    window = (kernel_size, stride, dilation, is_causal)
    return bodies.configure(
        _framework, token_layout_list, window, (kernel_size_list, stride_list, dilation_list), backend, upstream
    )


@_signatures.packed
def neighborhood_attention_varlen(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    metadata: dict[str, Any] | None = None,
    token_layout_list: Any = None,
    kernel_size: Ints | None = None,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Bools = False,
    kernel_size_list: Any = None,
    stride_list: Any = None,
    dilation_list: Any = None,
    scale: float | None = None,
    backend: str | None = None,
    *,
    return_lse: bool = False,
    stream: StreamOrDevice = None,
    **upstream: Any,
) -> Result:
    """Neighborhood attention of packed items, each with its own shape and, if wanted, its own window.

    Args:
        query: ``[1, tokens, H, D]``, item after item, each row-major over its shape; key ``[1, tokens, H_kv, D]`` and
            value ``[1, tokens, H_kv, D_v]`` of the same dtype.
        metadata: from :func:`configure_varlen`; then it alone decides shapes and windows.
        token_layout_list, kernel_size, stride, dilation, is_causal, kernel_size_list, stride_list, dilation_list: in
            place of metadata, as in :func:`configure_varlen`.
        scale: factor on q.k; None is ``D ** -0.5``.
        backend: as in :func:`~natten_mlx.neighborhood_attention`; None is that of the metadata.
        return_lse, stream, **upstream: as in :func:`~natten_mlx.neighborhood_attention`.

    Returns:
        Output ``[1, tokens, H, D_v]`` in the query's dtype; with ``return_lse`` also lse ``[1, tokens, H]``, float32.
        Tokens after the last item give 0 and -inf.

    Raises:
        TypeError, ValueError: tensors that do not fit each other or the items, both metadata and token_layout_list, or
            shapes that MLX is tracing.
        NotImplementedError: a problem that ``backend`` does not take.

    Source: upstream NATTEN's ``neighborhood_attention_varlen``.
    """
    window = (kernel_size, stride, dilation, is_causal)
    return bodies.packed_items(
        _framework,
        (query, key, value),
        metadata,
        token_layout_list,
        window,
        (kernel_size_list, stride_list, dilation_list),
        scale,
        return_lse,
        backend,
        upstream,
        stream,
    )


@_signatures.sequences
def na1d_varlen(
    query: Padded,
    key: Padded,
    value: Padded,
    seq_lens: Any,
    kernel_size: Ints,
    dilation: Ints = 1,
    scale: float | None = None,
    *,
    stride: Ints = 1,
    is_causal: Bools = False,
    return_lse: bool = False,
    backend: str | None = None,
    stream: StreamOrDevice = None,
) -> PaddedResult:
    """:func:`~natten_mlx.na1d` over sequences of different sizes: a padded batch, or a list of arrays.

    Args:
        query: ``[B, L_max, H, D]``; or a list of ``[L, H, D]``, as key and value then.
        key, value: ``[B, L_max, H_kv, D]`` and ``[B, L_max, H_kv, D_v]``, of the query's dtype.
        seq_lens: ints ``[B]``, tokens of each item; 0 is legal; None for lists.
            Read on the host.
        kernel_size, dilation, scale, stride, is_causal, return_lse, backend, stream: as in
            :func:`~natten_mlx.neighborhood_attention`.

    Returns:
        Output ``[B, L_max, H, D_v]`` in the query's dtype; with ``return_lse`` also lse
        ``[B, L_max, H]``, float32 (float64 for float64). Padding gives 0 and -inf. Lists give lists.

    Raises:
        TypeError, ValueError: as :func:`~natten_mlx.neighborhood_attention`, and an item shorter than
            ``kernel_size * dilation``; the message names the item.
        NotImplementedError: a problem that ``backend`` does not take.

    Source: this project's own; upstream NATTEN packs items (:func:`neighborhood_attention_varlen`).
    """
    return bodies.padded_items(
        _framework,
        "na1d_varlen",
        "seq_lens",
        (query, key, value),
        seq_lens,
        (kernel_size, stride, dilation, is_causal),
        scale,
        return_lse,
        backend,
        None,
        stream,
    )


@_signatures.grids
def na2d_varlen(
    query: Padded,
    key: Padded,
    value: Padded,
    spatial_sizes: Any,
    kernel_size: Ints,
    dilation: Ints = 1,
    scale: float | None = None,
    *,
    stride: Ints = 1,
    is_causal: Bools = False,
    return_lse: bool = False,
    backend: str | None = None,
    stream: StreamOrDevice = None,
) -> PaddedResult:
    """:func:`~natten_mlx.na2d` over images of different sizes: a padded batch, or a list of arrays.

    Args:
        query: ``[B, X_max, Y_max, H, D]``; or a list of ``[X, Y, H, D]``, as key and value then.
        key, value: ``[B, X_max, Y_max, H_kv, D]`` and ``[B, X_max, Y_max, H_kv, D_v]``, of the query's dtype.
        spatial_sizes: ints ``[B, 2]``, tokens of each item along each axis; 0 is legal; None for lists.
            Read on the host.
        kernel_size, dilation, scale, stride, is_causal, return_lse, backend, stream: as in
            :func:`~natten_mlx.neighborhood_attention`.

    Returns:
        Output ``[B, X_max, Y_max, H, D_v]`` in the query's dtype; with ``return_lse`` also lse
        ``[B, X_max, Y_max, H]``, float32 (float64 for float64). Padding gives 0 and -inf. Lists give lists.

    Raises:
        TypeError, ValueError: as :func:`~natten_mlx.neighborhood_attention`, and an item shorter than
            ``kernel_size * dilation``; the message names the item.
        NotImplementedError: a problem that ``backend`` does not take.

    Source: this project's own; upstream NATTEN packs items (:func:`neighborhood_attention_varlen`).
    """
    return bodies.padded_items(
        _framework,
        "na2d_varlen",
        "spatial_sizes",
        (query, key, value),
        spatial_sizes,
        (kernel_size, stride, dilation, is_causal),
        scale,
        return_lse,
        backend,
        None,
        stream,
    )


@_signatures.grids
def na3d_varlen(
    query: Padded,
    key: Padded,
    value: Padded,
    spatial_sizes: Any,
    kernel_size: Ints,
    dilation: Ints = 1,
    scale: float | None = None,
    *,
    stride: Ints = 1,
    is_causal: Bools = False,
    return_lse: bool = False,
    backend: str | None = None,
    stream: StreamOrDevice = None,
) -> PaddedResult:
    """:func:`~natten_mlx.na3d` over volumes of different sizes: a padded batch, or a list of arrays.

    Args:
        query: ``[B, X_max, Y_max, Z_max, H, D]``; or a list of ``[X, Y, Z, H, D]``, as key and value then.
        key, value: ``[B, X_max, Y_max, Z_max, H_kv, D]`` and ``[B, X_max, Y_max, Z_max, H_kv, D_v]``, of the query's
            dtype.
        spatial_sizes: ints ``[B, 3]``, tokens of each item along each axis; 0 is legal; None for lists.
            Read on the host.
        kernel_size, dilation, scale, stride, is_causal, return_lse, backend, stream: as in
            :func:`~natten_mlx.neighborhood_attention`.

    Returns:
        Output ``[B, X_max, Y_max, Z_max, H, D_v]`` in the query's dtype; with ``return_lse`` also lse
        ``[B, X_max, Y_max, Z_max, H]``, float32 (float64 for float64). Padding gives 0 and -inf. Lists give lists.

    Raises:
        TypeError, ValueError: as :func:`~natten_mlx.neighborhood_attention`, and an item shorter than
            ``kernel_size * dilation``; the message names the item.
        NotImplementedError: a problem that ``backend`` does not take.

    Source: this project's own; upstream NATTEN packs items (:func:`neighborhood_attention_varlen`).
    """
    return bodies.padded_items(
        _framework,
        "na3d_varlen",
        "spatial_sizes",
        (query, key, value),
        spatial_sizes,
        (kernel_size, stride, dilation, is_causal),
        scale,
        return_lse,
        backend,
        None,
        stream,
    )
