"""The public functions: each checks its problem, asks for a plan, and runs it.

Layout is heads-last: query ``[B, *shape, H, D]``, key ``[B, *shape, H_kv, D]``, value ``[B, *shape,
H_kv, D_v]``. Every float dtype; 16-bit inputs are computed in float32 and rounded once.
"""

import math
from typing import Any

import mlx.core as mx

from . import _autodiff as _transforms
from . import _signatures
from ._config import BACKENDS
from ._device import machine
from ._launch import nanobind
from ._metal.api.recall import Recall, Signature, exactly
from ._metal.plan import backends
from ._metal.plan import plan as planning
from ._metal.plan.programs import DenseOperations
from ._metal.problem import checks, checks_varlen, faces
from ._metal.problem.problem import INPUTS, Problem
from ._plain import dense as _dense
from ._signatures import Bools, Ints, Result
from ._tensors import StreamOrDevice, compute_dtype, exp, optional_spec, spec, stream_of


def _run(
    problem: Problem, backend: str, stream: mx.Stream, tensors: tuple[mx.array | None, ...],
    signature: Signature | None = None,
) -> tuple[mx.array, ...]:  # fmt: skip
    """Plan and launch; ``tensors`` in the order of ``INPUTS[problem.op]``.

    signature: under which the C++ extension's plan is kept for calls like this one.
    """
    planned = machine().plan_on(stream, problem, backend)
    if not isinstance(planned.forward, DenseOperations):
        return _transforms.run(planned, stream, tensors, signature)
    given: Any = tensors
    with mx.stream(stream):
        if problem.op == "qk":
            return (_dense.qk(problem, *given),)
        if problem.op == "av":
            return (_dense.av(problem, *given),)
        return _dense.forward(problem, *given)


def _fused(
    face: str, tensors: tuple[Any, ...], window: tuple[Any, ...], scale: Any, return_lse: bool, backend: Any,
    stream: Any, upstream: dict[str, Any],
) -> Any:  # fmt: skip
    """The body of every fused face. tensors: query, key, value, additional keys and values, rpb."""
    backends.accept_knobs(face, upstream)
    chosen, where = BACKENDS.resolve(face, backend), stream_of(face, stream)
    told = exactly((*window, scale, return_lse))
    extension = machine().nanobind
    signature = extension.signature(face, chosen, where, tensors, told)
    known = extension.remembered.get(signature)
    if known is not None:
        out, lse = nanobind.repeat(known, tensors[:3], where, extension)
        return (out, lse) if return_lse else out
    problem: Problem = _checked.get_or_make(
        _likeness(face, tensors, told), lambda: _checked_problem(face, tensors, window, scale, return_lse)
    )
    if problem.additional == 0:
        # MLX gathers nothing from arrays without elements.
        tensors = (*tensors[:3], None, None, tensors[5])
    out, lse = _run(problem, chosen, where, tensors, signature)
    return (out, lse) if return_lse else out


_checked = Recall()


def _likeness(face: str, tensors: tuple[Any, ...], told: Signature | None) -> Signature | None:
    """What two calls have in common that pass the same checks; None: not worth keeping."""
    if told is None or any(type(tensor) not in (mx.array, type(None)) for tensor in tensors):
        return None
    return face, tuple(None if tensor is None else (tensor.shape, tensor.dtype) for tensor in tensors), told


def _checked_problem(
    face: str, tensors: tuple[Any, ...], window: tuple[Any, ...], scale: Any, return_lse: bool
) -> Problem:
    """The problem of a fused face, whose arguments are checked."""
    names = INPUTS["na"]
    query, key, value = (spec(face, name, t) for name, t in zip(names[:3], tensors[:3], strict=True))
    keys, values, rpb = (optional_spec(face, name, t) for name, t in zip(names[3:], tensors[3:], strict=True))
    kernel_size, stride, dilation, is_causal = window
    problem = faces.fused(
        face, query, key, value, kernel_size, stride, dilation, is_causal, scale, keys, values, rpb
    )  # fmt: skip
    checks.flag(face, "return_lse", return_lse)
    return problem


