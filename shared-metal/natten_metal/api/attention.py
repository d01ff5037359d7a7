"""The bodies of the public functions of one size: fused, split and full attention, merging, and ``explain``.

A package's face has the typed signature and the docstring; it passes its arguments by position. ``fw`` is the package's
:class:`.Framework`, ``face`` the public name, for messages.
"""

import math
from typing import Any

from ..plan import backends
from ..plan import plan as planning
from ..problem import checks, faces, finer_grid, wrap
from ..problem.ops import AV, FULL, FUSED, KEY_MASK, QK, UNMASKED_INPUTS, Op
from ..problem.problem import Problem
from .finer_grid import from_heads, repeat_rpb, to_heads
from .framework import Framework, Stream, optional_spec, specs
from .operations import Operations, Tensor, Tensors, compute_dtype, largest
from .recall import Recall, Signature, exactly
from .varlen import attend_packed
from .wrap import repeat_ends

Window = tuple[Any, Any, Any, Any]
# full_shape, query_start, key_start and wrap.
Piece = tuple[Any, Any, Any, Any]

# How many tensors, given or None, a fused call lists before the key mask.
_GIVEN = len(UNMASKED_INPUTS)
# The problems of fused calls whose arguments have passed the checks.
checked = Recall()


def fused(
    fw: Framework,
    face: str,
    tensors: tuple[Any, ...],
    window: Window,
    scale: Any,
    piece: Piece,
    return_lse: Any,
    backend: Any,
    upstream: dict[str, Any],
    stream: Any = None,
    key_mask: Any = None,
) -> Any:
    """``neighborhood_attention`` and ``na{1,2,3}d``. tensors: as in ``FUSED.input_names``; upstream: its keywords."""
    if key_mask is not None:  # otherwise it is left out, here and below
        tensors = (*tensors, key_mask)
    backends.accept_knobs(face, upstream)
    chosen, where = fw.BACKENDS.resolve(face, backend), fw.stream_of(face, stream)
    tensors = fw.cast(tensors)
    if piece[3] is not False:
        ratio = _finer_grid(fw, face, tensors, piece)
        if ratio is not None:
            return _as_heads(fw, face, ratio, tensors, window, scale, piece, return_lse, chosen, where)
        tensors, piece = _unrolled(fw, face, FUSED, tensors, 2, window, piece, where)
    given = (*window, scale, return_lse) if faces.are_defaults(piece) else (*window, scale, return_lse, *piece[:3])
    arguments = None if fw.traced() else exactly(given)
    signature = fw.signature(face, chosen, where, tensors, arguments) if key_mask is None else None
    found = fw.repeat(signature, tensors, where)
    if found is None:
        problem = _fused_problem(fw, face, tensors, window, scale, piece, return_lse, arguments)
        if isinstance(problem, tuple):
            return _as_heads(fw, face, problem, tensors, window, scale, piece, return_lse, chosen, where)
        found = fw.run(problem, chosen, where, tensors, signature)
    out, lse = found
    return (out, lse) if return_lse else out


def _fused_problem(
    fw: Framework,
    face: str,
    tensors: tuple[Any, ...],
    window: Window,
    scale: Any,
    piece: Piece,
    return_lse: Any,
    arguments: Signature | None,
) -> Problem | finer_grid.Ratio:
    """The problem of a fused face: kept from an earlier call like it, or from checking the arguments.

    Where the queries lie on a finer grid than the keys: the queries per key instead.
    """
    alike = None if arguments is None else _alike(fw, face, tensors, arguments)
    if alike is None:  # no lookup either: a tracer would guard on the cached problem
        return _checked_problem(fw, face, tensors, window, scale, piece, return_lse)
    found: Problem | finer_grid.Ratio = checked.get_or_make(
        alike, lambda: _checked_problem(fw, face, tensors, window, scale, piece, return_lse)
    )
    return found


def _alike(fw: Framework, face: str, tensors: tuple[Any, ...], arguments: Signature) -> Signature | None:
    """What decides the checks of a call, as a key; None if the call is not kept."""
    traits: list[Any] = []
    for tensor in tensors:
        own = None if tensor is None else fw.traits(tensor)
        if own is None and tensor is not None:
            return None
        traits.append(own)
    return face, tuple(traits), arguments


