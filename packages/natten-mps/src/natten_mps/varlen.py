"""Items of different sizes in one call: padded batches, lists, and items packed behind one another.

Each item attends within its own size, as if it were alone. Padding is never read; it gives out 0, lse -inf and
gradient 0. Items of equal size are computed together where that is faster. Time and memory grow with the number of
tokens. Lists of tensors ``[*shape, H, D]`` in place of padded batches give lists back.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import _signatures, _varlen_ops
from ._config import BACKENDS
from ._metal.plan import backends
from ._metal.problem import checks, checks_varlen, faces, ragged
from ._metal.problem.problem import Problem
from ._plain import varlen as _varlen_dense
from ._private import is_fake
from ._signatures import Bools, Ints, Padded, PaddedResult, Result
from ._tensors import optional_spec, spec
from .functional import _autocast

Listed = tuple[list[Tensor], list[Tensor]]


def _tracing(*given: Any) -> bool:
    """Whether numbers on tensors are known only when a traced graph runs."""
    traced = torch.compiler.is_compiling() or torch.compiler.is_exporting()
    return any(isinstance(each, Tensor) for each in given) and (traced or any(is_fake(each) for each in given))


def _attend(
    kind: str, face: str, problem: Problem, backend: str, table: ragged.Table | Tensor, tensors: tuple[Any, ...],
    rpb: Tensor | None = None,
) -> Listed:  # fmt: skip
    """Outs and lses. tensors: queries, keys and values, lists of one tensor each or of one per item.

    problem: what all items share. table: as a tensor if its numbers are not known yet.
    """
    rank = len(problem.query_shape)
    call = _varlen_ops.Ragged(kind, problem.op, rank, problem.is_causal, problem.scale, backend, face)
    if backend == "dense":
        if isinstance(table, Tensor):
            if _tracing(table):
                checks_varlen.reject_traced(face, "sizes")
            table = _varlen_ops.read(call, table, tensors[0])
        return _varlen_dense.attend(kind, table, problem, tensors, rpb)
    if not isinstance(table, Tensor):
        table = _varlen_ops.as_tensor(table, rank)
    found = _varlen_ops.run(call, table, *(tensor for each in tensors for tensor in each), rpb)
    return list(found[: len(found) // 2]), list(found[len(found) // 2 :])


def padded_items(
    face: str, name: str, tensors: tuple[Any, ...], sizes: Any, window: tuple[Any, ...], scale: Any, return_lse: bool,
    backend: Any, rpb: Tensor | None = None,
) -> Any:  # fmt: skip
    """The body of ``na{1,2,3}d_varlen``. name: that of ``sizes`` in the face."""
    chosen = BACKENDS.resolve(face, backend)
    if all(isinstance(tensor, (list, tuple)) for tensor in tensors):
        return _listed_items(face, name, tensors, sizes, window, scale, return_lse, chosen, rpb)
    query, key, value, rpb = _autocast(*tensors, rpb)
    q, k, v = (spec(face, which, t) for which, t in zip(("query", "key", "value"), (query, key, value), strict=True))
    rank = checks.tensor_rank(face, "query", q, faces.rank_of(face))
    given = checks.window_arguments(face, rank, *window)
    problem = faces.fused(face, q, k, v, *given, scale, rpb=optional_spec(face, "rpb", rpb))
    with_lse = checks.flag(face, "return_lse", return_lse)
    table: Any
    if _tracing(sizes):
        flat = [number for each in given[:3] for number in each]
        table = torch.ops.natten_mps.varlen_table([sizes], face, name, q.shape[: 1 + rank], flat)
    else:
        host = checks_varlen.on_host(face, name, sizes)
        table = checks_varlen.padded_table(face, name, host, q.shape[0], q.shape[1:-2], given)
    (out,), (lse,) = _attend("padded", face, problem, chosen, table, ([query], [key], [value]), rpb)
    return (out, lse) if with_lse else out


def _listed_items(
    face: str, name: str, tensors: tuple[Any, ...], sizes: Any, window: tuple[Any, ...], scale: Any, return_lse: bool,
    backend: str, rpb: Tensor | None,
) -> Any:  # fmt: skip
    """Items as tensors of their own, ``[*shape, H, D]`` each: lists of results, each as if alone."""
    with_lse = checks.flag(face, "return_lse", return_lse)
    (rpb,) = _autocast(rpb)
    lists = tuple(list(_autocast(*items)) for items in tensors)
    specs = [
        [spec(face, f"{which}[{i}]", item) for i, item in enumerate(items)]
        for which, items in zip(("query", "key", "value"), lists, strict=True)
    ]
    rank = faces.rank_of(face)
    assert rank is not None
    given = checks.window_arguments(face, rank, *window)
    host, bias = checks_varlen.on_host(face, name, sizes), optional_spec(face, "rpb", rpb)
    outs: dict[int, Tensor] = {}
    lses: dict[int, Tensor] = {}
    for problem, places, table in checks_varlen.listed_problems(face, name, specs, host, rank, given, scale, bias):
        alike = tuple([items[place] for place in places] for items in lists)
        found = _attend("listed", face, problem, backend, table, alike, rpb)
        outs |= zip(places, found[0], strict=True)
        lses |= zip(places, found[1], strict=True)
    out, lse = ([each[place] for place in range(len(each))] for each in (outs, lses))
    return (out, lse) if with_lse else out


def attend_packed(
    problem: Problem, tensors: tuple[Any, ...], lengths: tuple[Any, Any], packed: tuple[Any, ...], backend: str
) -> tuple[Tensor, Tensor]:
    """``attention`` of sequences that lie behind one another in one batch item."""
    face, shapes = "attention", [tuple(tensor.shape) for tensor in tensors]
    by_length = any(each is not None for each in lengths)
    numbers = lengths if by_length else packed[:2]
    table: Any
    if _tracing(*numbers):
        checks_varlen.one_batch_item(face, shapes)
        names = checks_varlen.LENGTHS if by_length else checks_varlen.PACKED
        checks_varlen.together(face, names, numbers if by_length else packed)
        limits = [shapes[0][1], shapes[1][1], *(() if by_length else packed[2:])]
        kind = "lengths" if by_length else "cumulative"
        table = torch.ops.natten_mps.varlen_table([torch.as_tensor(each) for each in numbers], face, kind, limits, [])
    else:
        table = checks_varlen.packed_call(face, shapes, lengths, packed)
    lists = tuple([tensor] for tensor in tensors)
    (out,), (lse,) = _attend("packed", face, problem, backend, table, lists)
    return out, lse


def generate_varlen_parameters(
    query: Tensor, key: Tensor, value: Tensor, seqlens_Q: Any = None, seqlens_KV: Any = None
) -> tuple[Tensor | None, Tensor | None, int, int]:
    """What packed :func:`attention` takes, made once for many calls, in upstream's order.

    seqlens_Q, seqlens_KV: lengths of the packed sequences, ints ``[n]``.
    Returns cumulative_seqlen_Q and cumulative_seqlen_KV, int32 ``[n + 1]`` on the query's device, max_seqlen_Q and
    max_seqlen_KV; (None, None, 0, 0) without lengths. ValueError or TypeError for what :func:`attention` refuses.
    """
    face, names = "generate_varlen_parameters", ("query", "key", "value")
    shapes = [spec(face, name, t).shape for name, t in zip(names, (query, key, value), strict=True)]
    for name, given in zip(checks_varlen.LENGTHS, (seqlens_Q, seqlens_KV), strict=True):
        if _tracing(given):
            checks_varlen.reject_traced(face, name)
    pairs = zip(checks_varlen.LENGTHS, (seqlens_Q, seqlens_KV), strict=True)
    lengths = checks_varlen.packed_lengths(face, shapes, tuple(checks_varlen.on_host(face, *pair) for pair in pairs))
    if lengths is None:
        return None, None, 0, 0
    queries, keys = (
        torch.tensor(checks_varlen.cumulative(each), dtype=torch.int32, device=query.device) for each in lengths
    )
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

    Returns a dict, to be handed on as it is; it goes through ``torch.compile`` as an argument, and other layouts need
    no other compilation. ValueError or TypeError for a broken rule, naming the item.
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
    return {"table": _varlen_ops.as_tensor(table, rank), "rank": rank, "is_causal": causal, "backend": backend}


@_signatures.packed
def neighborhood_attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
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
        if _tracing(token_layout_list, kernel_size_list, stride_list, dilation_list):
            checks_varlen.reject_traced(face, "token_layout_list")
        metadata = configure_varlen(
            token_layout_list, None, None, None, False, None, kernel_size, stride, dilation, is_causal,
            kernel_size_list, stride_list, dilation_list,
        )  # fmt: skip
    elif token_layout_list is not None:
        checks_varlen.reject_both(face)
    table, rank, causal, made_for = checks_varlen.metadata_parts(face, metadata)
    chosen = BACKENDS.resolve(face, made_for if backend is None else backend)
    query, key, value = _autocast(query, key, value)
    names = ("query", "key", "value")
    q, k, v = (spec(face, name, tensor) for name, tensor in zip(names, (query, key, value), strict=True))
    with_lse = checks.flag(face, "return_lse", return_lse)
    checks_varlen.one_batch_item(face, (q.shape, k.shape, v.shape))
    shared = faces.fused(face, q, k, v, 1, 1, 1, False, scale)
    problem = replace(shared, query_shape=(shared.query_shape[0],) * rank, is_causal=causal)
    (out,), (lse,) = _attend("packed", face, problem, chosen, table, ([query], [key], [value]))
    return (out, lse) if with_lse else out


@_signatures.sequences
def na1d_varlen(
    query: Padded, key: Padded, value: Padded, seq_lens: Any, kernel_size: Ints, dilation: Ints = 1,
    scale: float | None = None, *, stride: Ints = 1, is_causal: Bools = False, return_lse: bool = False,
    backend: str | None = None,
) -> PaddedResult:  # fmt: skip
    """:func:`na1d` of padded sequences: query ``[B, L_max, H, D]``, seq_lens ``[B]`` ints (0 is legal).

    ValueError if an item is shorter than ``kernel_size * dilation`` (it names the item).
    """
    window = (kernel_size, stride, dilation, is_causal)
    return padded_items("na1d_varlen", "seq_lens", (query, key, value), seq_lens, window, scale, return_lse, backend)


@_signatures.grids
def na2d_varlen(
    query: Padded, key: Padded, value: Padded, spatial_sizes: Any, kernel_size: Ints, dilation: Ints = 1,
    scale: float | None = None, *, stride: Ints = 1, is_causal: Bools = False, return_lse: bool = False,
    backend: str | None = None,
) -> PaddedResult:  # fmt: skip
    """:func:`na2d` of padded images: query ``[B, X_max, Y_max, H, D]``, spatial_sizes ``[B, 2]`` ints."""
    window = (kernel_size, stride, dilation, is_causal)
    tensors = (query, key, value)
    return padded_items("na2d_varlen", "spatial_sizes", tensors, spatial_sizes, window, scale, return_lse, backend)


@_signatures.grids
def na3d_varlen(
    query: Padded, key: Padded, value: Padded, spatial_sizes: Any, kernel_size: Ints, dilation: Ints = 1,
    scale: float | None = None, *, stride: Ints = 1, is_causal: Bools = False, return_lse: bool = False,
    backend: str | None = None,
) -> PaddedResult:  # fmt: skip
    """:func:`na3d` of padded volumes: query ``[B, X_max, Y_max, Z_max, H, D]``, spatial_sizes ``[B, 3]`` ints."""
    window = (kernel_size, stride, dilation, is_causal)
    tensors = (query, key, value)
    return padded_items("na3d_varlen", "spatial_sizes", tensors, spatial_sizes, window, scale, return_lse, backend)