@_signatures.fused
def neighborhood_attention(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    kernel_size: Ints,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Bools = False,
    scale: float | None = None,
    *,
    additional_keys: mx.array | None = None,
    additional_values: mx.array | None = None,
    rpb: mx.array | None = None,
    return_lse: bool = False,
    backend: str | None = None,
    stream: StreamOrDevice = None,
    **upstream: Any,
) -> Result:
    """Neighborhood attention of any rank: each query attends to a window of keys around it.

    Args:
        query: ``[B, *shape, H, D]``, shape of 1, 2 or 3 axes; float16, bfloat16, float32 or float64.
        key: ``[B, *shape, H_kv, D]``; query head h reads key/value head ``h // (H / H_kv)``.
        value: ``[B, *shape, H_kv, D_v]``.
        kernel_size: keys per query on each axis, odd or even, at least 1.
        stride: queries that share one window (1 <= stride <= kernel_size); the output keeps its size.
        dilation: distance between neighbors, in tokens; ``kernel_size * dilation <= length``.
        is_causal: per axis, whether a query sees only itself and what lies before it.
        scale: factor on q.k; None is ``D ** -0.5``.
        additional_keys, additional_values: ``[B, S, H_kv, D]`` and ``[B, S, H_kv, D_v]``, seen by every
            query, in the same softmax.
        rpb: relative positional bias ``[H, 2 * kernel_size - 1 per axis]``, added to the logits at
            index ``(key - query) / dilation + kernel_size - 1``; stride 1 only.
        return_lse: also return the log-sum-exp of the logits.
        backend: 'nanobind', 'fast_metal' (or 'metal'), 'pure', 'dense' or 'auto'; None follows :func:`use_backend`.
        stream: where to run: a stream, a device, or None for the default. float64 runs on a CPU stream.
        **upstream: tuning arguments of upstream's CUDA kernels, accepted and ignored.

    Returns:
        Output ``[B, *shape, H, D_v]`` in the query's dtype; with ``return_lse`` also lse
        ``[B, *shape, H]`` in float32 (float64 for float64), natural log, scale included, differentiable.

    Raises:
        TypeError: a wrong type, or dtypes that differ. ValueError: any other broken rule.
        NotImplementedError: no path takes the problem, or ``backend`` cannot.

    Source: Neighborhood Attention Transformer (arXiv 2204.07143), dilation (arXiv 2209.15001), stride
    as in Generalized Neighborhood Attention (arXiv 2504.16922); upstream NATTEN's ``na1d/na2d/na3d``.
    """
    tensors = (query, key, value, additional_keys, additional_values, rpb)
    window = (kernel_size, stride, dilation, is_causal)
    return _fused("neighborhood_attention", tensors, window, scale, return_lse, backend, stream, upstream)


@_signatures.fused
def na1d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | None = None, *, additional_keys: mx.array | None = None,
    additional_values: mx.array | None = None, rpb: mx.array | None = None, return_lse: bool = False,
    backend: str | None = None, stream: StreamOrDevice = None, **upstream: Any,
) -> Result:  # fmt: skip
    """:func:`neighborhood_attention` of sequences: query ``[B, L, H, D]``."""
    tensors = (query, key, value, additional_keys, additional_values, rpb)
    return _fused(
        "na1d", tensors, (kernel_size, stride, dilation, is_causal), scale, return_lse, backend, stream, upstream
    )


@_signatures.fused
def na2d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | None = None, *, additional_keys: mx.array | None = None,
    additional_values: mx.array | None = None, rpb: mx.array | None = None, return_lse: bool = False,
    backend: str | None = None, stream: StreamOrDevice = None, **upstream: Any,
) -> Result:  # fmt: skip
    """:func:`neighborhood_attention` of images: query ``[B, X, Y, H, D]``."""
    tensors = (query, key, value, additional_keys, additional_values, rpb)
    return _fused(
        "na2d", tensors, (kernel_size, stride, dilation, is_causal), scale, return_lse, backend, stream, upstream
    )


@_signatures.fused
def na3d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | None = None, *, additional_keys: mx.array | None = None,
    additional_values: mx.array | None = None, rpb: mx.array | None = None, return_lse: bool = False,
    backend: str | None = None, stream: StreamOrDevice = None, **upstream: Any,
) -> Result:  # fmt: skip
    """:func:`neighborhood_attention` of volumes or video: query ``[B, X, Y, Z, H, D]``."""
    tensors = (query, key, value, additional_keys, additional_values, rpb)
    return _fused(
        "na3d", tensors, (kernel_size, stride, dilation, is_causal), scale, return_lse, backend, stream, upstream
    )


def _qk(
    face: str, query: Any, key: Any, kernel_size: Any, dilation: Any, stride: Any, is_causal: Any, scale: Any,
    rpb: Any, backend: Any, stream: Any,
) -> mx.array:  # fmt: skip
    """Logits of the window slots: ``[B, *shape, H, prod(kernel_size)]`` in the query's dtype.

    query ``[B, *shape, H, D]``, key ``[B, *shape, H_kv, D]``. Slots are row-major over the window; slot j
    of an axis is the key ``start + j`` of the group. A slot at or past the window's end (causal) is -inf.
    float16 logits may round to inf; the fused op's do not. Differentiable any number of times, forward and reverse; a
    slot that holds no key has a derivative of 0.
    """
    chosen, where = BACKENDS.resolve(face, backend), stream_of(face, stream)
    specs = spec(face, "query", query), spec(face, "key", key)
    bias = optional_spec(face, "rpb", rpb)
    problem = faces.qk(face, *specs, kernel_size, dilation, stride, is_causal, scale, bias)
    return _run(problem, chosen, where, (query, key, rpb))[0]


