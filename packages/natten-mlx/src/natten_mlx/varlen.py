"""Items of different sizes in one padded batch.

Each item attends within its own size, as if it were alone. Padding is never read; it gives out 0, lse
-inf and gradient 0. Items of equal size are computed together. Lists of arrays ``[*shape, H, D]`` in place
of padded batches give lists back.
"""

import math
from typing import Any

import mlx.core as mx

from ._arrays import StreamOrDevice, compute_dtype, made_for, optional_spec, spec, stream_of
from ._metal import checks, checks_varlen, faces
from .functional import Bools, Ints, Result, _fused, attention


def padded_items(
    face: str, name: str, tensors: tuple[Any, ...], sizes: Any, window: tuple[Any, ...], scale: Any, return_lse: bool,
    backend: Any, stream: Any = None, rpb: mx.array | None = None,
) -> Any:  # fmt: skip
    if all(isinstance(tensor, (list, tuple)) for tensor in tensors):
        return _listed_items(face, name, tensors, sizes, window, scale, return_lse, backend, stream, rpb)
    where = stream_of(face, stream)
    q, k, v = (spec(face, which, t) for which, t in zip(("query", "key", "value"), tensors, strict=True))
    rank = checks.tensor_rank(face, "query", q, faces.rank_of(face))
    kernel_size, stride, dilation, is_causal = given = checks.window_arguments(face, rank, *window)
    faces.fused(face, q, k, v, kernel_size, stride, dilation, is_causal, scale, rpb=optional_spec(face, "rpb", rpb))
    items = checks.varlen_sizes(face, name, faces.sizes_on_host(sizes), q, kernel_size, dilation)
    with_lse = checks.flag(face, "return_lse", return_lse)
    shape, heads = q.shape[1:-2], q.shape[-2]
    with mx.stream(where):
        out = made_for(tensors[0], mx.zeros((1, *shape, heads, v.shape[-1]), tensors[0].dtype))
        lse = made_for(tensors[0], mx.full((1, *shape, heads), -math.inf, compute_dtype(tensors[0])))
        if not items:
            return (out[:0], lse[:0]) if with_lse else out[:0]
        # What an item of size 0 gives; the others are replaced below.
        outs, lses = [out] * len(items), [lse] * len(items)
        for size in sorted(set(items)):
            if 0 in size:
                continue
            which = [item for item, own in enumerate(items) if own == size]
            parts = tuple(mx.concatenate([_cut(tensor[item : item + 1], size) for item in which]) for tensor in tensors)
            own_out, own_lse = _fused(face, (*parts, None, None, rpb), given, scale, True, backend, where, {})
            own_out, own_lse = _padded(own_out, shape, 0.0), _padded(own_lse, shape, -math.inf)
            for place, item in enumerate(which):
                outs[item], lses[item] = own_out[place : place + 1], own_lse[place : place + 1]
        out, lse = mx.concatenate(outs), mx.concatenate(lses)
    return (out, lse) if with_lse else out


def _listed_items(
    face: str, name: str, tensors: tuple[Any, ...], sizes: Any, window: tuple[Any, ...], scale: Any, return_lse: bool,
    backend: Any, stream: Any, rpb: mx.array | None,
) -> Any:  # fmt: skip
    """Items as arrays of their own, ``[*shape, H, D]`` each: lists of results, each as if alone."""
    with_lse, where = checks.flag(face, "return_lse", return_lse), stream_of(face, stream)
    specs = [
        [spec(face, f"{which}[{i}]", item) for i, item in enumerate(items)]
        for which, items in zip(("query", "key", "value"), tensors, strict=True)
    ]
    checks.listed_items(face, name, specs, faces.sizes_on_host(sizes))
    outs, lses = [], []
    for query, key, value in zip(*tensors, strict=True):
        with mx.stream(where):
            parts = (query[None], key[None], value[None])
            if 0 in query.shape[:-2]:
                out = made_for(query, mx.zeros((1, *query.shape[:-1], value.shape[-1]), query.dtype))
                lse = made_for(query, mx.zeros((1, *query.shape[:-1]), compute_dtype(query)))
            else:
                out, lse = _fused(face, (*parts, None, None, rpb), window, scale, True, backend, where, {})
            outs.append(out[0])
            lses.append(lse[0])
    return (outs, lses) if with_lse else outs


def _cut(tensor: mx.array, size: tuple[int, ...]) -> mx.array:
    """The first ``size`` tokens of each axis."""
    return tensor[(slice(None), *(slice(length) for length in size))]


def _padded(tensor: mx.array, shape: tuple[int, ...], value: float) -> mx.array:
    """``tensor`` with its axes filled up to ``shape``."""
    margins = [(0, full - own) for full, own in zip(shape, tensor.shape[1:], strict=False)]
    widths = [(0, 0), *margins, *[(0, 0)] * (tensor.ndim - 1 - len(shape))]
    return mx.pad(tensor, widths, constant_values=value)


