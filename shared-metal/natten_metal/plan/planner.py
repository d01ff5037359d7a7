"""The plans of one package and what it has learned about its machine, kept and shared by threads."""

import threading
from collections.abc import Callable
from typing import TypeVar

from ..caches import Cache
from ..problem.problem import Problem
from . import backends
from .device import Device
from .plan import Plan, plan
from .programs import Program, Refused
from .verdicts import NOTHING_LEARNED, Failure, KernelFailure, Learned, Verdict, Verdicts

T = TypeVar("T")
MAX_PLANS = 1024


class Planner:
    """Plans the problems of ``package``, whose backends are tried in ``order``."""

    def __init__(self, package: str, order: tuple[str, ...]) -> None:
        self.package, self.order = package, order
        self.plans = Cache("plans", MAX_PLANS)
        self._verdicts = NOTHING_LEARNED
        self._lock = threading.Lock()

    @property
    def verdicts(self) -> Verdicts:
        """What has been learned so far."""
        return self._verdicts

    def learn(self, *verdicts: Verdict) -> None:
        """Record what a launcher found; later plans take it into account."""
        with self._lock:
            self._verdicts = self._verdicts | verdicts

    def forget(self) -> None:
        """Forget all plans and verdicts, as on another machine."""
        with self._lock:
            self._verdicts = NOTHING_LEARNED
        self.plans.clear()

    def plan(self, problem: Problem, device: Device, backend: str) -> Plan:
        """As :func:`.plan.plan`, with all verdicts; the same object for equal arguments."""
        verdicts = self._verdicts
        key = problem, device, backend, verdicts
        found: Plan = self.plans.get_or_make(key, lambda: plan(problem, device, backend, self.order, verdicts))
        return found

    def run(self, planned: Plan, launch: Callable[[Plan], T]) -> T:
        """``launch(planned)``; whenever that learns something about this machine, plan again and launch the new plan.

        This ends, because no later plan can lead to the same verdict. KernelFailure if a requested backend fails.
        """
        while True:
            try:
                return launch(planned)
            except Learned as learned:
                self.learn(*learned.verdicts)
                planned = self.plan(planned.problem, planned.device, planned.requested)

    def announce(self, program: Program) -> None:
        """Before ``program`` is launched: warn of faster ones that cannot run; KernelFailure if it must not itself."""
        if program.failed is not None:
            if isinstance(program, Refused):
                raise KernelFailure(program.failed)
            backends.warn_of_failure(self.package, program.problem.name, program.failed)
        if isinstance(program.no_matrix_units, Failure):
            backends.warn_of_failure(self.package, program.problem.name, program.no_matrix_units)
        if program.missing:
            backends.warn_of_missing_kernels(self.package, program.problem.name, program.missing)
