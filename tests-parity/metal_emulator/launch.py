"""Running a kernel on numpy arrays: the exchange with the runtime."""

import ctypes
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from .build import Variant, runtime_library
from .report import EmulatorFault, Fault, FaultKind, Report
from .signature import BUFFER, THREADGROUP_MEMORY, Binding

SCHEDULES = ("forward", "reverse", "random", "greedy")
THREADGROUP_LIMIT = 32768
MAX_THREADS = 1024
MAX_CELL = 4
LANES, MAX_FAULTS, MAX_EVENTS = 32, 16, 64

_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Buffer:
    """An array bound at a byte offset, as setBuffer:offset: does; the kernel sees the array from there on.

    initialised=False: the contents count as never written, and start as 0xFF bytes (NaN).
    Slots that share memory must be given the same array object's memory, with offsets.
    """

    array: np.ndarray
    offset: int = 0
    initialised: bool = True


Bindable = Buffer | np.ndarray | np.generic | bytes


class _BufferIn(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("cell_shift", ctypes.c_uint32),
        ("read_only", ctypes.c_uint32),
        ("initialised", ctypes.c_uint32),
        ("label", ctypes.c_uint32),
        ("read_counts", ctypes.c_void_p),
        ("write_counts", ctypes.c_void_p),
        ("bytes_read", ctypes.c_uint64),
        ("bytes_written", ctypes.c_uint64),
    ]


class _SlotIn(ctypes.Structure):
    _fields_ = [("buffer", ctypes.c_int64), ("offset", ctypes.c_uint64)]


class _Options(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint32)
        for name in ("schedule", "seed", "early_return", "threadgroup_limit", "flush_denormals", "private_bounds")
    ]


class _FaultOut(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int32),
        ("group", ctypes.c_uint32 * 3),
        ("thread", ctypes.c_uint32 * 3),
        ("code", ctypes.c_uint64 * 2),
        ("detail", ctypes.c_char * 232),
    ]


class _EventOut(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char * 48), ("count", ctypes.c_uint64 * LANES)]


class _Result(ctypes.Structure):
    _fields_ = [
        ("threadgroups", ctypes.c_uint64),
        ("barriers", ctypes.c_uint64),
        ("simdgroup_barriers", ctypes.c_uint64),
        ("simdgroup_operations", ctypes.c_uint64),
        ("matrix_accesses", ctypes.c_uint64),
        ("matrix_multiplies", ctypes.c_uint64),
        ("threadgroup_bytes", ctypes.c_uint64),
        ("threadgroup_bytes_read", ctypes.c_uint64),
        ("threadgroup_bytes_written", ctypes.c_uint64),
        ("fault_count", ctypes.c_uint32),
        ("event_count", ctypes.c_uint32),
        ("events_lost", ctypes.c_uint64),
        ("faults", _FaultOut * MAX_FAULTS),
        ("events", _EventOut * MAX_EVENTS),
    ]


@dataclass
class _Memory:
    """One array, however many slots show it."""

    array: np.ndarray
    slots: list[int]
    read_only: bool
    initialised: bool
    read_counts: np.ndarray | None = None
    write_counts: np.ndarray | None = None

    def cell_bytes(self) -> int:
        size = self.array.itemsize
        return size if size in (1, 2) else (MAX_CELL if size % MAX_CELL == 0 else 1)

    def make_counters(self) -> None:
        cells = self.array.nbytes // self.cell_bytes()
        self.read_counts = np.zeros(cells, np.uint16)
        self.write_counts = np.zeros(cells, np.uint16)

    def per_element(self, counts: np.ndarray) -> np.ndarray:
        cells = self.array.itemsize // self.cell_bytes()
        return counts.reshape(*self.array.shape, cells).max(-1)

    def to_runtime(self) -> _BufferIn:
        pointer = {
            counts: None if getattr(self, counts) is None else getattr(self, counts).ctypes.data
            for counts in ("read_counts", "write_counts")
        }
        return _BufferIn(
            data=self.array.ctypes.data,
            bytes=self.array.nbytes,
            cell_shift=self.cell_bytes().bit_length() - 1,
            read_only=self.read_only,
            initialised=self.initialised,
            label=self.slots[0],
            **pointer,
        )