def _av(
    face: str, attn: Any, value: Any, kernel_size: Any, dilation: Any, stride: Any, is_causal: Any, backend: Any,
    stream: Any,
) -> mx.array:  # fmt: skip
    """Window slots times the values they stand for: ``[B, *shape, H, D_v]`` in the value's dtype.

    attn ``[B, *shape, H, prod(kernel_size)]``, of any float dtype (converted to the value's); value
    ``[B, *shape, H_kv, D_v]``. Slots without a key are never read and get a gradient of zero.
    """
    chosen, where = BACKENDS.resolve(face, backend), stream_of(face, stream)
    specs = spec(face, "attn", attn), spec(face, "value", value)
    problem = faces.av(face, *specs, kernel_size, dilation, stride, is_causal)
    return _run(problem, chosen, where, (attn.astype(value.dtype, stream=where), value))[0]


def na1d_qk(
    query: mx.array, key: mx.array, kernel_size: Ints, dilation: Ints = 1, *, stride: Ints = 1,
    is_causal: Bools = False, scale: float | None = None, rpb: mx.array | None = None, backend: str | None = None,
    stream: StreamOrDevice = None,
) -> mx.array:  # fmt: skip
    """Logits of a sequence's window slots: ``[B, L, H, kernel_size]``."""
    return _qk("na1d_qk", query, key, kernel_size, dilation, stride, is_causal, scale, rpb, backend, stream)


def na2d_qk(
    query: mx.array, key: mx.array, kernel_size: Ints, dilation: Ints = 1, *, stride: Ints = 1,
    is_causal: Bools = False, scale: float | None = None, rpb: mx.array | None = None, backend: str | None = None,
    stream: StreamOrDevice = None,
) -> mx.array:  # fmt: skip
    """Logits of an image's window slots: ``[B, X, Y, H, prod(kernel_size)]``, row-major."""
    return _qk("na2d_qk", query, key, kernel_size, dilation, stride, is_causal, scale, rpb, backend, stream)


def na3d_qk(
    query: mx.array, key: mx.array, kernel_size: Ints, dilation: Ints = 1, *, stride: Ints = 1,
    is_causal: Bools = False, scale: float | None = None, rpb: mx.array | None = None, backend: str | None = None,
    stream: StreamOrDevice = None,
) -> mx.array:  # fmt: skip
    """Logits of a volume's window slots: ``[B, X, Y, Z, H, prod(kernel_size)]``, row-major."""
    return _qk("na3d_qk", query, key, kernel_size, dilation, stride, is_causal, scale, rpb, backend, stream)


def na1d_av(
    attn: mx.array, value: mx.array, kernel_size: Ints, dilation: Ints = 1, *, stride: Ints = 1,
    is_causal: Bools = False, backend: str | None = None, stream: StreamOrDevice = None,
) -> mx.array:  # fmt: skip
    """A sequence's window slots times their values: ``[B, L, H, D_v]``."""
    return _av("na1d_av", attn, value, kernel_size, dilation, stride, is_causal, backend, stream)


def na2d_av(
    attn: mx.array, value: mx.array, kernel_size: Ints, dilation: Ints = 1, *, stride: Ints = 1,
    is_causal: Bools = False, backend: str | None = None, stream: StreamOrDevice = None,
) -> mx.array:  # fmt: skip
    """An image's window slots times their values: ``[B, X, Y, H, D_v]``."""
    return _av("na2d_av", attn, value, kernel_size, dilation, stride, is_causal, backend, stream)


def na3d_av(
    attn: mx.array, value: mx.array, kernel_size: Ints, dilation: Ints = 1, *, stride: Ints = 1,
    is_causal: Bools = False, backend: str | None = None, stream: StreamOrDevice = None,
) -> mx.array:  # fmt: skip
    """A volume's window slots times their values: ``[B, X, Y, Z, H, D_v]``."""
    return _av("na3d_av", attn, value, kernel_size, dilation, stride, is_causal, backend, stream)


