"""From a face's arguments to its problem: what the public functions of both packages share.

Each function takes the face's name (for messages), specs of its tensors, and the raw arguments; it
raises the errors of :mod:`.checks` or returns the :class:`Problem`.
"""

from dataclasses import replace
from typing import Any

from . import checks, verdicts
from .device import Device
from .plan import gradient_failure, launches_metal, obstacle
from .problem import DTYPES, INPUTS, RANKS, Problem, TensorSpec
from .steps import MOST_TABLE, backward
from .tiles import DIMS

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


# Problems that the support matrix asks the planner about, by the name of what they are samples of.
_SAMPLES: dict[str, dict[str, Any]] = {
    "na": {}, "attention": {"op": "attention"}, "qk": {"op": "qk", "head_dim_v": 0}, "av": {"op": "av", "head_dim": 0},
    "additional_keys": {"additional": 8}, "rpb": {"has_rpb": True},
}  # fmt: skip
# What is made of them: a family of ops goes through a tier if it takes every sample of the family. Modules run the
# split ops where they drop attention weights.
_FAMILIES = {
    "fused": ("na",), "additional_keys": ("additional_keys",), "rpb": ("rpb",), "attention": ("attention",),
    "split": ("qk", "av"), "varlen": ("na", "attention"), "modules": ("na", "rpb", "qk", "av"),
}  # fmt: skip
# Limits that a tier may have: a problem just beyond, and the largest value that it takes where that is a number.
_LIMITS: dict[str, tuple[dict[str, Any], int | None]] = {
    "float64": ({"dtype": "float64"}, None),
    "head_dim": ({"head_dim": DIMS[-1] + 1, "head_dim_v": DIMS[-1] + 1}, DIMS[-1]),
    "rpb_entries": ({"has_rpb": True, "kernel_size": (MOST_TABLE // 2 + 1,)}, MOST_TABLE),
    "small_tensors": (
        {"query_shape": (1,), "key_shape": (1,), "kernel_size": (1,), "head_dim": 1, "head_dim_v": 1}, None,
    ),
}  # fmt: skip


def support_matrix(device: Device, tiers: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """For each tier what it can do on ``device``, found by asking the planner.

    available: some problem can run; forward, backward: every op does, and its gradients; fusion (no tensor of window
    slots), varlen (items are problems of 'na' and 'attention'): what it takes; constraints: ranks, dtypes, and the
    limits that it has ('head_dim', 'rpb_entries': the largest, 'not': what it does not take); ops: by family ('fused',
    'split', 'varlen', 'rpb', 'additional_keys', 'attention', 'modules') '' or why it does not go through; limits: in
    words, by name, what it does not take though the ops go through; reason: why it is not available, or ''.
    """
    return {tier: _support(device, tier) for tier in tiers}


def _support(device: Device, tier: str) -> dict[str, Any]:
    asked = {
        (name, rank, dtype): _sample(rank, dtype, **changed)
        for name, changed in _SAMPLES.items()
        for rank in (RANKS if name != "attention" else (1,))
        for dtype in DTYPES
    }
    reasons = {case: obstacle(problem, device, tier) for case, problem in asked.items()}
    taken = [case for case, reason in reasons.items() if reason is None]
    names, works = {name for name, _, _ in taken}, bool(taken)
    lost = {name: str(reason) for (name, _, _), reason in reasons.items() if name not in names}
    constraints: dict[str, Any] = {
        "ranks": sorted({rank for _, rank, _ in taken}),
        "dtypes": [dtype for dtype in DTYPES if any(other == dtype for _, _, other in taken)],
    }
    words = _limits(device, tier, taken[0][2]) if works else {}
    constraints |= {name: most for name, (_, most) in _LIMITS.items() if name in words and most is not None}
    if works and lost:
        constraints["not"] = sorted(lost)
    return {
        "available": works,
        "forward": not lost,
        "backward": not lost and all(_has_gradient(asked[case], device, tier) for case in taken),
        "fusion": "na" in names and tier != "dense",
        "varlen": {"na", "attention"} <= names,
        "constraints": constraints,
        "ops": {family: next((lost[n] for n in needed if n in lost), "") for family, needed in _FAMILIES.items()},
        "limits": words,
        "reason": "" if works else next(str(reason) for reason in reasons.values()),
    }


def _limits(device: Device, tier: str, dtype: str) -> dict[str, str]:
    """The planner's words for each limit of an available tier, and those for what MLX maps. dtype: one it takes."""
    beyond = {name: {"dtype": dtype} | changed for name, (changed, _) in _LIMITS.items()}
    reasons = {name: obstacle(_sample(1, **changed), device, tier) for name, changed in beyond.items()}
    # Of the problem just beyond, nobody asked what it has.
    words = {name: reason.partition("; got ")[0] for name, reason in reasons.items() if reason is not None}
    if launches_metal(tier, device) and (failures := verdicts.failures()):
        words["failed"] = "; ".join(map(str, failures))
    return words | ({"vmap": checks.NO_VMAP} if tier == "fast_metal" else {})


def _has_gradient(problem: Problem, device: Device, tier: str) -> bool:
    """Whether the gradient's program makes one of every input; tiers without programs take both or neither."""
    if not launches_metal(tier, device):
        return True
    if gradient_failure(problem, device, tier) is not None:
        return False
    made = {output.name for step in backward(problem, True) for output in step.outputs}
    given = {"additional_keys": problem.additional, "additional_values": problem.additional, "rpb": problem.has_rpb}
    return {f"{name}_grad" for name in INPUTS[problem.op] if given.get(name, True)} <= made


def _sample(rank: int, dtype: str, **changed: Any) -> Problem:
    """A small legal problem of that rank and dtype; ``changed``: its fields that are not as usual."""
    window = changed.get("kernel_size", (3,) * rank)
    shape, ones, no = tuple(max(8, w) for w in window), (1,) * rank, (False,) * rank
    usual = Problem("na", 1, shape, shape, 1, 1, 16, 16, window, ones, ones, no, 0.25, dtype)
    return replace(usual, **changed | ({"kernel_size": shape} if changed.get("op") == "attention" else {}))
