"""What is learned about a machine: a kernel does not compile, launch or run, or allows fewer threads than planned.

A launcher that finds one raises :class:`Learned`. Its caller records the verdicts and plans the problem again
(:mod:`.planner`), so plans, ``explain`` and the support matrix know what the launchers know.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ..metal.launches import Launch
    from ..metal.source import Instance

# Of each kind; the oldest are evicted and, if needed, learned again.
MAX_VERDICTS = 4096
# Lines of a host's message that a failure quotes.
QUOTED_LINES = 3


def quoted(error: Exception) -> str:
    """The first lines of a host's message, as one line."""
    return " | ".join(str(error).strip().splitlines()[:QUOTED_LINES]).rstrip(".")


class Failure(NamedTuple):
    """A kernel failed. event: what it does not do ('compile', 'launch', 'run'); words: the host's message."""

    launch: "Launch"
    event: str
    words: str

    def __str__(self) -> str:
        return f"{self.launch.instance.name} does not {self.event}: {self.words}"


class ThreadLimit(NamedTuple):
    """A compiled kernel allows fewer simdgroups in a threadgroup than ``launch`` has."""

    launch: "Launch"
    simdgroups: int


Verdict = Failure | ThreadLimit


class KernelFailure(RuntimeError):
    """A Metal kernel that did not compile, launch or run, where its backend was requested. failure: the verdict."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure


class Learned(Exception):
    """Raised by a launcher before it has changed anything; the planner catches it."""

    def __init__(self, *verdicts: Verdict) -> None:
        super().__init__(*verdicts)
        self.verdicts = verdicts


def _without_launch(instance: "Instance") -> "Instance":
    """The kernel without what only a launch decides: if it fails, it fails in every threadgroup size."""
    return replace(instance, simdgroups=0, stage=False, wide=False)


def _without_width(instance: "Instance") -> "Instance":
    """The kernel without what only the tensors' addresses decide."""
    return replace(instance, wide=False)


class Verdicts:
    """All that was learned up to some point in time. Compared by identity, so that it is a cheap part of a key."""

    __slots__ = ("failures", "limits")

    def __init__(self, failures: "Mapping[Instance, Failure]", limits: "Mapping[Instance, int]") -> None:
        self.failures, self.limits = MappingProxyType(failures), MappingProxyType(limits)

    def __or__(self, learned: Iterable[Verdict]) -> "Verdicts":
        failures, limits = dict(self.failures), dict(self.limits)
        for verdict in learned:
            if isinstance(verdict, Failure):
                failures.setdefault(_without_launch(verdict.launch.instance), verdict)
            else:
                limits[_without_width(verdict.launch.instance)] = verdict.simdgroups
        for known in (failures, limits):
            while len(known) > MAX_VERDICTS:
                del known[next(iter(known))]
        return Verdicts(failures, limits)

    def failure_of(self, launches: "Iterable[Launch]") -> Failure | None:
        """The failure of the first of ``launches`` whose kernel failed; None if none did."""
        if not self.failures:
            return None
        found = (self.failures.get(_without_launch(launch.instance)) for launch in launches)
        return next((failure for failure in found if failure is not None), None)

    def room(self, launches: "Iterable[Launch]") -> int | None:
        """The fewest simdgroups that a kernel of ``launches`` allows, if its launch has more; else None."""
        if not self.limits:
            return None
        known = ((launch, self.limits.get(_without_width(launch.instance))) for launch in launches)
        return min((limit for launch, limit in known if limit is not None and limit < launch.simdgroups), default=None)


NOTHING_LEARNED = Verdicts({}, {})
