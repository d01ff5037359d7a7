"""What a launch found and counted."""

from dataclasses import dataclass, field
from enum import Enum

import numpy as np


class FaultKind(Enum):
    """Kinds of faults, in the order of runtime.h."""

    OUT_OF_BOUNDS = "out of bounds"
    UNINITIALISED_READ = "read of uninitialised memory"
    DATA_RACE = "data race"
    BARRIER_DIVERGENCE = "divergent barrier"
    SIMDGROUP_DIVERGENCE = "divergent simdgroup operation"
    PARTIAL_SIMDGROUP = "simdgroup_matrix operation without all lanes"
    INACTIVE_LANE = "read of an inactive lane"
    THREADGROUP_MEMORY = "too much threadgroup memory"
    READ_ONLY_WRITE = "write to read-only memory"
    WILD_ACCESS = "access to no buffer"
    MISALIGNED = "misaligned access"
    PRIVATE_MEMORY = "private memory out of bounds"
    UNDEFINED_BEHAVIOUR = "undefined behaviour"


@dataclass(frozen=True)
class Fault:
    """One fault: the first of its kind at its place in the source."""

    kind: FaultKind
    detail: str
    where: tuple[str, ...]  # file:line, outermost call last; a divergence has two places
    group: tuple[int, int, int]
    thread: tuple[int, int, int]  # position in the threadgroup

    def __str__(self) -> str:
        place = " and ".join(self.where) or "unknown place"
        return f"{self.kind.value} at {place}, threadgroup {self.group}, thread {self.thread}: {self.detail}"


@dataclass(frozen=True)
class Report:
    """Findings and counters of one launch.

    Byte counts and element counts are None for libraries compiled with checked=False. The dictionaries' keys are buffer
    indices; those that share an array share its counts.
    """

    kernel: str
    faults: tuple[Fault, ...]
    threadgroups: int
    multiply_accumulates: int  # 8x8 simdgroup_matrix products
    tensor_products: int  # matmul2d of one simdgroup each
    matrix_accesses: int  # simdgroup_load and simdgroup_store
    simdgroup_operations: int  # shuffles, reductions, votes, prefix sums
    barriers: int  # threadgroup barriers, summed over the groups
    simdgroup_barriers: int
    threadgroup_bytes: int  # the most that one group had
    bytes_read: dict[int, int] | None  # requested by the kernel
    bytes_written: dict[int, int] | None
    threadgroup_bytes_read: int | None
    threadgroup_bytes_written: int | None
    seconds: float
    read_counts: dict[int, np.ndarray] | None = field(repr=False)  # how often each element was read (65535: or more)
    write_counts: dict[int, np.ndarray] | None = field(repr=False)
    event_lanes: dict[str, tuple[int, ...]] = field(repr=False)  # counts by lane

    @property
    def ok(self) -> bool:
        return not self.faults

    def kinds(self) -> set[FaultKind]:
        """The kinds of fault found."""
        return {fault.kind for fault in self.faults}

    def thread_events(self, name: str) -> int:
        """How often threads passed METAL_EMULATOR_COUNT(name); 0 if never."""
        return sum(self.event_lanes.get(name, ()))

    def simdgroup_events(self, name: str) -> int:
        """How often simdgroups passed METAL_EMULATOR_COUNT(name), all lanes together; ValueError if lanes differ."""
        lanes = self.event_lanes.get(name, (0,))
        if len(set(lanes)) != 1:
            raise ValueError(f"event {name!r}: the lanes of a simdgroup counted differently: {lanes}")
        return lanes[0]

    def written_once(self, index: int) -> bool:
        """Whether every element of a buffer was written exactly once."""
        return bool((self._counts(self.write_counts, index) == 1).all())

    def never_written(self, index: int) -> bool:
        """Whether no element of a buffer was written."""
        return not self._counts(self.write_counts, index).any()

    def read_once(self, index: int) -> bool:
        """Whether every element of a buffer was read exactly once."""
        return bool((self._counts(self.read_counts, index) == 1).all())

    @staticmethod
    def _counts(counts: dict[int, np.ndarray] | None, index: int) -> np.ndarray:
        if counts is None:
            raise ValueError("elements are counted only in libraries compiled with checked=True")
        return counts[index]


class EmulatorFault(RuntimeError):
    """A launch with findings; `report` has them all."""

    def __init__(self, report: Report) -> None:
        self.report = report
        super().__init__(f"kernel {report.kernel}:\n" + "\n".join(map(str, report.faults)))
