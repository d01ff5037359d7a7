"""From a face's arguments to its problem: what the public functions of both packages share.

Each function takes the face's name (for messages), specs of its tensors, and the raw arguments; it
raises the errors of :mod:`.checks` or returns the :class:`Problem`.
"""

from typing import Any

from . import checks, finer_grid, wrap
from .ops import AV, FULL, FUSED, KEY_MASK, OPS, QK, Op
from .problem import Problem, TensorSpec

Spec = TensorSpec


def rank_of(face: str) -> int | None:
    """The rank in a face's name ('na2d_qk' -> 2); None for faces of any rank."""
    return int(face[2]) if face[2:3].isdigit() and face[3:4] == "d" else None


def fused(
    face: str,
    query: Spec,
    key: Spec,
    value: Spec,
    kernel_size: Any,
    stride: Any,
    dilation: Any,
    is_causal: Any,
    scale: Any,
    additional_keys: Spec | None = None,
    additional_values: Spec | None = None,
    rpb: Spec | None = None,
    key_mask: Spec | None = None,
    full_shape: Any = None,
    query_start: Any = 0,
    key_start: Any = 0,
) -> Problem:
    """The problem of ``na{1,2,3}d`` and ``neighborhood_attention``."""
    rank = checks.tensor_rank(face, "query", query, rank_of(face))
    window = checks.window_arguments(face, rank, kernel_size, stride, dilation, is_causal)
    factor = checks.scale_or_default(face, scale, query.shape[-1])
    piece = checks.piece_arguments(face, rank, full_shape, query_start, key_start)
    optional = additional_keys, additional_values, rpb, key_mask
    return checks.fused_problem(face, query, key, value, window, factor, *optional, piece)


def qk(
    face: str,
    query: Spec,
    key: Spec,
    kernel_size: Any,
    dilation: Any,
    stride: Any,
    is_causal: Any,
    scale: Any,
    rpb: Spec | None = None,
    full_shape: Any = None,
    query_start: Any = 0,
    key_start: Any = 0,
) -> Problem:
    """The problem of ``na{1,2,3}d_qk``."""
    rank = checks.tensor_rank(face, "query", query, rank_of(face))
    window = checks.window_arguments(face, rank, kernel_size, stride, dilation, is_causal)
    factor = checks.scale_or_default(face, scale, query.shape[-1])
    piece = checks.piece_arguments(face, rank, full_shape, query_start, key_start)
    return checks.qk_problem(face, query, key, window, factor, rpb, piece)


def av(
    face: str,
    attn: Spec,
    value: Spec,
    kernel_size: Any,
    dilation: Any,
    stride: Any,
    is_causal: Any,
    full_shape: Any = None,
    query_start: Any = 0,
    key_start: Any = 0,
) -> Problem:
    """The problem of ``na{1,2,3}d_av``."""
    rank = checks.tensor_rank(face, "attn", attn, rank_of(face))
    window = checks.window_arguments(face, rank, kernel_size, stride, dilation, is_causal)
    piece = checks.piece_arguments(face, rank, full_shape, query_start, key_start)
    return checks.av_problem(face, attn, value, window, piece)


def full(face: str, query: Spec, key: Spec, value: Spec, is_causal: Any, scale: Any) -> Problem:
    """The problem of ``attention``."""
    checks.tensor_rank(face, "query", query, 1)
    (causal,) = checks.bools_per_axis(face, "is_causal", is_causal, 1)
    factor = checks.scale_or_default(face, scale, query.shape[-1])
    return checks.full_problem(face, query, key, value, causal, factor)


# full_shape, query_start, key_start and wrap of a call that computes a whole problem and does not wrap.
WHOLE: tuple[Any, Any, Any, Any] = (None, 0, 0, False)


def are_defaults(piece: tuple[Any, ...]) -> bool:
    """Whether full_shape, query_start and key_start are the objects of :data:`WHOLE`: a cheap test for most calls.

    By identity: False, which equals 0, is not legal.
    """
    return piece[0] is None and piece[1] is WHOLE[1] and piece[2] is WHOLE[2]


_WINDOW = {"stride": 1, "dilation": 1, "is_causal": False}
_WINDOW |= dict(zip(("full_shape", "query_start", "key_start", "wrap"), WHOLE, strict=True))
# What the faces of each op take besides query, key and value: names and defaults; kernel_size has none.
_ARGUMENTS: dict[Op, dict[str, Any]] = {
    FUSED: _WINDOW | dict.fromkeys(("scale", *FUSED.input_names[3:])),
    QK: _WINDOW | dict.fromkeys(("scale", *QK.input_names[2:])),
    AV: dict(_WINDOW),
    FULL: {"is_causal": False, "scale": None},
}

_PROBLEMS: dict[Op, Any] = {FUSED: fused, QK: qk, AV: av, FULL: full}
# The arguments of faces that are tensors, besides query, key and value.
TENSOR_ARGUMENTS = FUSED.input_names[3:]
_OP_OF = {face: op for op in OPS.values() for face in op.faces if face}
FACES = tuple(sorted(_OP_OF, key=lambda face: rank_of(face) or 0))


def explained(asked: str, face: str, specs: list[Spec | None], arguments: dict[str, Any]) -> Problem:
    """The problem that ``asked`` ('explain', ...) is asked about; tensors among ``arguments`` are specs already."""
    checks.check_explained(asked, face, FACES)
    op = _OP_OF[face]
    known = _ARGUMENTS[op]
    if not op.bilinear:  # what runs does not depend on whether lse is returned
        checks.flag(asked, "return_lse", arguments.pop("return_lse", False))
    tensors = specs[:2] if op.bilinear else specs
    window = {"kernel_size"} if op.has_window else set()
    checks.check_explained_arguments(asked, face, set(arguments), set(known) | window, op.has_window, tensors)
    call = known | arguments
    if op.has_window:
        tensors = _on_one_grid(op, face, list(tensors), call)
    problem: Problem = _PROBLEMS[op](face, *tensors, **call)
    return problem


def _on_one_grid(op: Op, face: str, tensors: list[Any], call: dict[str, Any]) -> list[Any]:
    """The tensors of the call that runs instead where queries lie on a finer grid or axes wrap; ``call`` is updated."""
    wraps = call.pop("wrap")
    ratio = finer_grid.ratio_of(*tensors[:2]) if op is FUSED and call["full_shape"] is None else None
    if ratio is not None:
        tensors[0] = finer_grid.query_spec(tensors[0], ratio)
        call["rpb"] = finer_grid.rpb_spec(call["rpb"], ratio)
    if wraps is not False:
        window = tuple(call[name] for name in ("kernel_size", "stride", "dilation", "is_causal"))
        names = ("full_shape", "query_start", "key_start")
        sides = dict(zip(op.input_names, tensors[:2], strict=False))
        mask = call.get(KEY_MASK.name)
        piece = tuple(call[name] for name in names)
        axes, piece = wrap.unrolled_axes(face, sides, rank_of(face), window, piece, wraps, mask)
        call |= dict(zip(names, piece, strict=True))
        tensors = [tensors[0], *(wrap.longer_spec(spec, axes) for spec in tensors[1:])]
        if mask is not None:
            call[KEY_MASK.name] = wrap.longer_spec(mask, axes)
    return tensors