@cache
def _runtime() -> ctypes.CDLL:
    return ctypes.CDLL(str(runtime_library()))


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
    sizes = (sizes,) if isinstance(sizes, int) else tuple(int(size) for size in sizes)
    if not 1 <= len(sizes) <= 3 or min(sizes) < 1:
        raise ValueError(f"{name} must be one to three positive sizes, not {sizes}")
    return (*sizes, 1, 1)[:3]


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

        buffers: by slot, or in order from slot 0. Arrays that the kernel may write are changed in place. Groups at the
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
        options = _Options(
            SCHEDULES.index(schedule),
            seed % 2**32,
            early_return,
            threadgroup_limit,
            variant.fast_math,
            variant.sanitizer == "address",
        )
        memories, slots = self._bind(buffers)
        result = _Result()
        seconds = self._dispatch(
            memories, slots, self._argument_bytes(threadgroup_memory or {}), size, group, options, result
        )
        report = self._report(memories, result, seconds)
        if raise_on_fault and not report.ok:
            raise EmulatorFault(report)
        return report

    def launch_groups(
        self,
        buffers: Mapping[int, Bindable] | Sequence[Bindable],
        groups: Sequence[int] | int,
        threadgroup: Sequence[int] | int,
        **options,
    ) -> Report:
        """launch() by the number of threadgroups, as dispatchThreadgroups does."""
        count = _three(groups, "groups")
        group = _three(threadgroup, "threadgroup")
        return self.launch(buffers, tuple(n * m for n, m in zip(count, group, strict=True)), group, **options)

    def _bind(
        self, buffers: Mapping[int, Bindable] | Sequence[Bindable]
    ) -> tuple[list[_Memory], dict[int, tuple[int, int]]]:
        """Memories, and for each slot its memory and byte offset."""
        given = dict(buffers if isinstance(buffers, Mapping) else enumerate(buffers))
        declared = {binding.index: binding for binding in self.bindings if binding.source == BUFFER}
        if set(given) != set(declared):
            raise ValueError(f"kernel {self.name} has buffers {sorted(declared)}, but was given {sorted(given)}")
        memories: list[_Memory] = []
        slots = {}
        for index in sorted(given):
            buffer = _as_buffer(given[index])
            read_only = declared[index].read_only
            self._check_buffer(index, buffer, read_only)
            slots[index] = (self._find_memory(memories, index, buffer, read_only), buffer.offset)
        if self._variant.checked:
            for memory in memories:
                memory.make_counters()
        return memories, slots

    def _check_buffer(self, index: int, buffer: Buffer, read_only: bool) -> None:
        if not buffer.array.flags.c_contiguous:
            raise ValueError(f"kernel {self.name}: the array of buffer({index}) is not contiguous")
        if not read_only and not buffer.array.flags.writeable:
            raise ValueError(
                f"kernel {self.name}: the array of buffer({index}) is read-only, and the kernel may write it"
            )
        if not 0 <= buffer.offset <= buffer.array.nbytes:
            raise ValueError(f"kernel {self.name}: offset {buffer.offset} lies outside buffer({index})")

    def _find_memory(self, memories: list[_Memory], index: int, buffer: Buffer, read_only: bool) -> int:
        for number, memory in enumerate(memories):
            if not np.may_share_memory(memory.array, buffer.array) or not buffer.array.size:
                continue
            same = memory.array.ctypes.data == buffer.array.ctypes.data and memory.array.nbytes == buffer.array.nbytes
            if not same:
                raise ValueError(
                    f"kernel {self.name}: buffer({memory.slots[0]}) and buffer({index}) overlap; bind one array "
                    f"with offsets"
                )
            memory.slots.append(index)
            memory.read_only = memory.read_only and read_only
            memory.initialised = memory.initialised and buffer.initialised
            return number
        memories.append(_Memory(buffer.array, [index], read_only, buffer.initialised))
        return len(memories) - 1

    def _argument_bytes(self, given: Mapping[int, int]) -> list[int]:
        declared = sorted(binding.index for binding in self.bindings if binding.source == THREADGROUP_MEMORY)
        if sorted(given) != declared:
            raise ValueError(f"kernel {self.name} has threadgroup arguments {declared}, but was given {sorted(given)}")
        return [given.get(index, 0) for index in range(max(declared, default=-1) + 1)]

    def _dispatch(self, memories, slots, argument_bytes, size, group, options, result) -> float:
        count = max(slots, default=-1) + 1
        slot_array = (_SlotIn * count)(*[_SlotIn(*slots.get(index, (-1, 0))) for index in range(count)])
        buffer_array = (_BufferIn * len(memories))(*[memory.to_runtime() for memory in memories])
        bytes_array = (ctypes.c_uint64 * len(argument_bytes))(*argument_bytes)
        sizes = [(ctypes.c_uint32 * 3)(*size), (ctypes.c_uint32 * 3)(*group)]
        with _one_at_a_time:
            start = time.perf_counter()
            _runtime().metal_emulator_dispatch(
                ctypes.c_void_p(self._entry),
                buffer_array,
                ctypes.c_uint32(len(memories)),
                slot_array,
                ctypes.c_uint32(count),
                bytes_array,
                ctypes.c_uint32(len(argument_bytes)),
                *sizes,
                ctypes.byref(options),
                ctypes.byref(result),
            )
            seconds = time.perf_counter() - start
        self._bytes = [(buffer.bytes_read, buffer.bytes_written) for buffer in buffer_array]
        return seconds

    def _report(self, memories: list[_Memory], result: _Result, seconds: float) -> Report:
        if result.events_lost:
            raise ValueError(f"kernel {self.name} counts more than {MAX_EVENTS} different events")
        checked = self._variant.checked
        by_slot = [(slot, number) for number, memory in enumerate(memories) for slot in memory.slots]
        faults = list(result.faults[: result.fault_count])
        return Report(
            kernel=self.name,
            faults=tuple(self._fault(fault) for fault in faults),
            threadgroups=result.threadgroups,
            multiply_accumulates=result.matrix_multiplies,
            matrix_accesses=result.matrix_accesses,
            simdgroup_operations=result.simdgroup_operations,
            barriers=result.barriers,
            simdgroup_barriers=result.simdgroup_barriers,
            threadgroup_bytes=result.threadgroup_bytes,
            bytes_read={slot: self._bytes[number][0] for slot, number in by_slot} if checked else None,
            bytes_written={slot: self._bytes[number][1] for slot, number in by_slot} if checked else None,
            threadgroup_bytes_read=result.threadgroup_bytes_read if checked else None,
            threadgroup_bytes_written=result.threadgroup_bytes_written if checked else None,
            seconds=seconds,
            read_counts={slot: memories[number].per_element(memories[number].read_counts) for slot, number in by_slot}
            if checked
            else None,
            write_counts={slot: memories[number].per_element(memories[number].write_counts) for slot, number in by_slot}
            if checked
            else None,
            event_lanes={event.name.decode(): tuple(event.count) for event in result.events[: result.event_count]},
        )

    def _fault(self, fault: _FaultOut) -> Fault:
        places = tuple(source_place(self._library, code) for code in fault.code if code)
        return Fault(
            tuple(FaultKind)[fault.kind], fault.detail.decode(), places, tuple(fault.group), tuple(fault.thread)
        )


@cache
def symbolizer() -> list[str]:
    """The command that turns code offsets into lines of source; llvm's own follows inlined calls best."""
    for command in (["llvm-symbolizer-19", "--functions=none", "--inlines"], ["addr2line", "-i"]):
        if shutil.which(command[0]):
            return command
    return []


def source_place(library: Path, code: int) -> str:
    """`kernel.metal:12` of a return address in a kernel library: the innermost call that is not in the shim."""
    command = symbolizer()
    if not command:
        return f"{library.name}+{code - 1:#x}"
    done = subprocess.run([*command, "-e", str(library), hex(code - 1)], capture_output=True, text=True, check=True)
    places = re.findall(r"^(.+?:\d+)", done.stdout, re.MULTILINE)
    outside = [place for place in places if f"{Path(__file__).parent.name}/shim/" not in place] or places
    return Path(outside[0]).name if outside else f"{library.name}+{code - 1:#x}"
