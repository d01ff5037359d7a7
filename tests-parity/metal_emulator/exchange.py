"""The calling convention of the runtime: the structures of runtime.h, and the one call that runs a launch."""

import ctypes
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from .build import runtime_library

MAX_CELL = 4
LANES, MAX_FAULTS, MAX_EVENTS = 32, 16, 64

# The runtime keeps its state in one place: launches of different Python threads take turns
_one_at_a_time = threading.Lock()


class BufferIn(ctypes.Structure):
    """One array, and where its counters go."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("cell_shift", ctypes.c_uint32),
        ("read_only", ctypes.c_uint32),
        ("initialised", ctypes.c_uint32),
        ("label", ctypes.c_uint32),
        ("in_place", ctypes.c_uint32),
        ("read_counts", ctypes.c_void_p),
        ("write_counts", ctypes.c_void_p),
        ("bytes_read", ctypes.c_uint64),
        ("bytes_written", ctypes.c_uint64),
    ]


class PointerIn(ctypes.Structure):
    """A [[buffer(n)]] pointer: one of the arrays and a byte offset; buffer -1 if it is unbound."""

    _fields_ = [("buffer", ctypes.c_int64), ("offset", ctypes.c_uint64)]


class Options(ctypes.Structure):
    """How to run."""

    _fields_ = [
        (name, ctypes.c_uint32)
        for name in ("schedule", "seed", "early_return", "threadgroup_limit", "flush_denormals", "private_bounds")
    ]


class FaultOut(ctypes.Structure):
    """One finding."""

    _fields_ = [
        ("kind", ctypes.c_int32),
        ("group", ctypes.c_uint32 * 3),
        ("thread", ctypes.c_uint32 * 3),
        ("code", ctypes.c_uint64 * 2),
        ("detail", ctypes.c_char * 232),
    ]


class EventOut(ctypes.Structure):
    """One METAL_EMULATOR_COUNT event."""

    _fields_ = [("name", ctypes.c_char * 48), ("count", ctypes.c_uint64 * LANES)]


class Result(ctypes.Structure):
    """Findings and counters."""

    _fields_ = [
        ("threadgroups", ctypes.c_uint64),
        ("barriers", ctypes.c_uint64),
        ("simdgroup_barriers", ctypes.c_uint64),
        ("simdgroup_operations", ctypes.c_uint64),
        ("matrix_accesses", ctypes.c_uint64),
        ("matrix_multiplies", ctypes.c_uint64),
        ("tensor_products", ctypes.c_uint64),
        ("threadgroup_bytes", ctypes.c_uint64),
        ("threadgroup_bytes_read", ctypes.c_uint64),
        ("threadgroup_bytes_written", ctypes.c_uint64),
        ("fault_count", ctypes.c_uint32),
        ("event_count", ctypes.c_uint32),
        ("events_lost", ctypes.c_uint64),
        ("faults", FaultOut * MAX_FAULTS),
        ("events", EventOut * MAX_EVENTS),
    ]


@dataclass
class Memory:
    """One array, however many pointers refer to it, and what happened to it."""

    array: np.ndarray
    indices: list[int]
    read_only: bool
    initialised: bool
    checked: bool
    in_place: bool = False
    bytes_read: int = 0
    bytes_written: int = 0

    def __post_init__(self) -> None:
        cells = self.array.nbytes // self.cell_bytes() if self.checked else 0
        self.reads = np.zeros(cells, np.uint16)
        self.writes = np.zeros(cells, np.uint16)

    def cell_bytes(self) -> int:
        """Bytes watched as a unit: an element, or the words of a larger one."""
        size = self.array.itemsize
        if size <= MAX_CELL:
            return size
        return MAX_CELL if size % MAX_CELL == 0 else 1

    def per_element(self, counts: np.ndarray) -> np.ndarray:
        """Counts in the array's shape; for an element of several cells, the largest."""
        cells = self.array.itemsize // self.cell_bytes()
        return counts.reshape(*self.array.shape, cells).max(-1)

    def to_runtime(self) -> BufferIn:
        """In the runtime's form."""
        return BufferIn(
            data=self.array.ctypes.data,
            bytes=self.array.nbytes,
            cell_shift=self.cell_bytes().bit_length() - 1,
            read_only=self.read_only,
            initialised=self.initialised,
            label=self.indices[0],
            in_place=self.in_place,
            read_counts=self.reads.ctypes.data if self.checked else None,
            write_counts=self.writes.ctypes.data if self.checked else None,
        )


@cache
def runtime() -> ctypes.CDLL:
    """The runtime library, checked to lay out its structures as this module does."""
    library = ctypes.CDLL(str(runtime_library()))
    here = [ctypes.sizeof(structure) for structure in (BufferIn, PointerIn, Options, FaultOut, EventOut, Result)]
    there = (ctypes.c_uint32 * len(here))()
    library.metal_emulator_structure_bytes(there)
    if list(there) != here:
        raise RuntimeError(f"exchange.py and runtime.h lay out their structures differently: {here} and {list(there)}")
    return library


def dispatch(
    entry: int,
    memories: Sequence[Memory],
    pointers: Mapping[int, tuple[int, int]],
    argument_bytes: Sequence[int],
    threads: tuple[int, int, int],
    threadgroup: tuple[int, int, int],
    options: Options,
) -> tuple[Result, float]:
    """Run one launch; counters go to `memories` and the result, which includes the seconds it took.

    pointers: for each buffer index its memory's number and byte offset. argument_bytes: of each [[threadgroup(n)]].
    """
    pointer_count = max(pointers, default=-1) + 1
    pointer_array = (PointerIn * pointer_count)(
        *[PointerIn(*pointers.get(index, (-1, 0))) for index in range(pointer_count)]
    )
    buffer_array = (BufferIn * len(memories))(*[memory.to_runtime() for memory in memories])
    result = Result()
    with _one_at_a_time:
        start = time.perf_counter()
        runtime().metal_emulator_dispatch(
            ctypes.c_void_p(entry),
            buffer_array,
            ctypes.c_uint32(len(memories)),
            pointer_array,
            ctypes.c_uint32(pointer_count),
            (ctypes.c_uint64 * len(argument_bytes))(*argument_bytes),
            ctypes.c_uint32(len(argument_bytes)),
            (ctypes.c_uint32 * 3)(*threads),
            (ctypes.c_uint32 * 3)(*threadgroup),
            ctypes.byref(options),
            ctypes.byref(result),
        )
        seconds = time.perf_counter() - start
    for memory, buffer in zip(memories, buffer_array, strict=True):
        memory.bytes_read = buffer.bytes_read
        memory.bytes_written = buffer.bytes_written
    return result, seconds
