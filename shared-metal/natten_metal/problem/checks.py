"""The rules of a legal problem, and the one place where their errors are worded.

Each message names the op, the rule, what came, and (for axes) which axis breaks it. TypeError: a
wrong type. ValueError: everything else that is illegal. NotImplementedError: legal, but no path takes
it; the message names the alternative.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

from .arguments import bools_per_axis as bools_per_axis
from .arguments import flag as flag
from .arguments import ints_per_axis as ints_per_axis
from .arguments import reject_type as reject_type
from .arguments import scale_or_default as scale_or_default
from .ops import AV, FULL, FUSED, QK
from .problem import DTYPES, RANKS, Problem, TensorSpec

Sizes = tuple[tuple[int, ...], ...]


def require_float(face: str, name: str, dtype: str) -> None:
    """Attention takes floating-point tensors only."""
    if dtype not in DTYPES:
        raise TypeError(f"{face}: {name} must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}; got {dtype}")


# --- how tensors must agree ----------------------------------------------------------------------


def tensor_rank(face: str, name: str, spec: TensorSpec, rank: int | None) -> int:
    """The number of axes of a heads-last tensor ``[batch, *shape, heads, dim]``."""
    found = len(spec.shape) - 3
    if rank is None and found not in RANKS:
        raise ValueError(
            f"{face}: {name} must be [batch, *shape, heads, dim] with 1, 2 or 3 axes in shape; got {spec.shape}"
        )
    if rank is not None and found != rank:
        axes = ", ".join("XYZ"[:rank]) if rank > 1 else "L"
        raise ValueError(f"{face}: {name} must be [batch, {axes}, heads, dim] ({rank + 3}-D); got {spec.shape}")
    return found


def _same(face: str, what: str, values: dict[str, Any], error: type[Exception] = ValueError) -> None:
    # Sizes may be symbols of a compiler, which can be compared and not hashed.
    first, *others = values.values()
    if any(other != first for other in others):
        names, found = list(values), [str(value) for value in values.values()]
        raise error(f"{face}: {_listed(names)} must share one {what}; got {_listed(found)}")


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _no_zero(face: str, sizes: dict[str, Any]) -> None:
    for what, size in sizes.items():
        if size == 0 or (isinstance(size, tuple) and 0 in size):
            raise ValueError(f"{face}: {what} must not be zero; got {size}")


def _heads(face: str, heads: int, kv_heads: int) -> None:
    if heads % kv_heads:
        raise ValueError(f"{face}: query heads must be a multiple of key/value heads; got {heads} and {kv_heads}")


def _rpb(face: str, rpb: TensorSpec, heads: int, kernel_size: tuple[int, ...], stride: tuple[int, ...]) -> None:
    wanted = (heads, *(2 * w - 1 for w in kernel_size))
    if rpb.shape != wanted:
        raise ValueError(f"{face}: rpb must be [heads, 2 * kernel_size - 1 per axis] = {wanted}; got {rpb.shape}")
    check_bias_stride(face, "rpb", stride)


def check_bias_stride(face: str, name: str, stride: tuple[int, ...]) -> None:
    """NotImplementedError: a bias table by relative position goes with stride 1."""
    if any(s > 1 for s in stride):
        raise NotImplementedError(f"{face}: {name} is defined for stride 1 only; got stride {stride}. Use stride=1")


def _additional(face: str, keys: TensorSpec | None, values: TensorSpec | None, problem: Problem) -> int:
    if keys is None and values is None:
        return 0
    if keys is None or values is None:
        missing = "additional_keys" if keys is None else "additional_values"
        raise ValueError(f"{face}: additional_keys and additional_values come together; {missing} is missing")
    p = problem
    for name, spec, dim in (
        ("additional_keys", keys, p.head_dim),
        ("additional_values", values, p.head_dim_v),
    ):
        found = spec.shape
        if len(found) != 4 or (found[0], *found[2:]) != (p.batch, p.kv_heads, dim):
            raise ValueError(
                f"{face}: {name} must be [batch, any number, kv heads, dim] = "
                f"({p.batch}, any, {p.kv_heads}, {dim}); got {found}"
            )
    if keys.shape[1] != values.shape[1]:
        raise ValueError(
            f"{face}: additional_keys and additional_values must be equally many; "
            f"got {keys.shape[1]} and {values.shape[1]}"
        )
    return keys.shape[1]


def check_window(face: str, kernel_size: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> None:
    """The rules of a window on any axis: w, s, d >= 1; s <= w."""
    for name, values in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation)):
        for axis, value in enumerate(values):
            if value < 1:
                raise ValueError(f"{face}: {name} must be at least 1; axis {axis} has {value}")
    for axis, (w, s) in enumerate(zip(kernel_size, stride, strict=True)):
        if s > w:
            raise ValueError(f"{face}: stride must not exceed kernel_size; axis {axis} has {s} > {w}")


def check_axes(
    face: str,
    shape: tuple[int, ...],
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> None:
    """:func:`check_window`, and w * d <= L on each axis."""
    check_window(face, kernel_size, stride, dilation)
    for axis, (length, w, d) in enumerate(zip(shape, kernel_size, dilation, strict=True)):
        if w * d > length:
            raise ValueError(
                f"{face}: kernel_size * dilation must not exceed the axis length; "
                f"axis {axis} has {w} * {d} = {w * d} > {length}"
            )


# --- problems ------------------------------------------------------------------------------------

Window = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[bool, ...]]


def window_arguments(face: str, rank: int, kernel_size: Any, stride: Any, dilation: Any, is_causal: Any) -> Window:
    """The four window arguments, one entry per axis each, types checked."""
    return (
        ints_per_axis(face, "kernel_size", kernel_size, rank),
        ints_per_axis(face, "stride", stride, rank),
        ints_per_axis(face, "dilation", dilation, rank),
        bools_per_axis(face, "is_causal", is_causal, rank),
    )


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
) -> Problem:
    """The problem of ``na1d``, ``na2d``, ``na3d``; raises if the tensors or the window break a rule."""
    rank = len(query.shape) - 3
    tensor_rank(face, "key", key, rank)
    tensor_rank(face, "value", value, rank)
    given = {"query": query, "key": key, "value": value}
    extras = {"additional_keys": additional_keys, "additional_values": additional_values}
    given |= {name: spec for name, spec in extras.items() if spec is not None}
    _agree(face, given, rpb)
    _same(face, "shape", {name: given[name].shape[1:-2] for name in ("query", "key", "value")})
    problem = _heads_last(FUSED.name, face, query, key, value, window, scale)
    check_axes(face, problem.query_shape, *window[:3])
    additional = _additional(face, additional_keys, additional_values, problem)
    if rpb is not None:
        _rpb(face, rpb, problem.heads, window[0], window[1])
    return replace(problem, additional=additional, has_rpb=rpb is not None)


def qk_problem(
    face: str, query: TensorSpec, key: TensorSpec, window: Window, scale: float, rpb: TensorSpec | None = None
) -> Problem:
    """The problem of the split op ``na{1,2,3}d_qk``: logits of each query's window slots."""
    tensor_rank(face, "key", key, len(query.shape) - 3)
    given = {"query": query, "key": key}
    _agree(face, given, rpb)
    _same(face, "shape", {name: spec.shape[1:-2] for name, spec in given.items()})
    problem = _heads_last(QK.name, face, query, key, None, window, scale)
    check_axes(face, problem.query_shape, *window[:3])
    if rpb is not None:
        _rpb(face, rpb, problem.heads, window[0], window[1])
    return replace(problem, has_rpb=rpb is not None)


