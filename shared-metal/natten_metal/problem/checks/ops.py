"""The problem of each op: fused, split and full; raises if the tensors or the window break a rule."""

import math
from dataclasses import replace

from ..ops import AV, FULL, FUSED, QK
from ..problem import Piece, Problem, TensorSpec
from .piece import checked_piece
from .tensors import agree, check_additional, check_heads, check_key_mask, check_rpb, listed, no_zero, same, tensor_rank
from .window import Window, check_axes


def fused_problem(
    face: str,
    query: TensorSpec,
    key: TensorSpec,
    value: TensorSpec,
    window: Window,
    scale: float,
    additional_keys: TensorSpec | None = None,
    additional_values: TensorSpec | None = None,
    rpb: TensorSpec | None = None,
    key_mask: TensorSpec | None = None,
    piece: Piece | None = None,
) -> Problem:
    """The problem of ``na1d``, ``na2d``, ``na3d``; raises if the tensors or the window break a rule."""
    rank = len(query.shape) - 3
    tensor_rank(face, "key", key, rank)
    tensor_rank(face, "value", value, rank)
    given = {"query": query, "key": key, "value": value}
    optional = {"additional_keys": additional_keys, "additional_values": additional_values}
    given |= {name: spec for name, spec in optional.items() if spec is not None}
    agree(face, given, rpb)
    shapes = {name: given[name].shape[1:-2] for name in ("query", "key", "value")}
    if piece is None and shapes["key"] == shapes["value"]:
        _check_grids(face, shapes)
    else:
        same(face, "shape", {name: shape for name, shape in shapes.items() if piece is None or name != "query"})
    problem = _heads_last(FUSED.name, face, query, key, value, window, scale)
    problem = _checked_axes(face, problem, piece)
    additional = check_additional(face, additional_keys, additional_values, problem)
    if rpb is not None:
        check_rpb(face, rpb, problem.heads, window[0], window[1])
    if key_mask is not None:
        check_key_mask(face, key_mask, key)
    return replace(problem, additional=additional, has_rpb=rpb is not None, has_key_mask=key_mask is not None)


def qk_problem(
    face: str,
    query: TensorSpec,
    key: TensorSpec,
    window: Window,
    scale: float,
    rpb: TensorSpec | None = None,
    piece: Piece | None = None,
) -> Problem:
    """The problem of the split op ``na{1,2,3}d_qk``: logits of each query's window slots."""
    tensor_rank(face, "key", key, len(query.shape) - 3)
    given = {"query": query, "key": key}
    agree(face, given, rpb)
    if piece is None:
        same(face, "shape", {name: spec.shape[1:-2] for name, spec in given.items()})
    problem = _heads_last(QK.name, face, query, key, None, window, scale)
    problem = _checked_axes(face, problem, piece)
    if rpb is not None:
        check_rpb(face, rpb, problem.heads, window[0], window[1])
    return replace(problem, has_rpb=rpb is not None)


def av_problem(face: str, attn: TensorSpec, value: TensorSpec, window: Window, piece: Piece | None = None) -> Problem:
    """The problem of the split op ``na{1,2,3}d_av``: weights of window slots times values."""
    tensor_rank(face, "value", value, len(attn.shape) - 3)
    same(face, "batch size", {"attn": attn.shape[0], "value": value.shape[0]})
    same(face, "device", {"attn": attn.device, "value": value.device})
    shape, key_shape = attn.shape[1:-2], value.shape[1:-2]
    if piece is None:
        same(face, "shape", {"attn": shape, "value": key_shape})
    slots = math.prod(window[0])
    if attn.shape[-1] != slots:
        raise ValueError(f"{face}: attn must have prod(kernel_size) = {slots} slots; got {attn.shape[-1]}")
    heads, kv_heads, head_dim_v = attn.shape[-2], value.shape[-2], value.shape[-1]
    sizes = {"shape": shape} | ({} if piece is None else {"value shape": key_shape})
    no_zero(face, sizes | {"heads": heads, "value heads": kv_heads, "value head_dim": head_dim_v})
    check_heads(face, heads, kv_heads)
    problem = Problem(
        AV.name, attn.shape[0], shape, key_shape, heads, kv_heads, 0, head_dim_v, *window, 1.0, value.dtype
    )
    return _checked_axes(face, problem, piece)


def _check_grids(face: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """Queries, keys and values of a whole problem lie on one grid; queries on a finer one were made heads before."""
    if shapes["query"] != shapes["key"]:
        raise ValueError(
            f"{face}: {listed(list(shapes))} must share one shape; got {listed([str(s) for s in shapes.values()])}. "
            "Queries may lie on a finer grid, an integer multiple of the keys' on each axis, and a piece of a larger "
            "problem needs full_shape"
        )


def _checked_axes(face: str, problem: Problem, piece: Piece | None) -> Problem:
    """``problem`` with its piece; ValueError if the window does not fit the whole axes, or needed keys are missing."""
    p = replace(problem, piece=piece)
    check_axes(face, p.full_shape, p.kernel_size, p.stride, p.dilation)
    return checked_piece(face, p)


def full_problem(
    face: str, query: TensorSpec, key: TensorSpec, value: TensorSpec, is_causal: bool, scale: float
) -> Problem:
    """The problem of ``attention``: a query sees every key, or those up to its own index."""
    for name, spec in (("key", key), ("value", value)):
        tensor_rank(face, name, spec, 1)
    agree(face, {"query": query, "key": key, "value": value}, None)
    same(face, "sequence length", {"key": key.shape[1], "value": value.shape[1]})
    reach = max(query.shape[1], key.shape[1])
    return _heads_last(FULL.name, face, query, key, value, ((reach,), (1,), (1,), (is_causal,)), scale)


def _heads_last(
    op: str,
    face: str,
    query: TensorSpec,
    key: TensorSpec,
    value: TensorSpec | None,
    window: Window,
    scale: float,
) -> Problem:
    """The problem of tensors whose ranks and axes are known to agree; checks heads and head dims."""
    heads, head_dim = query.shape[-2:]
    kv_heads = key.shape[-2]
    same(face, "head_dim", {"query": head_dim, "key": key.shape[-1]})
    if value is not None:
        same(face, "number of heads", {"key": kv_heads, "value": value.shape[-2]})
    sizes = {
        "query shape": query.shape[1:-2],
        "key shape": key.shape[1:-2],
        "heads": heads,
        "kv heads": kv_heads,
    }
    sizes |= {"head_dim": head_dim} | ({} if value is None else {"value head_dim": value.shape[-1]})
    no_zero(face, sizes)
    check_heads(face, heads, kv_heads)
    head_dim_v = 0 if value is None else value.shape[-1]
    return Problem(
        op,
        query.shape[0],
        query.shape[1:-2],
        key.shape[1:-2],
        heads,
        kv_heads,
        head_dim,
        head_dim_v,
        *window,
        scale,
        query.dtype,
    )