def _checked_problem(
    fw: Framework, face: str, tensors: tuple[Any, ...], window: Window, scale: Any, piece: Piece, return_lse: Any
) -> Problem | finer_grid.Ratio:
    """The problem of a fused face, whose arguments are checked; or the queries per key on a finer grid."""
    ratio = _finer_grid(fw, face, tensors, piece)
    if ratio is not None:
        return ratio
    names = FUSED.input_names
    q, k, v = specs(fw, face, names[:3], tensors[:3])
    others = zip(names[3:], (*tensors[3:], None), strict=False)
    given: tuple[Any, ...] = (*(optional_spec(fw, face, *pair) for pair in others), *piece[:3])
    problem = faces.fused(face, q, k, v, *window, scale, *given)
    checks.flag(face, "return_lse", return_lse)
    return problem


def _finer_grid(fw: Framework, face: str, tensors: tuple[Any, ...], piece: Piece) -> finer_grid.Ratio | None:
    """The queries per key on each axis, where they lie on a finer grid; else None."""
    if piece[0] is not None:
        return None
    return finer_grid.ratio_of(*specs(fw, face, ("query", "key"), tensors[:2]))


def _as_heads(
    fw: Framework,
    face: str,
    ratio: finer_grid.Ratio,
    tensors: tuple[Any, ...],
    window: Window,
    scale: Any,
    piece: Piece,
    return_lse: Any,
    backend: str,
    where: Stream,
) -> Any:
    """:func:`fused` of queries on a finer grid, which become heads on the keys' grid."""
    xp, (query, *keys, rpb) = fw.operations, tensors[:_GIVEN]
    with fw.on(where):
        query, rpb = to_heads(xp, query, ratio), repeat_rpb(xp, rpb, ratio)
    tensors, mask = (query, *keys, rpb), tensors[_GIVEN:]
    found = fused(fw, face, tensors, window, scale, piece, return_lse, backend, {}, where, *mask)
    with fw.on(where):
        if return_lse:
            return from_heads(xp, found[0], ratio), from_heads(xp, found[1], ratio)
        return from_heads(xp, found, ratio)


def _unrolled(
    fw: Framework,
    face: str,
    op: Op,
    tensors: tuple[Any, ...],
    keys: int,
    window: Window,
    piece: Piece,
    where: Stream,
) -> tuple[tuple[Any, ...], Piece]:
    """Tensors and piece of a call on axes that wrap around. keys: how many tensors of keys follow the first tensor."""
    names = op.input_names[:2]
    sides = dict(zip(names, specs(fw, face, names, tensors[:2]), strict=True))
    masks = tensors[_GIVEN:]
    mask = fw.spec(face, KEY_MASK.name, masks[0]) if masks else None
    axes, longer = wrap.unrolled_axes(face, sides, faces.rank_of(face), window, piece[:3], piece[3], mask)
    if axes:
        with fw.on(where):
            ends = [repeat_ends(fw.operations, tensor, axes) for tensor in tensors[1 : 1 + keys]]
            masks = tuple(repeat_ends(fw.operations, tensor, axes) for tensor in masks)
        tensors = (tensors[0], *ends, *tensors[1 + keys : _GIVEN], *masks)
    return tensors, (*longer, False)


def qk(
    fw: Framework,
    face: str,
    tensors: tuple[Any, ...],
    window: Window,
    scale: Any,
    piece: Piece,
    backend: Any,
    stream: Any = None,
) -> Tensor:
    """``na{1,2,3}d_qk``. tensors: query, key, rpb or None."""
    chosen, where = fw.BACKENDS.resolve(face, backend), fw.stream_of(face, stream)
    tensors = fw.cast(tensors)
    if piece[3] is not False:
        tensors, piece = _unrolled(fw, face, QK, tensors, 1, window, piece, where)
    query, key, rpb = tensors
    kernel_size, stride, dilation, is_causal = window
    q, k = specs(fw, face, ("query", "key"), (query, key))
    rpb_spec = optional_spec(fw, face, "rpb", rpb)
    problem = faces.qk(face, q, k, kernel_size, dilation, stride, is_causal, scale, rpb_spec, *piece[:3])
    return fw.run(problem, chosen, where, (query, key, rpb))[0]


