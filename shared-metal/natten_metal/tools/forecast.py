"""What a plan will execute and how long that is predicted to take, as data that JSON has: launches, exact counts, dense
attention beside it, and what could run instead.
"""

from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from ..plan import costs as cost_model
from ..plan.backend import BACKENDS
from ..plan.plan import Plan, fitting, refusal
from ..plan.programs import MetalLaunches, Program
from ..plan.verdicts import KernelFailure, Verdicts
from ..problem import mask
from ..problem.problem import Problem, all_keys

if TYPE_CHECKING:
    from ..metal.costs import UnitCosts
    from ..metal.launches import Launch
    from ..metal.tiling import Target

Planned = Callable[[Problem, str], Plan]
# What is listed of a launch's exact work (:class:`..metal.counts.Counts`).
COUNTS = (
    "patches",
    "bricks",
    "full",
    "masked",
    "products",
    "chunks",
    "staged_bytes",
    "fragment_bytes",
    "tensor_bytes",
)
# Floating-point operations of an 8x8 product of depth 8.
PRODUCT = 2 * 8**3


def directions(plan: Plan) -> dict[str, Program]:
    """The program of the op, and of its gradient where none flows into lse."""
    return {"forward": plan.forward, "backward": plan.backward_without_lse}


def forecast(plan: Plan, costs: "UnitCosts", planned: Planned) -> dict[str, Any]:
    """The plan's programs, by direction, and dense attention's time. planned(problem, backend): another plan there."""
    found: dict[str, Any] = {}
    for direction, program in directions(plan).items():
        useful = mask.flops(plan.problem, direction == "backward")
        found[direction] = _of_program(program, costs) | {"useful_flops": useful}
        executed = found[direction]["executed_flops"]
        found[direction]["executed_over_useful"] = executed / useful if executed and useful else None
    return found | {"all_keys": _all_keys(plan, costs, planned)}


def _of_program(program: Program, costs: "UnitCosts") -> dict[str, Any]:
    from ..metal.costs import microseconds

    launches = [
        _of_launch(launch, counts, microseconds(launch.instance, counts, costs))
        for launch, counts in zip(program.launches, cost_model.launch_counts(program), strict=True)
    ]
    modelled = isinstance(program, MetalLaunches)
    executed = sum(launch["counts"]["products"] for launch in launches) * PRODUCT
    return {
        "backend": program.backend,
        "launches": launches,
        "predicted_us": sum(launch["predicted_us"] for launch in launches) if modelled else None,
        "executed_flops": executed if modelled else None,
    }


def _of_launch(launch: "Launch", counts: Any, time: float) -> dict[str, Any]:
    instance = launch.instance
    return {
        "kernel": instance.name,
        "template": instance.template,
        "tiling": _tiling(instance) if instance.record.walks else None,
        "threadgroups": list(launch.grid),
        "threads": launch.threads,
        "threadgroup_bytes": instance.threadgroup_bytes,
        "counts": {name: getattr(counts, name) for name in COUNTS},
        "predicted_us": time,
    }


def _tiling(instance: Any) -> dict[str, Any]:
    """What the planner chose of a walk, or could choose."""
    from ..metal.tiles import Candidate

    chosen = {name: getattr(instance, name) for name in Candidate._fields}
    return chosen | {"patch": list(instance.patch[3 - instance.rank :])}


def _all_keys(plan: Plan, costs: "UnitCosts", planned: Planned) -> dict[str, Any] | None:
    """Attention of the same tokens to all keys, by the same kernels and the same model; None where there is neither."""
    p = plan.problem
    if p.record.bilinear or not isinstance(plan.forward, MetalLaunches):
        return None
    try:
        found = planned(all_keys(p), plan.backend)
    except (NotImplementedError, KernelFailure):
        return None
    times = {direction: cost_model.predict(program, costs) for direction, program in directions(found).items()}
    return {
        "problem": f"attention of {p.queries} queries to {p.keys + p.additional} keys",
        **{f"{direction}_us": time for direction, time in times.items()},
    }


# --- alternatives -----------------------------------------------------------------------------------------


def backends(
    plan: Plan, own: dict[str, Any], order: tuple[str, ...], verdicts: Verdicts, costs: "UnitCosts", planned: Planned
) -> list[dict[str, Any]]:
    """Every backend of the package: why it cannot take the problem, or the times that it is predicted to take.

    own: the plan's :func:`forecast`.
    """
    found = []
    for name in order:
        work = BACKENDS[name].on(plan.device.kind)
        entry: dict[str, Any] = {
            "backend": name,
            "chosen": name == plan.backend,
            "computes_with": None if work is None else work.value,
            "reason": refusal(plan.problem, plan.device, name, verdicts),
            "forward_us": None,
            "backward_us": None,
        }
        if name == plan.backend:
            entry |= {f"{direction}_us": own[direction]["predicted_us"] for direction in directions(plan)}
        elif entry["reason"] is None:
            for direction, program in directions(planned(plan.problem, name)).items():
                entry[f"{direction}_us"] = cost_model.predict(program, costs)
        found.append(entry)
    return found


def tilings(plan: Plan, verdicts: Verdicts, costs: "UnitCosts") -> list[dict[str, Any]]:
    """For every walk of the plan all tilings that the planner could choose, the cheapest predicted first."""
    found = []
    for direction, program in directions(plan).items():
        walks = [each for each in program.launches if each.instance.record.walks and not each.instance.of_additional]
        if walks:
            gradient = None if direction == "forward" else False
            target = fitting(plan.problem, plan.device, BACKENDS[program.backend], verdicts, gradient).target
        for launch in walks:
            others = sorted(_candidates(plan.problem, launch, target, costs), key=itemgetter("predicted_us"))
            found.append({"direction": direction, "template": launch.instance.template, "candidates": others})
    return found


def _candidates(problem: Problem, launch: "Launch", target: "Target", costs: "UnitCosts") -> Iterator[dict[str, Any]]:
    """target: what the launch's tiling was chosen for."""
    from ..metal.costs import microseconds
    from ..metal.counts import tensor_bytes, walked
    from ..metal.templates import NARROW
    from ..metal.tiles import padded_dim
    from ..metal.tiling import candidate_instance, candidates, on_matrix_units

    own, tensors, dims = launch.instance, tensor_bytes(problem, launch), (launch.instance.dim, launch.instance.dim_v)
    template = NARROW[own.template]
    if own.record.mpp:  # whose head dims are padded to the same
        dims = padded_dim(problem.head_dim), padded_dim(problem.head_dim_v)
    found = candidates(problem, template, *dims, target.max_simdgroups, not template.transposed)
    if target.matrix_units is not None:
        every = target.costs is not None
        found += on_matrix_units(problem, template, *dims, target.max_simdgroups, every=every)
    for candidate in found:
        instance = candidate_instance(problem, template, dims, candidate)
        counts = walked(problem, instance)._replace(tensor_bytes=tensors)
        yield {
            **_tiling(instance),
            "chosen": _tiling(instance) == _tiling(own),
            "bricks": counts.bricks,
            "full": counts.full,
            "staged_bytes": counts.staged_bytes,
            "predicted_us": microseconds(instance, counts, costs),
        }