@_signatures.full
def attention(
    query: mx.array,
    key: mx.array,
    value: mx.array,
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
    stream: StreamOrDevice = None,
    **upstream: Any,
) -> Result:
    """Full attention of sequences: query ``[B, S, H, D]``, key ``[B, S_kv, H_kv, D]``, value ``[.., D_v]``.

    is_causal: query i sees keys 0..i (aligned at the top left when S != S_kv). Otherwise as
    :func:`neighborhood_attention`: output ``[B, S, H, D_v]``, and lse ``[B, S, H]`` with ``return_lse``.

    Packed (B is 1): sequences behind one another, each as if alone. seqlens_Q, seqlens_KV: their lengths, ints
    ``[n]``; or cumulative_seqlen_Q, cumulative_seqlen_KV ``[n + 1]`` with max_seqlen_Q, max_seqlen_KV, as
    :func:`natten_mlx.generate_varlen_parameters` makes them. Tokens behind the last sequence, and queries of a
    sequence without keys, give 0 and lse -inf. The numbers are read on the host. Lengths win over cumulative ones.
    """
    backends.accept_knobs("attention", upstream)
    chosen, where = BACKENDS.resolve("attention", backend), stream_of("attention", stream)
    tensors = (query, key, value)
    q, k, v = (spec("attention", name, t) for name, t in zip(INPUTS["attention"], tensors, strict=True))
    problem = faces.full("attention", q, k, v, is_causal, scale)
    with_lse = checks.flag("attention", "return_lse", return_lse)
    packed = (cumulative_seqlen_Q, cumulative_seqlen_KV, max_seqlen_Q, max_seqlen_KV)
    lengths = (seqlens_Q, seqlens_KV)
    if checks_varlen.packs(lengths, packed):
        from .varlen import attend_packed

        out, lse = attend_packed(problem, tensors, lengths, packed, chosen, where)
    else:
        out, lse = _run(problem, chosen, where, tensors)
    return (out, lse) if with_lse else out


def merge_attentions(
    outputs: list[mx.array], lses: list[mx.array] | None = None, *, stream: StreamOrDevice = None, **upstream: Any
) -> tuple[mx.array, mx.array]:
    """Attention over the union of disjoint sets of keys, from its parts.

    outputs: ``[B, *shape, H, D_v]`` each; lses (or lse_tensors, as upstream calls them): ``[B, *shape, H]`` each.
    out = sum_i exp(lse_i - lse) * out_i with lse = log sum_i exp(lse_i), accumulated in float32 (float64 for
    float64), out in the parts' dtype. A part with lse -inf contributes 0; where all are -inf: out 0, lse -inf,
    gradients 0.
    """
    face = "merge_attentions"
    lses = faces.merged_lses(face, lses, upstream)
    backends.accept_knobs(face, upstream)
    where = stream_of(face, stream)
    outputs, lses = checks.merge_parts(face, "outputs", outputs), checks.merge_parts(face, "lses", lses)
    checks.check_merge(
        face,
        [spec(face, f"outputs[{i}]", out) for i, out in enumerate(outputs)],
        [spec(face, f"lses[{i}]", lse) for i, lse in enumerate(lses)],
    )
    with mx.stream(where):
        return _merge(outputs, lses)


def _merge(outputs: list[mx.array], lses: list[mx.array]) -> tuple[mx.array, mx.array]:
    dtype = compute_dtype(outputs[0])
    stacked = mx.stack([lse.astype(dtype) for lse in lses])
    top = mx.stop_gradient(stacked.max(0))
    empty = top == -math.inf
    # Where every part is empty, exponents of 0 stand in, so that no NaN reaches a gradient.
    top = mx.where(empty, 0.0, top)
    weights = mx.where(empty, 0.0, exp(stacked - top))
    total = mx.where(empty, 1.0, weights.sum(0))
    parts = mx.stack([out.astype(dtype) for out in outputs])
    parts = mx.where((stacked == -math.inf)[..., None], 0.0, parts)
    out = (weights[..., None] * parts).sum(0) / total[..., None]
    lse = mx.where(empty, -math.inf, top + mx.log(total))
    return out.astype(outputs[0].dtype), lse


def explain(op: str, query: mx.array, key: mx.array, value: mx.array | None = None, **arguments: Any) -> str:
    """What a call would run and why, in words: ``explain("na2d", q, k, v, kernel_size=7)``.

    op: a face's name; the tensors and arguments are the face's (for ``na2d_av``: attn, value).
    """
    chosen = BACKENDS.resolve("explain", arguments.pop("backend", None))
    where = stream_of("explain", arguments.pop("stream", None))
    specs = [optional_spec("explain", name, t) for name, t in (("query", query), ("key", key), ("value", value))]
    given = {n: optional_spec("explain", n, a) if n in faces.TENSOR_ARGUMENTS else a for n, a in arguments.items()}
    problem = faces.explained(op, specs, given)
    return planning.explain(machine().plan_on(where, problem, chosen))


def __getattr__(name: str) -> Any:
    """The varlen ops, which natten-mlx 0.3 had here."""
    if name in ("na1d_varlen", "na2d_varlen", "na3d_varlen"):
        from . import varlen

        return getattr(varlen, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
