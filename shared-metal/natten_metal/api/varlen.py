"""The bodies of the public functions for items of different sizes: padded batches, lists, and packed items.

:mod:`.attention` is the same for items of one size.
"""

from dataclasses import replace
from typing import Any

from ..plan import backends
from ..problem import checks, faces, ragged
from ..problem.problem import Problem, TensorSpec
from .framework import Framework, Stream, optional_spec, specs
from .operations import Tensor

NAMES = ("query", "key", "value")


def padded_table(face: str, name: str, sizes: Any, query: TensorSpec, window: checks.Window) -> ragged.Table:
    """The table of a padded batch; reads the sizes."""
    numbers = checks.varlen.as_numbers(face, name, sizes)
    return checks.varlen.padded_table(face, name, numbers, query.shape[0], query.shape[1:-2], window)


def padded_items(
    fw: Framework,
    face: str,
    name: str,
    tensors: tuple[Any, ...],
    sizes: Any,
    window: tuple[Any, ...],
    scale: Any,
    return_lse: Any,
    backend: Any,
    rpb: Tensor | None = None,
    stream: Any = None,
) -> Any:
    """``na{1,2,3}d_varlen``. name: that of ``sizes`` in the face."""
    chosen, where = fw.BACKENDS.resolve(face, backend), fw.stream_of(face, stream)
    if all(isinstance(tensor, (list, tuple)) for tensor in tensors):
        return _listed_items(fw, face, name, tensors, sizes, window, scale, return_lse, chosen, rpb, where)
    query, key, value, rpb = fw.cast((*tensors, rpb))
    q, k, v = specs(fw, face, NAMES, (query, key, value))
    rank = checks.tensor_rank(face, "query", q, faces.rank_of(face))
    given = checks.window_arguments(face, rank, *window)
    problem = faces.fused(face, q, k, v, *given, scale, rpb=optional_spec(fw, face, "rpb", rpb))
    with_lse = checks.flag(face, "return_lse", return_lse)
    table = fw.padded_table(face, name, sizes, q, given)
    (out,), (lse,) = fw.attend("padded", face, problem, chosen, where, table, ([query], [key], [value]), rpb)
    return (out, lse) if with_lse else out


def _listed_items(
    fw: Framework,
    face: str,
    name: str,
    tensors: tuple[Any, ...],
    sizes: Any,
    window: tuple[Any, ...],
    scale: Any,
    return_lse: Any,
    backend: str,
    rpb: Tensor | None,
    stream: Stream,
) -> Any:
    """Items as tensors of their own, ``[*shape, H, D]`` each: lists of results."""
    with_lse = checks.flag(face, "return_lse", return_lse)
    (rpb,) = fw.cast((rpb,))
    lists = tuple(list(fw.cast(tuple(items))) for items in tensors)
    known = [
        [fw.spec(face, f"{which}[{i}]", item) for i, item in enumerate(items)]
        for which, items in zip(NAMES, lists, strict=True)
    ]
    rank = faces.rank_of(face)
    assert rank is not None
    given = checks.window_arguments(face, rank, *window)
    numbers, rpb_spec = checks.varlen.as_numbers(face, name, sizes), optional_spec(fw, face, "rpb", rpb)
    outs: dict[int, Tensor] = {}
    lses: dict[int, Tensor] = {}
    problems = checks.varlen.listed_problems(face, name, known, numbers, rank, given, scale, rpb_spec)
    for problem, members, table in problems:
        alike = tuple([items[item] for item in members] for items in lists)
        found = fw.attend("listed", face, problem, backend, stream, table, alike, rpb)
        outs |= zip(members, found[0], strict=True)
        lses |= zip(members, found[1], strict=True)
    out, lse = ([each[item] for item in range(len(each))] for each in (outs, lses))
    return (out, lse) if with_lse else out


