"""``tune``: times a designed set of kernels on this machine, fits unit costs, judges them on problems that were not
fitted, and keeps them where the planner finds them.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ..metal.costs import UnitCosts, microseconds
from ..metal.counts import counts_of
from ..metal.tiles import padded_dim
from ..metal.tiling import by_rule
from ..plan import tuning
from ..plan.backend import BACKENDS
from ..plan.chip import gpu_cores
from .design import FITTED, HELD_OUT, Trial, room_of, trials
from .fit import Fit, Sample, fit, quantile, typical
from .measure import Progress, Timed, Timer, time_all


class CannotTune(RuntimeError):
    """Why this machine cannot be tuned, as one sentence."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What would be chosen for one kernel of a problem that was not fitted. Times in microseconds, as measured.

    rule, tuned: of the tilings that the rule and the fitted costs choose; best: of the fastest. predicted: what the
    costs say of ``tuned``.
    """

    timed: Timed
    rule: float
    tuned: float
    best: float
    predicted: float


@dataclass(frozen=True, slots=True)
class Tuning:
    """What ``tune`` found.

    path: where the unit costs were written; None if nowhere. seconds: how long it took. fitted, held_out: the trials.
    failed: those that did not run here.
    """

    package: str
    fit: Fit
    fitted: tuple[Timed, ...]
    held_out: tuple[Timed, ...]
    choices: tuple[Choice, ...]
    failed: tuple[Timed, ...]
    seconds: float
    path: Path | None

    @property
    def costs(self) -> UnitCosts:
        """The unit costs."""
        return self.fit.costs


def planned_trials(timer: Timer, quick: bool) -> tuple[list[Trial], list[Trial]]:
    """The trials that unit costs would be fitted to, and those that judge the fit."""
    room = room_of(timer.device(), BACKENDS[timer.backend])
    fitted, held_out = (FITTED[::2], HELD_OUT[::2]) if quick else (FITTED, HELD_OUT)
    return list(trials(fitted, room=room)), list(trials(held_out, room=room))


def tune(timer: Timer, quick: bool, progress: Progress, path: Path | None) -> Tuning:
    """Measure, fit and judge; write the result to ``path`` unless that is None.

    quick: fewer problems, timed once. CannotTune if the package has no Metal kernels to time here; OSError if the file
    cannot be written.
    """
    reason = timer.device().reason_missing(timer.backend)
    if reason is not None:
        raise CannotTune(reason)
    began = time.perf_counter()
    fitted, held_out = planned_trials(timer, quick)
    timed = time_all(timer, [*fitted, *held_out], 1 if quick else 2, progress)
    used, judged = (
        [one for one in part if one.microseconds is not None] for part in (timed[: len(fitted)], timed[len(fitted) :])
    )
    failed = tuple(one for one in timed if one.microseconds is None)
    if not used:
        raise CannotTune(f"no kernel ran: {failed[0].reason}")
    made = fit(tuning.identity()["chip"], [sample_of(one) for one in used], gpu_cores())
    choices = tuple(judge(made.costs, judged, room_of(timer.device(), BACKENDS[timer.backend]).simdgroups))
    took = time.perf_counter() - began
    found = Tuning(timer.package, made, tuple(used), tuple(judged), choices, failed, took, path)
    if path is not None:
        tuning.write(path, tuning.content_of(found.costs, **summary_of(found)))
    return found


def tuned_here(timer: Timer, quick: bool, path: "str | PathLike[str] | None") -> dict[str, Any]:
    """The public function ``tune``: measure, write and tell. path: None is where this package reads it by default."""
    return as_data(tune(timer, quick, lambda *_: None, tuning.default_path() if path is None else Path(path)))


def _time(timed: Timed) -> float:
    assert timed.microseconds is not None
    return timed.microseconds


def sample_of(timed: Timed) -> Sample:
    """A trial as the fit sees it."""
    launch = timed.trial.launch
    group = timed.trial.problem, timed.trial.template.name
    return Sample(launch.instance, counts_of(timed.trial.problem, launch), _time(timed), group)


def predicted(trial: Trial, costs: UnitCosts) -> float:
    """Microseconds of a trial."""
    launch = trial.launch
    return microseconds(launch.instance, counts_of(trial.problem, launch), costs)


def judge(costs: UnitCosts, timed: Sequence[Timed], room: int) -> list[Choice]:
    """What the costs and the rule would choose, kernel by kernel, among the tilings that were timed. room: simdgroups
    that a threadgroup may have.
    """
    groups: dict[tuple[Any, str], list[Timed]] = {}
    for one in timed:
        groups.setdefault((one.trial.problem, one.trial.template.name), []).append(one)
    found = []
    for members in groups.values():
        first = members[0].trial
        dims, template = (padded_dim(first.problem.head_dim), padded_dim(first.problem.head_dim_v)), first.template
        rule = by_rule(first.problem, template, *dims, room, not template.transposed)
        chosen = min(members, key=lambda member: (predicted(member.trial, costs), member.trial.candidate))
        ruled = next((_time(member) for member in members if member.trial.candidate == rule), _time(members[0]))
        best = min(map(_time, members))
        found.append(Choice(chosen, ruled, _time(chosen), best, predicted(chosen.trial, costs)))
    return found


def summary_of(found: Tuning) -> dict[str, Any]:
    """How good the fit is, in numbers that can be written as JSON."""
    errors = [abs(error) for error in found.fit.errors]
    fitted = {"trials": len(errors), "median error": typical(errors), "error of 9 in 10": quantile(errors, 0.9)}
    choices: dict[str, Any] = {"kernels": len(found.choices)}
    if found.choices:
        unseen = [predicted(one.trial, found.costs) / _time(one) - 1 for one in found.held_out]
        choices["median error"] = typical(unseen)
        for name in ("rule", "tuned"):
            slower = [getattr(choice, name) / choice.best - 1 for choice in found.choices]
            choices |= {f"{name} within 5 %": sum(one <= 0.05 for one in slower), f"{name} worst": max(slower)}
    return {"fit": fitted, "choices": choices, "seconds": round(found.seconds, 1), "failed": len(found.failed)}


def as_data(found: Tuning) -> dict[str, Any]:
    """All that was found, as JSON holds it."""

    def row(one: Timed) -> dict[str, Any]:
        instance = one.trial.launch.instance
        figures = {"microseconds": _time(one), "predicted": predicted(one.trial, found.costs)}
        return {"problem": one.trial.words, "kernel": instance.name, **figures}

    trials_in = {"fitted": [row(one) for one in found.fitted], "held out": [row(one) for one in found.held_out]}
    failed = [{"kernel": one.trial.launch.instance.name, "reason": one.reason} for one in found.failed]
    whole = tuning.content_of(found.costs, **summary_of(found))
    return whole | {"trials": trials_in, "failed trials": failed, "path": found.path and str(found.path)}