def av_problem(face: str, attn: TensorSpec, value: TensorSpec, window: Window) -> Problem:
    """The problem of the split op ``na{1,2,3}d_av``: weights of window slots times values."""
    tensor_rank(face, "value", value, len(attn.shape) - 3)
    _same(face, "batch size", {"attn": attn.shape[0], "value": value.shape[0]})
    _same(face, "device", {"attn": attn.device, "value": value.device})
    _same(face, "shape", {"attn": attn.shape[1:-2], "value": value.shape[1:-2]})
    slots = math.prod(window[0])
    if attn.shape[-1] != slots:
        raise ValueError(f"{face}: attn must have prod(kernel_size) = {slots} slots; got {attn.shape[-1]}")
    shape, heads, kv_heads = attn.shape[1:-2], attn.shape[-2], value.shape[-2]
    _no_zero(face, {"shape": shape, "heads": heads, "value heads": kv_heads, "value head_dim": value.shape[-1]})
    _heads(face, heads, kv_heads)
    check_axes(face, shape, *window[:3])
    return Problem(
        AV.name, attn.shape[0], shape, shape, heads, kv_heads, 0, value.shape[-1], *window, 1.0, value.dtype
    )  # fmt: skip


def full_problem(
    face: str, query: TensorSpec, key: TensorSpec, value: TensorSpec, is_causal: bool, scale: float
) -> Problem:
    """The problem of ``attention``: every key in reach, or those up to the query's own index."""
    for name, spec in (("key", key), ("value", value)):
        tensor_rank(face, name, spec, 1)
    _agree(face, {"query": query, "key": key, "value": value}, None)
    _same(face, "sequence length", {"key": key.shape[1], "value": value.shape[1]})
    reach = max(query.shape[1], key.shape[1])
    return _heads_last(FULL.name, face, query, key, value, ((reach,), (1,), (1,), (is_causal,)), scale)


