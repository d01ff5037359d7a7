"""The measuring: everything that is compared takes turns, in the same run, after it has been warmed up."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from ..plan import costs
from ..plan.plan import Plan
from ..plan.verdicts import KernelFailure, quoted
from ..problem import mask
from ..problem.problem import Problem
from . import results
from .problems import FACE, Named
from .results import FAILED, LEFT_OUT, TIMED, WRONG, Entry, Peak, Row
from .subject import Call, Subject
from .times import digits
from .ways import ITEM_BYTES, Inputs, Way, useful_flops, ways

Clock = Callable[[], float]
# Rounds of one row: at least, at most.
FEWEST, MOST = 5, 200
# A sample lasts this long, or is of this many calls, which are waited for together.
SAMPLE_SECONDS, SAMPLE_CALLS = 0.003, 64
# A call shorter than this is made once untimed in each turn: OpenMP's threads spin for some milliseconds after a call
# of theirs, and would slow down the next way that has threads of its own.
SETTLING_SECONDS = 0.1
# How a way may fail that is no part of this project: it is then a row without times, with the reason.
FAILURES = (RuntimeError, MemoryError, ValueError, TypeError, ImportError, AttributeError, AssertionError, OSError)
# The largest difference from the package's output, over the largest output, that rounding explains.
BOUNDS = {"float16": 2e-2, "bfloat16": 1e-1, "float32": 1e-3}
# The sides of the products among which the framework's peak is looked for, and how long the largest may take.
SIDES, PRODUCT_SECONDS = (512, 1024, 2048, 4096), 0.25
COPIED = 1 << 24
# How many times as fast as the framework's product and copy a way may be, as those are measured before it: other work
# may have slowed them down; and the package's kernels, because MLX's product is slow on a CPU.
SLACK, HEADROOM = 5, 16


@dataclass(frozen=True, slots=True)
class Limits:
    """seconds: for each way of a row, at least. longest: a call that takes longer is not timed. bytes: of memory."""

    seconds: float
    longest: float
    bytes: int


def interleaved(
    calls: Mapping[str, Call],
    wait: Callable[[list[object]], None],
    seconds: float,
    estimates: Mapping[str, float],
    clock: Clock = time.perf_counter,
    failed: dict[str, str] | None = None,
) -> dict[str, tuple[float, ...]]:
    """Seconds of one call of each, a sample a round, in turns, until ``seconds`` for each have gone by.

    estimates: about how long a call takes. Of short ones a sample is a few calls, waited for together. failed: where
    the words of a call that fails are put, which then has no more turns and no times; without it the error is raised.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    counts = {name: max(1, min(SAMPLE_CALLS, round(SAMPLE_SECONDS / max(estimates[name], 1e-9)))) for name in calls}
    began, rounds = clock(), 0
    while times and (rounds < FEWEST or (rounds < MOST and clock() - began < seconds * len(times))):
        for name in list(times):
            try:
                if estimates[name] < SETTLING_SECONDS:
                    wait([calls[name]()])
                start = clock()
                wait([calls[name]() for _ in range(counts[name])])
                times[name].append((clock() - start) / counts[name])
            except FAILURES as failure:
                if failed is None:
                    raise
                failed[name] = _words(failure)
                del times[name]
        rounds += 1
    return {name: tuple(taken) for name, taken in times.items()}


def _words(failure: Exception) -> str:
    """Of an error that may have no message."""
    return quoted(failure) or type(failure).__name__


def timed(call: Call, wait: Callable[[list[object]], None], clock: Clock = time.perf_counter) -> tuple[object, float]:
    """What a call returns, computed, and the seconds that it took."""
    start = clock()
    found = call()
    wait([found])
    return found, clock() - start


def product(subject: Subject, sizes: tuple[int, int, int], dtype: str) -> Call:
    """The framework's product of ``[m, k]`` and ``[k, n]``, by sizes m, k, n."""
    m, k, n = sizes
    a, b = subject.tensors([(m, k), (k, n)], dtype)
    return lambda: a @ b


