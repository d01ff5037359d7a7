"""Arrays of any size, in memory or in files, that slabs are read from and written to.

Files are read and written at offsets, never through a memory map: pages that were read through a map count as the
process's memory until the system reclaims them, and a file that is truncated meanwhile would kill the process.
"""

import hashlib
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..problem import checks
from ..problem.checks import slabs as rules
from ..problem.problem import TensorSpec
from .adapter import Adapter

# A range of indices on each of the first axes.
Ranges = Sequence[tuple[int, int]]
# Bytes of an array in memory that are digested at once.
DIGESTED = 16 << 20


@dataclass(frozen=True, slots=True)
class Location:
    """Where in a file an array lies, in C's order. start: the offset of its first byte."""

    path: Path
    start: int


@dataclass(frozen=True, slots=True, eq=False)
class Store:
    """One array of a call. values: numpy's view of it, bfloat16 as 16-bit integers; dtype: the name of its own.

    location: None for an array in memory. mine: whether this call creates the file.
    """

    face: str
    name: str
    values: Any
    dtype: str
    location: Location | None = None
    mine: bool = False

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(tuple(self.values.shape), self.dtype)

    def read(self, at: Ranges) -> Any:
        """A copy of a slab, in C's order."""
        import numpy

        part = numpy.empty([high - low for low, high in at], self.values.dtype)
        if self.location is None:
            part[...] = self.values[_slices(at)]
            return part
        with self.location.path.open("rb", buffering=0) as file:
            for start, run in self._runs(at, part):
                file.seek(start)
                while run:
                    found = file.readinto(run)
                    if not found:
                        raise rules.cut_short(self.face, self.name, self.location.path)
                    run = run[found:]
        return part

    def write(self, at: Ranges, part: Any) -> None:
        """Replace a slab; when this returns, the disk has it."""
        if self.location is None:
            self.values[_slices(at)] = part
            return
        with self.location.path.open("r+b", buffering=0) as file:
            for start, run in self._runs(at, part):
                file.seek(start)
                while run:
                    run = run[file.write(run) :]
            os.fsync(file.fileno())

    def _runs(self, at: Ranges, part: Any) -> Iterator[tuple[int, memoryview]]:
        """The runs of bytes of a slab that lie side by side in the file: where each starts, and its bytes in ``part``,
        which is in C's order.
        """
        assert self.location is not None
        shape, size = self.values.shape, part.itemsize
        if not part.size:
            return
        cut = max((axis for axis, whole in enumerate(shape) if at[axis] != (0, whole)), default=0)
        strides = [size * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        length = (at[cut][1] - at[cut][0]) * strides[cut]
        content = memoryview(part).cast("B")
        outer = itertools.product(*(range(*pair) for pair in at[:cut]))
        for number, index in enumerate(outer):
            start = sum(i * stride for i, stride in zip((*index, at[cut][0]), strides, strict=False))
            yield self.location.start + start, content[number * length : (number + 1) * length]

    def identity(self) -> dict[str, Any]:
        """How a journal recognises an input: by its file, or by its content."""
        if self.location is None:
            return {"digest": _digest(self.values)}
        status = self.location.path.stat()
        found = {"file": str(self.location.path), "start": self.location.start}
        return found | {"file size": status.st_size, "modification time": status.st_mtime_ns}

    def destination(self) -> dict[str, Any]:
        """How a journal recognises a result's file, whose content and times change with each slab."""
        assert self.location is not None
        path = self.location.path
        return {"file": str(path), "inode": path.stat().st_ino if path.exists() else None}


def _slices(at: Ranges) -> tuple[slice, ...]:
    return tuple(slice(*pair) for pair in at)


def _digest(values: Any) -> str:
    """A digest of an array's content in C's order, without a copy of all of it."""
    import numpy

    found = hashlib.blake2b(digest_size=16)
    if values.nbytes <= DIGESTED or not values.ndim:
        found.update(numpy.ascontiguousarray(values).tobytes())
        return found.hexdigest()
    at_once = max(1, DIGESTED * len(values) // values.nbytes)
    for first in range(0, len(values), at_once):
        part = values[first : first + at_once]
        found.update(_digest(part[0] if len(part) == 1 else part).encode())
    return found.hexdigest()


# --- from arguments to stores ------------------------------------------------------------------------


def given(adapter: Adapter, face: str, name: str, value: Any) -> Store:
    """The store of an argument: an array, a tensor or a path. Errors name it."""
    import numpy

    if isinstance(value, str | os.PathLike):
        path = Path(value)
        rules.npy_path(face, name, path)
        value = numpy.load(path, mmap_mode="r", allow_pickle=False)
    if adapter.framework.is_tensor(value):
        spec = adapter.framework.spec(face, name, value)
        return Store(face, name, adapter.values(face, name, value), spec.dtype)
    if not isinstance(value, numpy.ndarray):
        rules.reject_array(face, name, value)
    dtype = rules.numpy_dtype(face, name, value.dtype)
    checks.require_dtype(face, name, dtype)
    plain = value.view(numpy.ndarray)
    return Store(face, name, plain.view("u2") if dtype == "bfloat16" else plain, dtype, _location(value))


def _location(array: Any) -> Location | None:
    """Where in a file the elements of a memory-mapped array lie, in C's order; None for any other array."""
    import numpy

    root = array
    while isinstance(root.base, numpy.ndarray):
        root = root.base
    if not isinstance(root, numpy.memmap) or root.filename is None or root.mode == "c" or not array.flags.c_contiguous:
        return None  # what was changed in a map of mode "c" is not in the file
    first, own = (each.__array_interface__["data"][0] for each in (root, array))
    return Location(Path(root.filename).resolve(), root.offset + own - first)


def result(adapter: Adapter, face: str, name: str, value: Any, wanted: TensorSpec) -> Store:
    """The store of a result, given as an array or a path; a path's file is not created yet."""
    import numpy

    if isinstance(value, str | os.PathLike):
        path = Path(value)
        rules.npy_path(face, name, path)
        if wanted.dtype == "bfloat16":
            rules.reject_bfloat16_file(face, name)
        nothing = numpy.broadcast_to(numpy.empty((), wanted.dtype), wanted.shape)
        return Store(face, name, nothing, wanted.dtype, Location(path.resolve(), 0), mine=True)
    found = given(adapter, face, name, value)
    rules.check_output(face, name, found.spec, wanted, found.values.flags.writeable)
    return found


def opened(store: Store, create: bool) -> Store:
    """The store of a result whose file exists: created here, or by the call that was interrupted."""
    import numpy

    if not store.mine:
        return store
    assert store.location is not None
    path = store.location.path
    if create:
        array = numpy.lib.format.open_memmap(path, "w+", store.dtype, store.values.shape)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    else:
        array = numpy.load(path, mmap_mode="r+", allow_pickle=False)
        spec = TensorSpec(array.shape, rules.numpy_dtype(store.face, store.name, array.dtype))
        rules.check_output(store.face, store.name, spec, store.spec, writable=True)
    return Store(store.face, store.name, array.view(numpy.ndarray), store.dtype, _location(array), mine=True)
