"""Items of different sizes in one call: padded batches, lists, and items packed behind one another.

Each item attends within its own size, as if it were alone. Padding is never read; it gives out 0, lse -inf and
gradient 0. Items of equal size are computed together where that is faster. Time and memory grow with the number of
tokens. Lists of arrays ``[*shape, H, D]`` in place of padded batches give lists back.
"""

from dataclasses import replace
from typing import Any

import mlx.core as mx

from . import _autodiff as _transforms
from . import _signatures
from ._config import BACKENDS
from ._metal.plan import backends
from ._metal.problem import checks, checks_varlen, faces, ragged
from ._metal.problem.problem import Problem
from ._plain import varlen as _varlen_plain
from ._signatures import Bools, Ints, Padded, PaddedResult, Result
from ._tensors import StreamOrDevice, optional_spec, spec, stream_of
from ._varlen_nodes import Arrays, Ragged


def _attend(
    kind: str, face: str, problem: Problem, backend: str, stream: mx.Stream, table: ragged.Table,
    tensors: tuple[Any, ...], rpb: mx.array | None = None,
) -> tuple[Arrays, Arrays]:  # fmt: skip
    """Outs and lses. tensors: queries, keys and values, lists of one array each or of one per item.

    problem: what all items share.
    """
    arrays = [array for each in tensors for array in each] + ([] if rpb is None else [rpb])
    call = Ragged(face, kind, problem, backend, stream, table)
    if kind == "listed" or backend == "dense" or _transforms.seen_through():
        return _varlen_plain.attend(call, *arrays)
    return call(*arrays)


def padded_items(
    face: str, name: str, tensors: tuple[Any, ...], sizes: Any, window: tuple[Any, ...], scale: Any, return_lse: bool,
    backend: Any, stream: Any = None, rpb: mx.array | None = None,
) -> Any:  # fmt: skip
    """The body of ``na{1,2,3}d_varlen``. name: that of ``sizes`` in the face."""
    chosen, where = BACKENDS.resolve(face, backend), stream_of(face, stream)
    if all(isinstance(tensor, (list, tuple)) for tensor in tensors):
        return _listed_items(face, name, tensors, sizes, window, scale, return_lse, chosen, where, rpb)
    query, key, value = tensors
    q, k, v = (spec(face, which, t) for which, t in zip(("query", "key", "value"), tensors, strict=True))
    rank = checks.tensor_rank(face, "query", q, faces.rank_of(face))
    given = checks.window_arguments(face, rank, *window)
    problem = faces.fused(face, q, k, v, *given, scale, rpb=optional_spec(face, "rpb", rpb))
    with_lse = checks.flag(face, "return_lse", return_lse)
    host = checks_varlen.on_host(face, name, sizes)
    table = checks_varlen.padded_table(face, name, host, q.shape[0], q.shape[1:-2], given)
    (out,), (lse,) = _attend("padded", face, problem, chosen, where, table, ([query], [key], [value]), rpb)
    return (out, lse) if with_lse else out


def _listed_items(
    face: str, name: str, tensors: tuple[Any, ...], sizes: Any, window: tuple[Any, ...], scale: Any, return_lse: bool,
    backend: str, stream: mx.Stream, rpb: mx.array | None,
) -> Any:  # fmt: skip
    """Items as arrays of their own, ``[*shape, H, D]`` each: lists of results, each as if alone."""
    with_lse = checks.flag(face, "return_lse", return_lse)
    specs = [
        [spec(face, f"{which}[{i}]", item) for i, item in enumerate(items)]
        for which, items in zip(("query", "key", "value"), tensors, strict=True)
    ]
    rank = faces.rank_of(face)
    assert rank is not None
    given = checks.window_arguments(face, rank, *window)
    host, bias = checks_varlen.on_host(face, name, sizes), optional_spec(face, "rpb", rpb)
    outs: dict[int, mx.array] = {}
    lses: dict[int, mx.array] = {}
    for problem, places, table in checks_varlen.listed_problems(face, name, specs, host, rank, given, scale, bias):
        alike = tuple([items[place] for place in places] for items in tensors)
        found = _attend("listed", face, problem, backend, stream, table, alike, rpb)
        outs |= zip(places, found[0], strict=True)
        lses |= zip(places, found[1], strict=True)
    out, lse = ([each[place] for place in range(len(each))] for each in (outs, lses))
    return (out, lse) if with_lse else out