def attend_packed(
    tensors: tuple[Any, ...], items: tuple[checks_varlen.Span, ...], is_causal: bool, scale: Any, backend: str,
    stream: mx.Stream,
) -> tuple[mx.array, mx.array]:  # fmt: skip
    """Attention of sequences that lie behind one another in one batch item; those of equal size together."""
    query, key, value = tensors
    heads, total = query.shape[2], query.shape[1]
    with mx.stream(stream):

        def nothing(count: int) -> tuple[mx.array, mx.array]:
            out = made_for(query, mx.zeros((1, count, heads, value.shape[-1]), query.dtype))
            return out, made_for(query, mx.full((1, count, heads), -math.inf, compute_dtype(query)))

        parts = [nothing(item.queries) for item in items]
        for queries, keys in sorted({(item.queries, item.keys) for item in items if item.queries and item.keys}):
            own = [place for place, item in enumerate(items) if (item.queries, item.keys) == (queries, keys)]
            starts = [(items[place].query, items[place].key) for place in own]
            q = mx.concatenate([query[:, first : first + queries] for first, _ in starts])
            k, v = (mx.concatenate([t[:, first : first + keys] for _, first in starts]) for t in (key, value))
            out, lse = attention(q, k, v, is_causal, scale, return_lse=True, backend=backend, stream=stream)
            for place, item in enumerate(own):
                parts[item] = out[place : place + 1], lse[place : place + 1]
        parts.append(nothing(total - items[-1].query - items[-1].queries))
        return mx.concatenate([out for out, _ in parts], 1), mx.concatenate([lse for _, lse in parts], 1)


def generate_varlen_parameters(
    query: mx.array, key: mx.array, value: mx.array, seqlens_Q: Any = None, seqlens_KV: Any = None
) -> tuple[mx.array | None, mx.array | None, int, int]:
    """What packed :func:`attention` takes, made once for many calls, in upstream's order.

    seqlens_Q, seqlens_KV: lengths of the packed sequences, ints ``[n]``.
    Returns cumulative_seqlen_Q and cumulative_seqlen_KV, int32 ``[n + 1]``, max_seqlen_Q and max_seqlen_KV;
    (None, None, 0, 0) without lengths. ValueError or TypeError for what :func:`attention` refuses.
    """
    batches = tuple(int(tensor.shape[0]) for tensor in (query, key, value))
    given = (faces.sizes_on_host(seqlens_Q), faces.sizes_on_host(seqlens_KV))
    lengths = checks_varlen.packed_lengths("generate_varlen_parameters", batches, given)
    if lengths is None:
        return None, None, 0, 0
    queries, keys = (mx.array(checks_varlen.cumulative(each), dtype=mx.int32) for each in lengths)
    return queries, keys, max(lengths[0]), max(lengths[1])


def na1d_varlen(
    query: mx.array, key: mx.array, value: mx.array, seq_lens: Any, kernel_size: Ints, dilation: Ints = 1,
    scale: float | None = None, *, stride: Ints = 1, is_causal: Bools = False, return_lse: bool = False,
    backend: str | None = None, stream: StreamOrDevice = None,
) -> Result:  # fmt: skip
    """:func:`na1d` of padded sequences: query ``[B, L_max, H, D]``, seq_lens ``[B]`` ints (0 is legal).

    ValueError if an item is shorter than ``kernel_size * dilation`` (it names the item).
    """
    window = (kernel_size, stride, dilation, is_causal)
    return padded_items(
        "na1d_varlen", "seq_lens", (query, key, value), seq_lens, window, scale, return_lse, backend, stream
    )


def na2d_varlen(
    query: mx.array, key: mx.array, value: mx.array, spatial_sizes: Any, kernel_size: Ints, dilation: Ints = 1,
    scale: float | None = None, *, stride: Ints = 1, is_causal: Bools = False, return_lse: bool = False,
    backend: str | None = None, stream: StreamOrDevice = None,
) -> Result:  # fmt: skip
    """:func:`na2d` of padded images: query ``[B, X_max, Y_max, H, D]``, spatial_sizes ``[B, 2]`` ints."""
    window = (kernel_size, stride, dilation, is_causal)
    tensors = (query, key, value)
    return padded_items(
        "na2d_varlen", "spatial_sizes", tensors, spatial_sizes, window, scale, return_lse, backend, stream
    )


def na3d_varlen(
    query: mx.array, key: mx.array, value: mx.array, spatial_sizes: Any, kernel_size: Ints, dilation: Ints = 1,
    scale: float | None = None, *, stride: Ints = 1, is_causal: Bools = False, return_lse: bool = False,
    backend: str | None = None, stream: StreamOrDevice = None,
) -> Result:  # fmt: skip
    """:func:`na3d` of padded volumes: query ``[B, X_max, Y_max, Z_max, H, D]``, spatial_sizes ``[B, 3]`` ints."""
    window = (kernel_size, stride, dilation, is_causal)
    tensors = (query, key, value)
    return padded_items(
        "na3d_varlen", "spatial_sizes", tensors, spatial_sizes, window, scale, return_lse, backend, stream
    )
