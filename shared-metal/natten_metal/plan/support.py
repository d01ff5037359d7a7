"""What each backend can do on a device, found by asking the planner.

The matrix asks about one sample problem of each op, with 16 channels per head, and about a problem beyond each limit
that it names. It says nothing more about calls of other sizes: ``explain`` answers for one call.
"""

from dataclasses import replace
from typing import Any

from ..metal.sizes import DIMS, MAX_RPB
from ..problem import checks
from ..problem.ops import FULL, FUSED, OPS, QUERY, VALUE
from ..problem.problem import DTYPES, RANKS, Problem
from .backend import BACKENDS, Work
from .device import Device
from .plan import Plan, plan, refusal
from .programs import MetalLaunches, Refused
from .verdicts import NOTHING_LEARNED, Verdicts

# Problems that the support matrix asks the planner about, by what they are samples of.
_SAMPLES: dict[str, dict[str, Any]] = {op.name: {"op": op.name} for op in OPS.values()} | {
    "additional_keys": {"additional": 8},
    "rpb": {"has_rpb": True},
    "key_mask": {"has_key_mask": True},
}
_SPLIT = tuple(op.name for op in OPS.values() if op.bilinear)
# Families of ops: a backend takes a family if it takes all of its samples. Modules run the split ops to drop attention
# weights.
_FAMILIES = {
    "fused": (FUSED.name,),
    "additional_keys": ("additional_keys",),
    "rpb": ("rpb",),
    "key_mask": ("key_mask",),
    FULL.name: (FULL.name,),
    "split": _SPLIT,
    "varlen": (FUSED.name, FULL.name),
    "modules": (FUSED.name, "rpb", "key_mask", *_SPLIT),
}
# Limits that a backend may have: a problem just beyond it, and the largest value that it takes, if that is a number.
_LIMITS: dict[str, tuple[dict[str, Any], int | None]] = {
    "float64": ({"dtype": "float64"}, None),
    "head_dim": ({"head_dim": DIMS[-1] + 1, "head_dim_v": DIMS[-1] + 1}, DIMS[-1]),
    "rpb_entries": ({"has_rpb": True, "kernel_size": (MAX_RPB // 2 + 1,)}, MAX_RPB),
    "small_tensors": (
        {"query_shape": (1,), "key_shape": (1,), "kernel_size": (1,), "head_dim": 1, "head_dim_v": 1},
        None,
    ),
}


def support_matrix(
    device: Device, order: tuple[str, ...], verdicts: Verdicts = NOTHING_LEARNED
) -> dict[str, dict[str, Any]]:
    """For each backend of ``order`` what it can do on ``device``, found by asking the planner.

    available: some problem can run; forward, backward: all ops can run, and their gradients; fusion: no tensor of
    window slots is made; varlen: items of different sizes (problems of the fused op and of full attention) can run;
    constraints: ranks, dtypes, and limits ('head_dim', 'rpb_entries': the largest, 'not': what it does not take); ops:
    by family ('fused', 'split', 'varlen', 'rpb', 'additional_keys', 'key_mask', 'attention', 'modules') '' or why it
    cannot run; limits: by name, which problems of these ops it refuses, in words; reason: why it is not available, or
    ''.
    """
    return {name: _support(device, name, verdicts) for name in order}


def _support(device: Device, backend: str, verdicts: Verdicts) -> dict[str, Any]:
    asked = {
        (name, rank, dtype): _sample(rank, dtype, **changed)
        for name, changed in _SAMPLES.items()
        for rank in (RANKS if name != FULL.name else (1,))
        for dtype in DTYPES
    }
    reasons = {case: refusal(problem, device, backend, verdicts) for case, problem in asked.items()}
    taken = [case for case, reason in reasons.items() if reason is None]
    names, works = {name for name, _, _ in taken}, bool(taken)
    lost = {name: str(reason) for (name, _, _), reason in reasons.items() if name not in names}
    constraints: dict[str, Any] = {
        "ranks": sorted({rank for _, rank, _ in taken}),
        "dtypes": [dtype for dtype in DTYPES if any(other == dtype for _, _, other in taken)],
    }
    words = _limits(device, backend, taken[0][2], verdicts) if works else {}
    constraints |= {name: largest for name, (_, largest) in _LIMITS.items() if name in words and largest is not None}
    if works and lost:
        constraints["not"] = sorted(lost)
    return {
        "available": works,
        "forward": not lost,
        "backward": not lost
        and all(_has_gradient(plan(asked[case], device, backend, (backend,), verdicts)) for case in taken),
        "fusion": FUSED.name in names and BACKENDS[backend].on(device.kind) is not Work.DENSE_OPERATIONS,
        "varlen": {FUSED.name, FULL.name} <= names,
        "constraints": constraints,
        "ops": {family: next((lost[n] for n in needed if n in lost), "") for family, needed in _FAMILIES.items()},
        "limits": words,
        "reason": "" if works else next(str(reason) for reason in reasons.values()),
    }


def _limits(device: Device, backend: str, dtype: str, verdicts: Verdicts) -> dict[str, str]:
    """The planner's words for each limit of an available backend, and those for what MLX maps. dtype: one it takes."""
    beyond = {name: {"dtype": dtype} | changed for name, (changed, _) in _LIMITS.items()}
    reasons = {name: refusal(_sample(1, **changed), device, backend) for name, changed in beyond.items()}
    # Without the numbers of the sample problem.
    words = {name: reason.partition("; got ")[0] for name, reason in reasons.items() if reason is not None}
    if BACKENDS[backend].on(device.kind) is Work.METAL_KERNELS and verdicts.failures:
        words["failed"] = "; ".join(map(str, verdicts.failures.values()))
    return words if BACKENDS[backend].maps else words | {"vmap": checks.NO_VMAP}


def _has_gradient(planned: Plan) -> bool:
    """Whether the backend itself runs the gradient, and its launches make one for each input."""
    program, problem = planned.backward, planned.problem
    if not isinstance(program, MetalLaunches):
        return program.backend == planned.backend and not isinstance(program, Refused)
    made = {output.name for launch in program.launches for output in launch.outputs}
    inputs = (operand for operand in problem.record.inputs if operand.differentiable)
    return {operand.gradient for operand in inputs if operand.given(problem)} <= made


def _sample(rank: int, dtype: str, **changed: Any) -> Problem:
    """A small legal problem of that rank and dtype; ``changed``: fields with other values than usual."""
    window = changed.get("kernel_size", (3,) * rank)
    shape, ones, no = tuple(max(8, w) for w in window), (1,) * rank, (False,) * rank
    op = OPS[changed.get("op", FUSED.name)]
    usual = Problem(
        op=op.name,
        batch=1,
        query_shape=shape,
        key_shape=shape,
        heads=1,
        kv_heads=1,
        head_dim=16 if op.reads(QUERY) else 0,
        head_dim_v=16 if op.reads(VALUE) else 0,
        kernel_size=window if op.has_window else shape,
        stride=ones,
        dilation=ones,
        is_causal=no,
        scale=0.25,
        dtype=dtype,
    )
    return replace(usual, **changed)
