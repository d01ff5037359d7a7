"""Kernels and how to launch them on numpy arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .build import Variant
from .exchange import MAX_EVENTS, FaultOut, Memory, Options, Result, dispatch
from .report import EmulatorFault, Fault, FaultKind, Report
from .signature import BUFFER, THREADGROUP_MEMORY, Binding
from .source_lines import source_place

SCHEDULES = ("forward", "reverse", "random", "greedy")
THREADGROUP_LIMIT = 32768
MAX_THREADS = 1024


@dataclass(frozen=True)
class Buffer:
    """An array bound at a byte offset, as setBuffer:offset: does; the kernel sees the array from there on.

    initialised=False: the contents count as never written, and start as 0xFF bytes (NaN). in_place: the kernel gets the
    array itself, for arrays too large to copy; they are not watched, so only libraries compiled with checked=False
    accept them. Buffers that share memory must be given as the same array, with offsets.
    """

    array: np.ndarray
    offset: int = 0
    initialised: bool = True
    in_place: bool = False


Bindable = Buffer | np.ndarray | np.generic | bytes


def _as_buffer(value: Bindable) -> Buffer:
    if isinstance(value, Buffer):
        return value
    if isinstance(value, bytes):
        return Buffer(np.frombuffer(value, np.uint8))
    if isinstance(value, np.generic):
        return Buffer(np.asarray(value).reshape(1))
    if isinstance(value, np.ndarray):
        return Buffer(value)
    raise TypeError(f"a buffer is a numpy array or scalar, bytes or a Buffer, not {type(value).__name__}")


def _three(sizes: Sequence[int] | int, name: str) -> tuple[int, int, int]:
    given = [sizes] if isinstance(sizes, int) else [int(size) for size in sizes]
    if not 1 <= len(given) <= 3 or min(given) < 1:
        raise ValueError(f"{name} must be one to three positive sizes, not {given}")
    x, y, z = [*given, 1, 1][:3]
    return x, y, z


class Kernel:
    """One kernel of a compiled library."""

    def __init__(self, name: str, entry: int, library: Path, bindings: tuple[Binding, ...], variant: Variant) -> None:
        self.name = name
        self.bindings = bindings
        self._entry = entry
        self._library = library
        self._variant = variant

    def launch(
        self,
        buffers: Mapping[int, Bindable] | Sequence[Bindable],
        threads: Sequence[int] | int,
        threadgroup: Sequence[int] | int,
        *,
        threadgroup_memory: Mapping[int, int] | None = None,
        schedule: str = "forward",
        seed: int = 0,
        early_return: bool = False,
        threadgroup_limit: int = THREADGROUP_LIMIT,
        raise_on_fault: bool = True,
    ) -> Report:
        """Run the kernel over `threads` threads in groups of `threadgroup`, as dispatchThreads does.

        buffers: by index, or in order from 0. Arrays that the kernel may write are changed in place. Groups at the
        far edges are smaller where the sizes do not divide. threadgroup_memory: bytes of each [[threadgroup(n)]]
        argument. early_return=True allows threads to return before a barrier that others reach. Raises EmulatorFault
        if anything was found, unless raise_on_fault is False: then look at the report's `faults`.
        """
        size = _three(threads, "threads")
        group = _three(threadgroup, "threadgroup")
        if group[0] * group[1] * group[2] > MAX_THREADS:
            raise ValueError(f"a threadgroup has at most {MAX_THREADS} threads, not {group}")
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {SCHEDULES}, not {schedule!r}")
        variant = self._variant
        options = Options(
            SCHEDULES.index(schedule),
            seed % 2**32,
            early_return,
            threadgroup_limit,
            variant.fast_math,
            variant.sanitizer == "address",
        )
        memories, pointers = self._bind(buffers)
        argument_bytes = self._argument_bytes(threadgroup_memory or {})
        report = self._report(
            memories, *dispatch(self._entry, memories, pointers, argument_bytes, size, group, options)
        )
        if raise_on_fault and not report.ok:
            raise EmulatorFault(report)
        return report

    def launch_groups(
        self,
        buffers: Mapping[int, Bindable] | Sequence[Bindable],
        groups: Sequence[int] | int,
        threadgroup: Sequence[int] | int,
        **options: Any,
    ) -> Report:
        """launch() by the number of threadgroups, as dispatchThreadgroups does."""
        count = _three(groups, "groups")
        group = _three(threadgroup, "threadgroup")
        return self.launch(buffers, tuple(n * m for n, m in zip(count, group, strict=True)), group, **options)

    def _bind(
        self, buffers: Mapping[int, Bindable] | Sequence[Bindable]
    ) -> tuple[list[Memory], dict[int, tuple[int, int]]]:
        """The memories, and for each buffer index its memory's number and byte offset."""
        given = dict(buffers if isinstance(buffers, Mapping) else enumerate(buffers))
        declared = {binding.index: binding for binding in self.bindings if binding.source == BUFFER}
        if set(given) != set(declared):
            raise ValueError(f"kernel {self.name} has buffers {sorted(declared)}, but was given {sorted(given)}")
        memories: list[Memory] = []
        pointers = {}
        for index in sorted(given):
            buffer = _as_buffer(given[index])
            read_only = declared[index].read_only
            self._check_buffer(index, buffer, read_only)
            pointers[index] = (self._find_memory(memories, index, buffer, read_only), buffer.offset)
        return memories, pointers

    def _check_buffer(self, index: int, buffer: Buffer, read_only: bool) -> None:
        if buffer.in_place and self._variant.checked:
            raise ValueError(f"kernel {self.name} checks every access, and buffer({index}) is bound in place")
        if not buffer.array.flags.c_contiguous:
            raise ValueError(f"kernel {self.name}: the array of buffer({index}) is not contiguous")
        if not read_only and not buffer.array.flags.writeable:
            raise ValueError(
                f"kernel {self.name}: the array of buffer({index}) is read-only, and the kernel may write it"
            )
        if not 0 <= buffer.offset <= buffer.array.nbytes:
            raise ValueError(f"kernel {self.name}: offset {buffer.offset} lies outside buffer({index})")

    def _find_memory(self, memories: list[Memory], index: int, buffer: Buffer, read_only: bool) -> int:
        for number, memory in enumerate(memories):
            if not np.may_share_memory(memory.array, buffer.array) or not buffer.array.size:
                continue
            if (memory.array.ctypes.data, memory.array.nbytes) != (buffer.array.ctypes.data, buffer.array.nbytes):
                raise ValueError(
                    f"kernel {self.name}: buffer({memory.indices[0]}) and buffer({index}) overlap; bind one array "
                    f"with offsets"
                )
            memory.indices.append(index)
            memory.read_only = memory.read_only and read_only
            memory.initialised = memory.initialised and buffer.initialised
            return number
        checked = self._variant.checked
        memories.append(Memory(buffer.array, [index], read_only, buffer.initialised, checked, buffer.in_place))
        return len(memories) - 1

    def _argument_bytes(self, given: Mapping[int, int]) -> list[int]:
        declared = sorted(binding.index for binding in self.bindings if binding.source == THREADGROUP_MEMORY)
        if sorted(given) != declared:
            raise ValueError(f"kernel {self.name} has threadgroup arguments {declared}, but was given {sorted(given)}")
        return [given.get(index, 0) for index in range(max(declared, default=-1) + 1)]

    def _report(self, memories: Sequence[Memory], result: Result, seconds: float) -> Report:
        if result.events_lost:
            raise ValueError(f"kernel {self.name} counts more than {MAX_EVENTS} different events")
        checked = self._variant.checked
        by_index = {index: memory for memory in memories for index in memory.indices}
        return Report(
            kernel=self.name,
            faults=tuple(self._fault(fault) for fault in result.faults[: result.fault_count]),
            threadgroups=result.threadgroups,
            multiply_accumulates=result.matrix_multiplies,
            tensor_products=result.tensor_products,
            matrix_accesses=result.matrix_accesses,
            simdgroup_operations=result.simdgroup_operations,
            barriers=result.barriers,
            simdgroup_barriers=result.simdgroup_barriers,
            threadgroup_bytes=result.threadgroup_bytes,
            bytes_read={index: memory.bytes_read for index, memory in by_index.items()} if checked else None,
            bytes_written={index: memory.bytes_written for index, memory in by_index.items()} if checked else None,
            threadgroup_bytes_read=result.threadgroup_bytes_read if checked else None,
            threadgroup_bytes_written=result.threadgroup_bytes_written if checked else None,
            seconds=seconds,
            read_counts={index: m.per_element(m.reads) for index, m in by_index.items()} if checked else None,
            write_counts={index: m.per_element(m.writes) for index, m in by_index.items()} if checked else None,
            event_lanes={event.name.decode(): tuple(event.count) for event in result.events[: result.event_count]},
        )

    def _fault(self, fault: FaultOut) -> Fault:
        places = tuple(source_place(self._library, code) for code in fault.code if code)
        return Fault(
            tuple(FaultKind)[fault.kind], fault.detail.decode(), places, tuple(fault.group), tuple(fault.thread)
        )
