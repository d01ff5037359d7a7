"""The public functions for inputs of one size. Each is a typed face over a body that both packages share.

Layout is heads-last: query ``[B, *shape, H, D]``, key ``[B, *shape, H_kv, D]``, value ``[B, *shape, H_kv, D_v]``.
16-bit inputs are computed in float32 and rounded once.
"""

from typing import Any

from torch import Tensor

from . import _framework, _signatures
from ._metal.api import attention as bodies
from ._metal.problem.ranges import key_range as key_range
from ._metal.problem.ranges import query_range as query_range
from ._signatures import Bools, Ints, Result
from .split import na1d_av as na1d_av
from .split import na1d_qk as na1d_qk
from .split import na2d_av as na2d_av
from .split import na2d_qk as na2d_qk
from .split import na3d_av as na3d_av
from .split import na3d_qk as na3d_qk
from .varlen import na1d_varlen as na1d_varlen  # 0.3 had these three here
from .varlen import na2d_varlen as na2d_varlen
from .varlen import na3d_varlen as na3d_varlen


@_signatures.fused
def neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Ints,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Bools = False,
    scale: float | None = None,
    *,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    rpb: Tensor | None = None,
    key_mask: Tensor | None = None,
    full_shape: Ints | None = None,
    query_start: Ints = 0,
    key_start: Ints = 0,
    wrap: Bools = False,
    return_lse: bool = False,
    backend: str | None = None,
    **upstream: Any,
) -> Result:
    """Neighborhood attention of any rank: each query attends to a window of keys around it.

    Args:
        query: ``[B, *shape, H, D]``, shape of 1, 2 or 3 axes; float16, bfloat16, float32 or float64. On a finer grid,
            an integer multiple of the keys', each query sees the window of the key whose cell it lies in.
        key: ``[B, *shape, H_kv, D]``; query head h reads key/value head ``h // (H / H_kv)``.
        value: ``[B, *shape, H_kv, D_v]``. All tensors have the query's dtype, but rpb may have another.
        kernel_size: keys per query on each axis, odd or even; dilation: distance between them, in tokens.
        stride: queries that share one window (1 <= stride <= kernel_size); the output keeps its size.
        is_causal: per axis, whether a query sees only itself and what lies before it.
        scale: factor on q.k; None is ``D ** -0.5``.
        additional_keys, additional_values: ``[B, S, H_kv, D(_v)]``, seen by every query in the same softmax.
        rpb: ``[H, 2 * kernel_size - 1 per axis]``, added to logits at ``(key - query) / dilation + kernel_size - 1``.
        key_mask: bool ``[B, *shape]``, on the keys' grid: False hides a key from every query, whatever it and its value
            hold (NaN too); their gradients are 0. A query that sees no key gives 0, and -inf in lse.
        full_shape, query_start, key_start: for a piece of a larger problem: the size of the whole, and where the first
            query and key are in it. key must hold what :func:`key_range` says; the result is a slice of the whole's.
        wrap: per axis, whether windows pass over its end; not causal, and a multiple of ``stride * dilation`` long.
        return_lse: also return the log-sum-exp of the logits.
        backend: 'metal', 'native', 'pure', 'dense' or 'auto'; None follows :func:`use_backend`.
        **upstream: tuning arguments of upstream's CUDA kernels, accepted and ignored.

    Returns:
        Output ``[B, *shape, H, D_v]`` in the query's dtype; with ``return_lse`` also lse ``[B, *shape, H]`` in float32
        (float64 for float64), natural log, scale included, differentiable.

    Raises:
        TypeError, ValueError: arguments or tensors of the wrong type, or that do not fit together.
        NotImplementedError: rpb with stride > 1, or a problem that ``backend`` does not take.

    Source: arXiv 2204.07143, 2209.15001 (dilation) and 2504.16922 (stride); upstream NATTEN's ``na1d/na2d/na3d``.
    """
    face, tensors = "neighborhood_attention", (query, key, value, additional_keys, additional_values, rpb)
    window, piece = (kernel_size, stride, dilation, is_causal), (full_shape, query_start, key_start, wrap)
    return bodies.fused(_framework, face, tensors, window, scale, piece, return_lse, backend, upstream, None, key_mask)