def attend_packed(
    fw: Framework,
    face: str,
    problem: Problem,
    tensors: tuple[Any, ...],
    lengths: tuple[Any, Any],
    packed: tuple[Any, ...],
    backend: str,
    stream: Stream,
) -> tuple[Tensor, Tensor]:
    """``attention`` of sequences that are concatenated in one batch item."""
    table = fw.packed_table(face, [tuple(tensor.shape) for tensor in tensors], lengths, packed)
    lists = tuple([tensor] for tensor in tensors)
    (out,), (lse,) = fw.attend("packed", face, problem, backend, stream, table, lists)
    return out, lse


def parameters(
    fw: Framework, tensors: tuple[Any, ...], lengths: tuple[Any, Any]
) -> tuple[Tensor | None, Tensor | None, int, int]:
    """``generate_varlen_parameters``. lengths: seqlens_Q and seqlens_KV."""
    face = "generate_varlen_parameters"
    shapes = [each.shape for each in specs(fw, face, NAMES, tensors)]
    pairs = list(zip(checks.varlen.LENGTHS, lengths, strict=True))
    for pair in pairs:
        fw.require_values(face, *pair)
    queries_given, keys_given = (checks.varlen.as_numbers(face, *pair) for pair in pairs)
    found = checks.varlen.packed_lengths(face, shapes, (queries_given, keys_given))
    if found is None:
        return None, None, 0, 0
    queries, keys = (
        fw.operations.integers(checks.varlen.cumulative(each), fw.operations.int32, tensors[0]) for each in found
    )
    return queries, keys, max(found[0]), max(found[1])


def configure(
    fw: Framework,
    layouts: Any,
    window: tuple[Any, Any, Any, Any],
    lists: tuple[Any, Any, Any],
    backend: Any,
    upstream: dict[str, Any],
) -> dict[str, Any]:
    """``configure_varlen``. window: of all items; lists: kernel_size_list, stride_list and dilation_list."""
    face = "configure_varlen"
    backends.accept_knobs(face, upstream)
    fw.BACKENDS.resolve(face, backend)
    names = ("token_layout_list", "kernel_size_list", "stride_list", "dilation_list")
    numbers = [checks.varlen.as_numbers(face, *pair) for pair in zip(names, (layouts, *lists), strict=True)]
    table = checks.varlen.layouts_table(face, numbers[0], window[:3], (numbers[1], numbers[2], numbers[3]))
    rank = ragged.rank_of(table)
    causal = checks.bools_per_axis(face, "is_causal", window[3], rank)
    return {"table": fw.kept_table(table, rank), "rank": rank, "is_causal": causal, "backend": backend}


def packed_items(
    fw: Framework,
    tensors: tuple[Any, ...],
    metadata: Any,
    layouts: Any,
    window: tuple[Any, Any, Any, Any],
    lists: tuple[Any, Any, Any],
    scale: Any,
    return_lse: Any,
    backend: Any,
    upstream: dict[str, Any],
    stream: Any = None,
) -> Any:
    """``neighborhood_attention_varlen``. metadata: of :func:`configure`; the next three: its arguments."""
    face = "neighborhood_attention_varlen"
    backends.accept_knobs(face, upstream)
    if metadata is None:
        fw.require_values(face, "token_layout_list", layouts, *lists)
        metadata = configure(fw, layouts, window, lists, None, {})
    elif layouts is not None:
        checks.varlen.reject_both(face)
    table, rank, causal, made_for = checks.varlen.metadata_parts(face, metadata)
    chosen = fw.BACKENDS.resolve(face, made_for if backend is None else backend)
    where = fw.stream_of(face, stream)
    query, key, value = fw.cast(tensors)
    q, k, v = specs(fw, face, NAMES, (query, key, value))
    with_lse = checks.flag(face, "return_lse", return_lse)
    checks.varlen.one_batch_item(face, (q.shape, k.shape, v.shape))
    shared = faces.fused(face, q, k, v, 1, 1, 1, False, scale)
    problem = replace(shared, query_shape=(shared.query_shape[0],) * rank, is_causal=causal)
    (out,), (lse,) = fw.attend("packed", face, problem, chosen, where, table, ([query], [key], [value]))
    return (out, lse) if with_lse else out
