"""Timing launches of Metal kernels on this machine's GPU, through the host that runs them for users."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..metal.launches import Launch
from ..plan.device import Device
from ..plan.programs import Made, MetalLaunches
from ..plan.verdicts import Learned, quoted
from ..problem.problem import Problem
from .design import Trial

# Seconds of one sample, which is many launches one after another, and of all samples of a trial in one round; the most
# launches of a sample: what is queued takes memory for its results.
SAMPLE_SECONDS, TRIAL_SECONDS = 0.004, 0.03
FEWEST_SAMPLES, MOST_LAUNCHES = 3, 200

Run = Callable[[int], None]
# What a long measurement reports: how much is done, of how much, and what comes next.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Timer:
    """What a package times launches with.

    package: 'natten-mps'. device: the planner's view of where its tensors are by default. backend: the one whose host
    launches. prepare(problem, launch): compiles the kernel, makes its tensors, and returns run(times), which launches
    that often and waits for the end. It raises Learned if the kernel cannot run as planned.
    """

    package: str
    device: Callable[[], Device]
    backend: str
    prepare: Callable[[Problem, Launch], Run]


def program_of(problem: Problem, launch: Launch, backend: str) -> MetalLaunches:
    """The program of a single launch, whose results are all that it makes."""
    outputs = tuple(Made(output.name, output.shape, output.dtype) for output in launch.outputs)
    return MetalLaunches(problem, backend, problem.record.forward, outputs, launches=(launch,))


@dataclass(frozen=True, slots=True)
class Timed:
    """A trial and its microseconds; None if its kernel does not run here, and why."""

    trial: Trial
    microseconds: float | None
    reason: str = ""


def seconds(run: Run, clock: Callable[[], float] = time.perf_counter) -> float:
    """The median time of one launch, from samples of many."""

    def sample(times: int) -> float:
        began = clock()
        run(times)
        return (clock() - began) / times

    run(1)
    once = max(sample(1), 1e-7)
    times = int(min(MOST_LAUNCHES, max(1, SAMPLE_SECONDS / once)))
    count = int(max(FEWEST_SAMPLES, min(31, TRIAL_SECONDS / (times * once))))
    samples = sorted(sample(times) for _ in range(count))
    return samples[count // 2]


def time_all(timer: Timer, trials: Sequence[Trial], rounds: int, progress: Progress) -> list[Timed]:
    """Every trial in each of several rounds, one round after another, so that a slow minute does not fall on a few
    trials alone; the fastest round counts.
    """
    best: list[float] = [math.inf] * len(trials)
    reasons: dict[int, str] = {}
    for turn in range(rounds):
        for number, trial in enumerate(trials):
            progress(turn * len(trials) + number, rounds * len(trials), trial.template.name)
            if number in reasons:
                continue
            try:
                best[number] = min(best[number], seconds(timer.prepare(trial.problem, trial.launch)) * 1e6)
            except Learned as learned:
                reasons[number] = str(learned.verdicts[0])
            except RuntimeError as failure:  # what frameworks raise of a GPU while they wait for it
                reasons[number] = quoted(failure)
    progress(rounds * len(trials), rounds * len(trials), "")
    return [
        Timed(trial, None, reasons[number]) if number in reasons else Timed(trial, best[number])
        for number, trial in enumerate(trials)
    ]