def fastest(call: Call, wait: Callable[[list[object]], None], seconds: float) -> float:
    """Seconds of the fastest call among those of some ``seconds``."""
    return min(interleaved({"": call}, wait, seconds, {"": SETTLING_SECONDS})[""])


def peak(subject: Subject, dtype: str, seconds: float) -> Peak:
    """The most that the framework's own product and copy reach here. seconds: for each size."""
    best = 0.0
    for side in SIDES:
        taken = fastest(product(subject, (side, side, side), dtype), subject.wait, seconds)
        best = max(best, 2 * side**3 / taken / 1e9)
        if 8 * taken > PRODUCT_SECONDS:
            break
    taken = fastest(subject.copy(COPIED), subject.wait, seconds)
    return Peak(best, 2 * 4 * COPIED / taken / 1e9)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A way that was tried. call: what is timed; None unless the state is 'timed'."""

    state: str
    reason: str
    call: Call | None = None
    estimate: float = 0.0
    peak_bytes: int | None = None
    difference: float | None = None


def _predicted(plan: Plan, direction: str) -> float | None:
    """Microseconds that the planner expects on this device; None where it has no model."""
    unit_costs = costs.unit_costs(plan.device)
    programs = [plan.forward] + [plan.gradient(False)] * (direction == results.TRAINING)
    found = [costs.predict(program, unit_costs) for program in programs]
    return None if None in found else round(sum(each for each in found if each is not None), 2)


class Rows:
    """Measures one problem after another on one subject. against: the ways that the package's is compared with.

    watch: told what is being measured.
    """

    def __init__(
        self,
        subject: Subject,
        backend: str,
        limits: Limits,
        against: Collection[str],
        watch: Callable[[str], None] = lambda what: None,
    ) -> None:
        self.subject, self.backend, self.limits = subject, backend, limits
        self.against, self.watch = against, watch

    def plan(self, problem: Problem) -> Plan:
        """What the package runs, by what is known now. NotImplementedError if the backend cannot take the problem."""
        subject = self.subject
        (somewhere,) = subject.tensors([(1,)], problem.dtype)
        return subject.framework.plan_on(somewhere, subject.framework.stream_of(FACE, None), problem, self.backend)

    def row(self, named: Named, quick: bool, dtype: str, direction: str, best: Peak) -> Row:
        """One row. best: the peaks measured first."""
        problem = named.problem(dtype)
        entries = self._entries(named, problem, Inputs(named, dtype, self.subject), direction, best)
        backend, why, predicted = self._ran(problem, direction)
        items = ITEM_BYTES[dtype]
        tokens = problem.batch * problem.queries * problem.head_dim * items
        once_each = tokens * (2 * problem.heads + 2 * problem.kv_heads)
        return Row(
            problem=named.name,
            quick=quick,
            dtype=dtype,
            direction=direction,
            shape=problem.query_shape,
            kernel_size=problem.kernel_size,
            stride=problem.stride,
            dilation=problem.dilation,
            is_causal=problem.is_causal,
            batch=problem.batch,
            heads=problem.heads,
            kv_heads=problem.kv_heads,
            head_dim=problem.head_dim,
            pairs=mask.pairs(problem),
            flops=useful_flops(problem, direction),
            # The gradients read all of this again with one more output, and write as much as the inputs.
            least_bytes=once_each * (1 if direction == results.FORWARD else 3),
            backend=backend,
            plan=why,
            predicted_us=predicted,
            entries=entries,
        )

    def _ran(self, problem: Problem, direction: str) -> tuple[str, str, float | None]:
        """The backend, why it was chosen, and its predicted time; after the calls, whose failures change the plan."""
        try:
            plan = self.plan(problem)
        except KernelFailure as failure:  # of the backend that was asked for; the entry says the same
            return self.backend, str(failure), None
        return plan.backend, plan.why, _predicted(plan, direction)

    def _entries(self, named: Named, problem: Problem, inputs: Inputs, direction: str, best: Peak) -> tuple[Entry, ...]:
        """The ways that can be timed, timed in turns; the others with their reasons."""
        prepared: dict[str, _Prepared] = {}
        wanted: list[object] = []
        for way in self._compared(ways(named, problem, self.subject, self.backend)):
            self.watch(f"{named.name}: {way.name}")
            reason = self._too_much(way, inputs, direction, best)
            prepared[way.name] = (
                _Prepared(LEFT_OUT, reason) if reason else self._prepared(way, inputs, direction, wanted)
            )
        ready = {name: each for name, each in prepared.items() if each.call is not None}
        self.watch(f"{named.name}: {len(ready)} in turns")
        calls = {name: each.call for name, each in ready.items() if each.call is not None}
        estimates = {name: each.estimate for name, each in ready.items()}
        failed: dict[str, str] = {}
        times = interleaved(calls, self.subject.wait, self.limits.seconds, estimates, failed=failed)
        prepared |= {name: _Prepared(FAILED, reason) for name, reason in failed.items()}
        return tuple(
            Entry(
                name,
                each.state,
                tuple(round(1e6 * taken, 2) for taken in times.get(name, ())),
                each.peak_bytes,
                each.difference,
                each.reason,
            )
            for name, each in prepared.items()
        )

    def _compared(self, all_ways: list[Way]) -> list[Way]:
        return [way for at, way in enumerate(all_ways) if not at or way.name in self.against]

    def _too_much(self, way: Way, inputs: Inputs, direction: str, best: Peak) -> str:
        """Why a way is not even tried; '' if it is."""
        least = way.least_bytes + inputs.bytes(way)
        if least > self.limits.bytes:
            needs, room = (digits(each / 1e9) for each in (least, self.limits.bytes))
            return f"needs at least {needs} GB, and there is room for {room}"
        # What it needs beyond its inputs is written and read.
        moving = 2 * way.least_bytes / best.gigabytes_per_second / 1e9
        seconds = max(useful_flops(way.work, direction) / best.gflops / 1e9, moving)
        slack = HEADROOM if way.name == self.subject.package else SLACK
        if seconds > slack * self.limits.longest:
            about = f"takes about {digits(seconds)} s at the speed measured first"
            return f"{about}, over {slack} times the limit of {digits(self.limits.longest)} (--limit)"
        return ""

    def _prepared(self, way: Way, inputs: Inputs, direction: str, wanted: list[object]) -> _Prepared:
        """A way after its first calls. wanted: the output that others must equal, once there is one."""
        subject = self.subject
        try:
            forward = way.make(inputs.of(way))
            output, first = timed(lambda: inputs.output(way, forward), subject.wait)
            # A first call may compile, but not for this long.
            if first > 2 * self.limits.longest:
                return self._slow(first)
            difference = None
            if way.comparable:
                wanted[:] = wanted or [output]
                difference = subject.difference(output, wanted[0])
                if not difference <= BOUNDS[inputs.dtype]:
                    return _Prepared(WRONG, f"its output differs by {digits(difference)} of the largest number")
            call = inputs.call(way, forward, subject, direction == results.TRAINING)
            timed(call, subject.wait)  # the first step of training imports and compiles, too
            estimate = timed(call, subject.wait)[1]
            if estimate > self.limits.longest:
                return self._slow(estimate)
            return _Prepared(TIMED, "", call, estimate, subject.peak_bytes(call), difference)
        except FAILURES as failure:
            return _Prepared(FAILED, _words(failure))

    def _slow(self, seconds: float) -> _Prepared:
        longest = digits(self.limits.longest)
        return _Prepared(LEFT_OUT, f"a call took {digits(seconds)} s; the limit is {longest} (--limit)")