def attend_packed(
    problem: Problem, tensors: tuple[Any, ...], lengths: tuple[Any, Any], packed: tuple[Any, ...], backend: str,
    stream: mx.Stream,
) -> tuple[mx.array, mx.array]:  # fmt: skip
    """``attention`` of sequences that lie behind one another in one batch item."""
    face = "attention"
    table = checks_varlen.packed_call(face, [tensor.shape for tensor in tensors], lengths, packed)
    (out,), (lse,) = _attend("packed", face, problem, backend, stream, table, tuple([tensor] for tensor in tensors))
    return out, lse


def generate_varlen_parameters(
    query: mx.array, key: mx.array, value: mx.array, seqlens_Q: Any = None, seqlens_KV: Any = None
) -> tuple[mx.array | None, mx.array | None, int, int]:
    """What packed :func:`attention` takes, made once for many calls, in upstream's order.

    seqlens_Q, seqlens_KV: lengths of the packed sequences, ints ``[n]``.
    Returns cumulative_seqlen_Q and cumulative_seqlen_KV, int32 ``[n + 1]``, max_seqlen_Q and max_seqlen_KV;
    (None, None, 0, 0) without lengths. ValueError or TypeError for what :func:`attention` refuses.
    """
    face, names = "generate_varlen_parameters", ("query", "key", "value")
    shapes = [spec(face, name, t).shape for name, t in zip(names, (query, key, value), strict=True)]
    pairs = zip(checks_varlen.LENGTHS, (seqlens_Q, seqlens_KV), strict=True)
    queries_given, keys_given = (checks_varlen.on_host(face, *pair) for pair in pairs)
    lengths = checks_varlen.packed_lengths(face, shapes, (queries_given, keys_given))
    if lengths is None:
        return None, None, 0, 0
    queries, keys = (mx.array(checks_varlen.cumulative(each), dtype=mx.int32) for each in lengths)
    return queries, keys, max(lengths[0]), max(lengths[1])


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
    """What :func:`neighborhood_attention_varlen` takes as ``metadata``: checked once, for many calls.

    token_layout_list: the shapes of the packed items, tuples of 1, 2 or 3 ints, all of one rank; 0 is legal.
    kernel_size, stride, dilation: of all items, or lists of one per item, which win. head_dim, device, dtype,
    requires_grad, head_dim_v: by them upstream chooses its kernel; nothing depends on them here. upstream: its knobs,
    accepted and ignored.

    Returns a dict, to be handed on as it is. ValueError or TypeError for a broken rule, naming the item.
    """
    face = "configure_varlen"
    backends.accept_knobs(face, upstream)
    BACKENDS.resolve(face, backend)
    hosts = [
        checks_varlen.on_host(face, name, each)
        for name, each in (
            ("token_layout_list", token_layout_list), ("kernel_size_list", kernel_size_list),
            ("stride_list", stride_list), ("dilation_list", dilation_list),
        )
    ]  # fmt: skip
    table = checks_varlen.layouts_table(face, hosts[0], (kernel_size, stride, dilation), tuple(hosts[1:]))
    rank = ragged.rank_of(table)
    causal = checks.bools_per_axis(face, "is_causal", is_causal, rank)
    return {"table": table, "rank": rank, "is_causal": causal, "backend": backend}


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
    """Neighborhood attention of items that lie behind one another, each with its own shape, and window if wanted.

    query ``[1, tokens, H, D]``, key ``[1, tokens, H_kv, D]``, value ``[1, tokens, H_kv, D_v]``: item by item, each
    row-major over its shape. metadata: of :func:`configure_varlen`, and then layouts and window are read from it
    alone; or token_layout_list and the window as configure_varlen takes them.

    Returns output ``[1, tokens, H, D_v]``; with ``return_lse`` also lse ``[1, tokens, H]``. Tokens behind the last
    item give 0 and -inf. ValueError or TypeError for a broken rule, naming the item.
    """
    face = "neighborhood_attention_varlen"
    backends.accept_knobs(face, upstream)
    if metadata is None:
        metadata = configure_varlen(
            token_layout_list, None, None, None, False, None, kernel_size, stride, dilation, is_causal,
            kernel_size_list, stride_list, dilation_list,
        )  # fmt: skip
    elif token_layout_list is not None:
        checks_varlen.reject_both(face)
    table, rank, causal, made_for = checks_varlen.metadata_parts(face, metadata)
    chosen = BACKENDS.resolve(face, made_for if backend is None else backend)
    where = stream_of(face, stream)
    names = ("query", "key", "value")
    q, k, v = (spec(face, name, tensor) for name, tensor in zip(names, (query, key, value), strict=True))
    with_lse = checks.flag(face, "return_lse", return_lse)
    checks_varlen.one_batch_item(face, (q.shape, k.shape, v.shape))
    shared = faces.fused(face, q, k, v, 1, 1, 1, False, scale)
    problem = replace(shared, query_shape=(shared.query_shape[0],) * rank, is_causal=causal)
    checks_varlen.packed_total(face, table, rank, shared.query_shape[0])
    (out,), (lse,) = _attend("packed", face, problem, chosen, where, table, ([query], [key], [value]))
    return (out, lse) if with_lse else out


