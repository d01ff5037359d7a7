"""From a face's arguments to its problem: what the public functions of both packages share.

Each function takes the face's name (for messages), specs of its tensors, and the raw arguments; it
raises the errors of :mod:`.checks` or returns the :class:`Problem`.
"""

from typing import Any

from . import checks
from .problem import RANKS, Problem, TensorSpec

Spec = TensorSpec


def rank_of(face: str) -> int | None:
    """The rank in a face's name ('na2d_qk' -> 2); None for faces of any rank."""
    return int(face[2]) if face.startswith("na") and face[2:3].isdigit() else None


def fused(
    face: str, query: Spec, key: Spec, value: Spec, kernel_size: Any, stride: Any, dilation: Any, is_causal: Any,
    scale: Any, additional_keys: Spec | None = None, additional_values: Spec | None = None, rpb: Spec | None = None,
) -> Problem:  # fmt: skip
    """The problem of ``na{1,2,3}d`` and ``neighborhood_attention``."""
    rank = checks.tensor_rank(face, "query", query, rank_of(face))
    window = checks.window_arguments(face, rank, kernel_size, stride, dilation, is_causal)
    factor = checks.scale_or_default(face, scale, query.shape[-1])
    return checks.fused_problem(face, query, key, value, window, factor, additional_keys, additional_values, rpb)


def qk(
    face: str, query: Spec, key: Spec, kernel_size: Any, dilation: Any, stride: Any, is_causal: Any, scale: Any,
    rpb: Spec | None = None,
) -> Problem:  # fmt: skip
    """The problem of ``na{1,2,3}d_qk``."""
    rank = checks.tensor_rank(face, "query", query, rank_of(face))
    window = checks.window_arguments(face, rank, kernel_size, stride, dilation, is_causal)
    factor = checks.scale_or_default(face, scale, query.shape[-1])
    return checks.qk_problem(face, query, key, window, factor, rpb)


def av(face: str, attn: Spec, value: Spec, kernel_size: Any, dilation: Any, stride: Any, is_causal: Any) -> Problem:
    """The problem of ``na{1,2,3}d_av``."""
    rank = checks.tensor_rank(face, "attn", attn, rank_of(face))
    window = checks.window_arguments(face, rank, kernel_size, stride, dilation, is_causal)
    return checks.av_problem(face, attn, value, window)


def full(face: str, query: Spec, key: Spec, value: Spec, is_causal: Any, scale: Any) -> Problem:
    """The problem of ``attention``."""
    checks.tensor_rank(face, "query", query, 1)
    (causal,) = checks.bools_per_axis(face, "is_causal", is_causal, 1)
    factor = checks.scale_or_default(face, scale, query.shape[-1])
    return checks.full_problem(face, query, key, value, causal, factor)


def merged_lses(face: str, lses: Any, upstream: dict[str, Any]) -> Any:
    """The second argument of ``merge_attentions``, taken out of ``upstream`` where it has upstream's name there."""
    if "lse_tensors" not in upstream:
        return lses
    if lses is not None:
        raise TypeError(f"{face}: give lses, or lse_tensors as upstream calls them, not both")
    return upstream.pop("lse_tensors")


_WINDOW = {"stride": 1, "dilation": 1, "is_causal": False}
# What each kind of face takes besides its tensors: names and defaults; kernel_size has none.
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "fused": _WINDOW | dict.fromkeys(("scale", "additional_keys", "additional_values", "rpb")),
    "qk": _WINDOW | {"scale": None, "rpb": None},
    "av": dict(_WINDOW),
    "attention": {"is_causal": False, "scale": None},
}
# The arguments of faces that are tensors, besides query, key and value.
TENSOR_ARGUMENTS = ("additional_keys", "additional_values", "rpb")
FACES = ("neighborhood_attention", "attention", *(f"na{r}d{s}" for r in RANKS for s in ("", "_qk", "_av")))


def explained(face: str, specs: list[Spec | None], arguments: dict[str, Any]) -> Problem:
    """The problem that ``explain`` is asked about; tensors among ``arguments`` are specs already."""
    if not isinstance(face, str):
        checks.reject_type("explain", "op", face, "the name of an op")
    if face not in FACES:
        raise ValueError(f"explain: unknown op {face!r}; it explains {', '.join(FACES)}")
    kind = face.split("_")[-1] if face.endswith(("_qk", "_av")) else ("attention" if face == "attention" else "fused")
    known = _ARGUMENTS[kind]
    if kind in ("fused", "attention"):  # whether lse is wanted changes nothing of what runs
        checks.flag("explain", "return_lse", arguments.pop("return_lse", False))
    unknown = sorted(set(arguments) - set(known) - ({"kernel_size"} if kind != "attention" else set()))
    if unknown:
        raise TypeError(f"explain: {face} has no argument '{unknown[0]}'")
    if kind != "attention" and "kernel_size" not in arguments:
        raise TypeError(f"explain: {face} needs kernel_size")
    tensors = specs if kind in ("fused", "attention") else specs[:2]
    if None in tensors:
        raise TypeError(f"explain: {face} needs query, key and value")
    build = {"fused": fused, "qk": qk, "av": av, "attention": full}[kind]
    problem: Problem = build(face, *tensors, **(known | arguments))  # type: ignore[operator]
    return problem