def av(
    fw: Framework,
    face: str,
    tensors: tuple[Any, ...],
    window: Window,
    piece: Piece,
    backend: Any,
    stream: Any = None,
) -> Tensor:
    """``na{1,2,3}d_av``. tensors: attn and value."""
    chosen, where = fw.BACKENDS.resolve(face, backend), fw.stream_of(face, stream)
    tensors = fw.cast(tensors)
    if piece[3] is not False:
        tensors, piece = _unrolled(fw, face, AV, tensors, 1, window, piece, where)
    attn, value = tensors
    kernel_size, stride, dilation, is_causal = window
    a, v = specs(fw, face, ("attn", "value"), (attn, value))
    problem = faces.av(face, a, v, kernel_size, dilation, stride, is_causal, *piece[:3])
    with fw.on(where):
        attn = fw.operations.astype(attn, value.dtype)
    return fw.run(problem, chosen, where, (attn, value))[0]


def full(
    fw: Framework,
    face: str,
    tensors: tuple[Any, ...],
    is_causal: Any,
    scale: Any,
    lengths: tuple[Any, Any],
    packed: tuple[Any, ...],
    return_lse: Any,
    backend: Any,
    upstream: dict[str, Any],
    stream: Any = None,
) -> Any:
    """``attention``. lengths: seqlens_Q and seqlens_KV; packed: the cumulative and the longest ones."""
    backends.accept_knobs(face, upstream)
    chosen, where = fw.BACKENDS.resolve(face, backend), fw.stream_of(face, stream)
    tensors = fw.cast(tensors)
    q, k, v = specs(fw, face, FULL.input_names, tensors)
    problem = faces.full(face, q, k, v, is_causal, scale)
    with_lse = checks.flag(face, "return_lse", return_lse)
    if checks.varlen.packs(lengths, packed):
        out, lse = attend_packed(fw, face, problem, tensors, lengths, packed, chosen, where)
    else:
        out, lse = fw.run(problem, chosen, where, tensors)
    return (out, lse) if with_lse else out


def merge(
    fw: Framework, outputs: Any, lses: Any, upstream: dict[str, Any], stream: Any = None
) -> tuple[Tensor, Tensor]:
    """``merge_attentions``."""
    face = "merge_attentions"
    lses = checks.merged_lses(face, lses, upstream)
    backends.accept_knobs(face, upstream)
    where = fw.stream_of(face, stream)
    outputs, lses = checks.merge_parts(face, "outputs", outputs), checks.merge_parts(face, "lses", lses)
    checks.check_merge(
        face,
        [fw.spec(face, f"outputs[{i}]", out) for i, out in enumerate(outputs)],
        [fw.spec(face, f"lses[{i}]", lse) for i, lse in enumerate(lses)],
    )
    with fw.on(where):
        return _merged(fw.operations, outputs, lses)


def _merged(xp: Operations, outputs: Tensors, lses: Tensors) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(xp, outputs[0])
    stacked = xp.stack([xp.astype(lse, dtype) for lse in lses])
    top = largest(xp, stacked, 0, False)
    empty = top == -math.inf
    # Where all parts are empty, 0 replaces the exponents, so that no NaN reaches a gradient.
    top = xp.where(empty, 0.0, top)
    weights = xp.where(empty, 0.0, xp.exp(stacked - top))
    total = xp.where(empty, 1.0, weights.sum(0))
    parts = xp.stack([xp.astype(out, dtype) for out in outputs])
    parts = xp.where((stacked == -math.inf)[..., None], 0.0, parts)
    out = (weights[..., None] * parts).sum(0) / total[..., None]
    lse = xp.where(empty, -math.inf, top + xp.log(total))
    return xp.astype(out, outputs[0].dtype), lse


def explain(
    fw: Framework, op: Any, query: Any, key: Any, value: Any, arguments: dict[str, Any], stream: Stream = None
) -> str:
    """``explain``. arguments: the other arguments of the op's face."""
    face = "explain"
    chosen, where = fw.BACKENDS.resolve(face, arguments.pop("backend", None)), fw.stream_of(face, stream)
    tensors = (("query", query), ("key", key), ("value", value))
    known = [optional_spec(fw, face, name, tensor) for name, tensor in tensors]
    given = {n: optional_spec(fw, face, n, a) if n in faces.TENSOR_ARGUMENTS else a for n, a in arguments.items()}
    problem = faces.explained(face, op, known, given)
    return planning.explain(fw.plan_on(query, where, problem, chosen))