def _agree(face: str, given: dict[str, TensorSpec], rpb: TensorSpec | None) -> None:
    _same(face, "dtype", {name: spec.dtype for name, spec in given.items()}, TypeError)
    devices = {name: spec.device for name, spec in given.items()}
    _same(face, "device", devices if rpb is None else devices | {"rpb": rpb.device})
    _same(face, "batch size", {name: spec.shape[0] for name, spec in given.items() if spec.shape})


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
    _same(face, "head_dim", {"query": head_dim, "key": key.shape[-1]})
    if value is not None:
        _same(face, "number of heads", {"key": kv_heads, "value": value.shape[-2]})
    sizes = {
        "query shape": query.shape[1:-2],
        "key shape": key.shape[1:-2],
        "heads": heads,
        "kv heads": kv_heads,
    }
    sizes |= {"head_dim": head_dim} | ({} if value is None else {"value head_dim": value.shape[-1]})
    _no_zero(face, sizes)
    _heads(face, heads, kv_heads)
    head_dim_v = 0 if value is None else value.shape[-1]
    return Problem(
        op, query.shape[0], query.shape[1:-2], key.shape[1:-2], heads, kv_heads, head_dim, head_dim_v,
        *window, scale, query.dtype,
    )  # fmt: skip


# --- merging -------------------------------------------------------------------------------------


def merge_parts(face: str, name: str, parts: Any) -> list[Any]:
    """The tensors of ``outputs`` or ``lses``; TypeError unless they come as a list or tuple."""
    if not isinstance(parts, (list, tuple)):
        reject_type(face, name, parts, "a list of tensors")
    return list(parts)


def check_merge(face: str, outputs: Sequence[TensorSpec], lses: Sequence[TensorSpec]) -> None:
    """The parts of ``merge_attentions``: equal shapes, one lse each, at least one part."""
    if not outputs or len(outputs) != len(lses):
        raise ValueError(
            f"{face}: outputs and lses must be equally many, at least one; got {len(outputs)} and {len(lses)}"
        )
    _same(face, "shape", {f"outputs[{i}]": spec.shape for i, spec in enumerate(outputs)})
    _same(face, "dtype", {f"outputs[{i}]": spec.dtype for i, spec in enumerate(outputs)}, TypeError)
    for i, (out, lse) in enumerate(zip(outputs, lses, strict=True)):
        if lse.shape != out.shape[:-1]:
            raise ValueError(
                f"{face}: lses[{i}] must be outputs[{i}] without its last axis, {out.shape[:-1]}; got {lse.shape}"
            )


# --- derivatives that no kernel has --------------------------------------------------------------


def reject_second_derivative(name: str) -> NoReturn:
    """The fused kernels differentiate once, in reverse."""
    raise NotImplementedError(f"{name}: second derivatives are not implemented; {_which_have_them(name)}")


def reject_forward_mode(name: str) -> NoReturn:
    """The fused kernels differentiate once, in reverse."""
    raise NotImplementedError(f"{name}: forward-mode derivatives are not implemented; {_which_have_them(name)}")


def _which_have_them(name: str) -> str:
    has_split_ops = name in FUSED.faces[1:]
    return 'use backend="dense"' + (f", or {name}_qk, a softmax and {name}_av" if has_split_ops else "")


NO_VMAP = (
    "mx.vmap over fast_metal kernels is not implemented, for MLX maps no kernel that it was given as text; "
    'use backend="pure", or make the mapped axis part of the batch'
)


def reject_vmap(name: str) -> NoReturn:
    """MLX maps every operation of a function, and has no rule for these kernels, nor takes one from us."""
    raise NotImplementedError(f"{name}: {NO_VMAP}")