@_signatures.fused
def na1d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Ints,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Bools = False,
    scale: float | None = None,
    *,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    rpb: Tensor | None = None,
    key_mask: Tensor | None = None,
    full_shape: Ints | None = None,
    query_start: Ints = 0,
    key_start: Ints = 0,
    wrap: Bools = False,
    return_lse: bool = False,
    backend: str | None = None,
    **upstream: Any,
) -> Result:
    """Neighborhood attention over sequences: :func:`neighborhood_attention` of rank 1.

    Args:
        query: ``[B, L, H, D]``; float16, bfloat16, float32 or float64.
        key, value: ``[B, L, H_kv, D]`` and ``[B, L, H_kv, D_v]``, of the query's dtype.
        kernel_size, stride, dilation: in tokens; see :func:`neighborhood_attention`.
        additional_keys, additional_values: ``[B, S, H_kv, D]`` and ``[B, S, H_kv, D_v]``.
        rpb: relative positional bias ``[H, 2 * kernel_size - 1]``, stride 1 only.
        is_causal, scale, key_mask, full_shape, query_start, key_start, wrap, return_lse, backend,
            **upstream: as in :func:`neighborhood_attention`.

    Returns:
        Output ``[B, L, H, D_v]`` in the query's dtype; with ``return_lse`` also lse ``[B, L, H]``, float32.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`neighborhood_attention`.

    Source: upstream NATTEN's ``na1d``.
    """
    return bodies.fused(
        _framework,
        "na1d",
        (query, key, value, additional_keys, additional_values, rpb),
        (kernel_size, stride, dilation, is_causal),
        scale,
        (full_shape, query_start, key_start, wrap),
        return_lse,
        backend,
        upstream,
        None,
        key_mask,
    )


@_signatures.fused
def na2d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Ints,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Bools = False,
    scale: float | None = None,
    *,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    rpb: Tensor | None = None,
    key_mask: Tensor | None = None,
    full_shape: Ints | None = None,
    query_start: Ints = 0,
    key_start: Ints = 0,
    wrap: Bools = False,
    return_lse: bool = False,
    backend: str | None = None,
    **upstream: Any,
) -> Result:
    """Neighborhood attention over images: :func:`neighborhood_attention` of rank 2.

    Args:
        query: ``[B, X, Y, H, D]``; float16, bfloat16, float32 or float64.
        key, value: ``[B, X, Y, H_kv, D]`` and ``[B, X, Y, H_kv, D_v]``, of the query's dtype.
        kernel_size, stride, dilation: in tokens, one number or one per axis; see :func:`neighborhood_attention`.
        additional_keys, additional_values: ``[B, S, H_kv, D]`` and ``[B, S, H_kv, D_v]``.
        rpb: relative positional bias ``[H, 2 * kernel_size - 1 per axis]``, stride 1 only.
        is_causal, scale, key_mask, full_shape, query_start, key_start, wrap, return_lse, backend,
            **upstream: as in :func:`neighborhood_attention`.

    Returns:
        Output ``[B, X, Y, H, D_v]`` in the query's dtype; with ``return_lse`` also lse ``[B, X, Y, H]``, float32.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`neighborhood_attention`.

    Source: upstream NATTEN's ``na2d``.
    """
    return bodies.fused(
        _framework,
        "na2d",
        (query, key, value, additional_keys, additional_values, rpb),
        (kernel_size, stride, dilation, is_causal),
        scale,
        (full_shape, query_start, key_start, wrap),
        return_lse,
        backend,
        upstream,
        None,
        key_mask,
    )


@_signatures.fused
def na3d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Ints,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Bools = False,
    scale: float | None = None,
    *,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    rpb: Tensor | None = None,
    key_mask: Tensor | None = None,
    full_shape: Ints | None = None,
    query_start: Ints = 0,
    key_start: Ints = 0,
    wrap: Bools = False,
    return_lse: bool = False,
    backend: str | None = None,
    **upstream: Any,
) -> Result:
    """Neighborhood attention over volumes or video: :func:`neighborhood_attention` of rank 3.

    Args:
        query: ``[B, X, Y, Z, H, D]``; float16, bfloat16, float32 or float64.
        key, value: ``[B, X, Y, Z, H_kv, D]`` and ``[B, X, Y, Z, H_kv, D_v]``, of the query's dtype.
        kernel_size, stride, dilation: in tokens, one number or one per axis; see :func:`neighborhood_attention`.
        additional_keys, additional_values: ``[B, S, H_kv, D]`` and ``[B, S, H_kv, D_v]``.
        rpb: relative positional bias ``[H, 2 * kernel_size - 1 per axis]``, stride 1 only.
        is_causal, scale, key_mask, full_shape, query_start, key_start, wrap, return_lse, backend,
            **upstream: as in :func:`neighborhood_attention`.

    Returns:
        Output ``[B, X, Y, Z, H, D_v]`` in the query's dtype; with ``return_lse`` also lse ``[B, X, Y, Z, H]``, float32.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`neighborhood_attention`.

    Source: upstream NATTEN's ``na3d``.
    """
    return bodies.fused(
        _framework,
        "na3d",
        (query, key, value, additional_keys, additional_values, rpb),
        (kernel_size, stride, dilation, is_causal),
        scale,
        (full_shape, query_start, key_start, wrap),
        return_lse,
        backend,
        upstream,
        None,
        key_mask,
    )