@_signatures.sequences
def na1d_varlen(
    query: Padded, key: Padded, value: Padded, seq_lens: Any, kernel_size: Ints, dilation: Ints = 1,
    scale: float | None = None, *, stride: Ints = 1, is_causal: Bools = False, return_lse: bool = False,
    backend: str | None = None, stream: StreamOrDevice = None,
) -> PaddedResult:  # fmt: skip
    """:func:`na1d` of padded sequences: query ``[B, L_max, H, D]``, seq_lens ``[B]`` ints (0 is legal).

    ValueError if an item is shorter than ``kernel_size * dilation`` (it names the item).
    """
    window = (kernel_size, stride, dilation, is_causal)
    return padded_items(
        "na1d_varlen", "seq_lens", (query, key, value), seq_lens, window, scale, return_lse, backend, stream
    )


@_signatures.grids
def na2d_varlen(
    query: Padded, key: Padded, value: Padded, spatial_sizes: Any, kernel_size: Ints, dilation: Ints = 1,
    scale: float | None = None, *, stride: Ints = 1, is_causal: Bools = False, return_lse: bool = False,
    backend: str | None = None, stream: StreamOrDevice = None,
) -> PaddedResult:  # fmt: skip
    """:func:`na2d` of padded images: query ``[B, X_max, Y_max, H, D]``, spatial_sizes ``[B, 2]`` ints."""
    window = (kernel_size, stride, dilation, is_causal)
    tensors = (query, key, value)
    return padded_items(
        "na2d_varlen", "spatial_sizes", tensors, spatial_sizes, window, scale, return_lse, backend, stream
    )


@_signatures.grids
def na3d_varlen(
    query: Padded, key: Padded, value: Padded, spatial_sizes: Any, kernel_size: Ints, dilation: Ints = 1,
    scale: float | None = None, *, stride: Ints = 1, is_causal: Bools = False, return_lse: bool = False,
    backend: str | None = None, stream: StreamOrDevice = None,
) -> PaddedResult:  # fmt: skip
    """:func:`na3d` of padded volumes: query ``[B, X_max, Y_max, Z_max, H, D]``, spatial_sizes ``[B, 3]`` ints."""
    window = (kernel_size, stride, dilation, is_causal)
    tensors = (query, key, value)
    return padded_items(
        "na3d_varlen", "spatial_sizes", tensors, spatial_sizes, window, scale, return_lse, backend, stream
    )