@_signatures.full
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_causal: bool = False,
    scale: float | None = None,
    seqlens_Q: Any = None,
    seqlens_KV: Any = None,
    cumulative_seqlen_Q: Any = None,
    cumulative_seqlen_KV: Any = None,
    max_seqlen_Q: int | None = None,
    max_seqlen_KV: int | None = None,
    *,
    return_lse: bool = False,
    backend: str | None = None,
    **upstream: Any,
) -> Result:
    """Full attention over sequences, or over packed sequences of different lengths.

    Args:
        query: ``[B, S, H, D]``; float16, bfloat16, float32 or float64.
        key: ``[B, S_kv, H_kv, D]`` and value ``[B, S_kv, H_kv, D_v]``, of the query's dtype; query head h reads
            key/value head ``h // (H / H_kv)``.
        is_causal: whether query i sees keys 0..i only (aligned at the top left when S != S_kv).
        scale: factor on q.k; None is ``D ** -0.5``.
        seqlens_Q, seqlens_KV: lengths of packed sequences in tokens, ints ``[n]``: with B = 1, the sequences are
            concatenated, and each attends only to itself. They are read on the host (under ``torch.compile`` when the
            compiled call runs), and take precedence over the cumulative ones.
        cumulative_seqlen_Q, cumulative_seqlen_KV, max_seqlen_Q, max_seqlen_KV: the same as running sums ``[n + 1]`` and
            maxima, as :func:`natten_mps.generate_varlen_parameters` makes them.
        return_lse, backend, **upstream: as in :func:`neighborhood_attention`.

    Returns:
        Output ``[B, S, H, D_v]`` in the query's dtype; with ``return_lse`` also lse ``[B, S, H]`` in float32 (float64
        for float64). Tokens after the last packed sequence, and queries of a sequence without keys, give 0 and -inf.

    Raises:
        TypeError: an argument of the wrong type, or tensors of different dtypes.
        ValueError: shapes, devices or lengths that do not fit together.
        NotImplementedError: a problem that ``backend`` does not take.

    Source: Attention Is All You Need (arXiv 1706.03762); arguments as in upstream NATTEN's ``attention``.
    """
    lengths = (seqlens_Q, seqlens_KV)
    packed = (cumulative_seqlen_Q, cumulative_seqlen_KV, max_seqlen_Q, max_seqlen_KV)
    return bodies.full(
        _framework, "attention", (query, key, value), is_causal, scale, lengths, packed, return_lse, backend, upstream
    )


def merge_attentions(outputs: list[Tensor], lses: list[Tensor] | None = None, **upstream: Any) -> tuple[Tensor, Tensor]:
    """Attention over the union of disjoint sets of keys, from the results for each set.

    With lse = log sum_i exp(lse_i), the output is sum_i exp(lse_i - lse) * outputs_i. Plain operations, so it
    differentiates as often as the parts do.

    Args:
        outputs: the parts' outputs, ``[B, *shape, H, D_v]`` each, of one float dtype.
        lses: their log-sum-exps, ``[B, *shape, H]`` each, natural log; also as lse_tensors, upstream's name.
        **upstream: upstream's tuning arguments, accepted and ignored.

    Returns:
        Output ``[B, *shape, H, D_v]`` in the parts' dtype, and lse ``[B, *shape, H]``, both computed in float32
        (float64 for float64). A part with lse -inf contributes 0; where all are -inf: output 0, lse -inf, gradients 0.

    Raises:
        TypeError: something that is not a tensor or not a list, or parts of different dtypes.
        ValueError: no parts, not as many lses as outputs, or shapes that differ.

    Source: upstream NATTEN's ``merge_attentions``; the merge of FlashAttention's partial softmaxes (arXiv 2205.14135).
    """
    return bodies.merge(_framework, outputs, lses, upstream)


def explain(op: str, query: Tensor, key: Tensor, value: Tensor | None = None, **arguments: Any) -> str:
    """What a call would run on this machine and why, without running it.

        print(explain("na2d", query, key, value, kernel_size=7))

    Args:
        op: the name of a face: ``"na2d"``, ``"na1d_qk"``, ``"attention"``, ...
        query, key, value: the face's first tensors, of its shapes and dtypes (for ``na2d_av``: attn and value).
        **arguments: the face's other arguments by name, backend included.

    Returns:
        Some lines of text: the problem, the backend that runs it, its kernels, and why other backends do not run it.

    Raises:
        TypeError, ValueError: op is not the name of a face, or a call with these arguments would raise it.
        NotImplementedError: ``backend`` does not take the problem.

    Source: our own; it prints the plan that the call would launch.
    """
    return bodies.explain(_framework, op, query, key, value, arguments)
