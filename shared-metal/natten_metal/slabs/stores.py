"""Arrays of any size, in memory or in files, that slabs are read from and written to.

A file is read and written by positions in it, never through a map: what was read of a mapped file would count as the
process's memory until the system wants it back, and a file that was cut short meanwhile would end the process.
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
from .host import Host

# A range of indices on each axis, from the first one on.
Ranges = Sequence[tuple[int, int]]
# Bytes of an array in memory that are digested at once.
DIGESTED = 16 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a file an array lies, in C's order. start: the offset of its first byte."""

    path: Path
    start: int


@dataclass(frozen=True, slots=True, eq=False)
class Store:
    """One array of a call. values: numpy's view of it, bfloat16 as 16-bit integers; dtype: the name of its own.

    place: None for an array in memory. mine: whether this call made the file.
    """

    face: str
    name: str
    values: Any
    dtype: str
    place: Place | None = None
    mine: bool = False

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(tuple(self.values.shape), self.dtype)

    def read(self, at: Ranges) -> Any:
        """A copy of a slab, in C's order."""
        import numpy

        part = numpy.empty([high - low for low, high in at], self.values.dtype)
        if self.place is None:
            part[...] = self.values[_slices(at)]
            return part
        with self.place.path.open("rb", buffering=0) as file:
            for start, run in self._runs(at, part):
                file.seek(start)
                while run:
                    found = file.readinto(run)
                    if not found:
                        raise rules.cut_short(self.face, self.name, self.place.path)
                    run = run[found:]
        return part

    def write(self, at: Ranges, part: Any) -> None:
        """Replace a slab; when this returns, the disk has it."""
        if self.place is None:
            self.values[_slices(at)] = part
            return
        with self.place.path.open("r+b", buffering=0) as file:
            for start, run in self._runs(at, part):
                file.seek(start)
                while run:
                    run = run[file.write(run) :]
            os.fsync(file.fileno())

    def _runs(self, at: Ranges, part: Any) -> Iterator[tuple[int, memoryview]]:
        """The runs of bytes of a slab that lie side by side in the file: where each starts, and its bytes in ``part``,
        which is in C's order.
        """
        assert self.place is not None
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
            yield self.place.start + start, content[number * length : (number + 1) * length]

    def identity(self) -> dict[str, Any]:
        """By what a journal knows an input again: its file, or its content."""
        if self.place is None:
            return {"digest": _digest(self.values)}
        status = self.place.path.stat()
        found = {"file": str(self.place.path), "start": self.place.start}
        return found | {"size of file": status.st_size, "time of file": status.st_mtime_ns}

    def destination(self) -> dict[str, Any]:
        """By what a journal knows a result's file again, which changes all the time."""
        assert self.place is not None
        path = self.place.path
        return {"file": str(path), "number of file": path.stat().st_ino if path.exists() else None}


def _slices(at: Ranges) -> tuple[slice, ...]:
    return tuple(slice(*pair) for pair in at)


def _digest(values: Any) -> str:
    """Of an array's content in C's order, without a copy of all of it."""
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


def given(host: Host, face: str, name: str, value: Any) -> Store:
    """The store of an argument: an array, a tensor or a path. Errors name it."""
    import numpy

    if isinstance(value, str | os.PathLike):
        path = Path(value)
        rules.npy_path(face, name, path)
        value = numpy.load(path, mmap_mode="r", allow_pickle=False)
    if host.framework.is_tensor(value):
        spec = host.framework.spec(face, name, value)
        return Store(face, name, host.values(face, name, value), spec.dtype)
    if not isinstance(value, numpy.ndarray):
        rules.reject_array(face, name, value)
    dtype = rules.numpy_dtype(face, name, value.dtype)
    checks.require_dtype(face, name, dtype)
    plain = value.view(numpy.ndarray)
    return Store(face, name, plain.view("u2") if dtype == "bfloat16" else plain, dtype, _place(value))


def _place(array: Any) -> Place | None:
    """The file in which an array's elements lie in C's order, by whose content they are known; None: there is none."""
    import numpy

    root = array
    while isinstance(root.base, numpy.ndarray):
        root = root.base
    if not isinstance(root, numpy.memmap) or root.filename is None or root.mode == "c" or not array.flags.c_contiguous:
        return None  # what was changed in a map of mode "c" is not in the file
    first, own = (each.__array_interface__["data"][0] for each in (root, array))
    return Place(Path(root.filename).resolve(), root.offset + own - first)


def result(host: Host, face: str, name: str, value: Any, wanted: TensorSpec) -> Store:
    """The store of a result, for which an array or a path is given; the file of a path is not made yet."""
    import numpy

    if isinstance(value, str | os.PathLike):
        path = Path(value)
        rules.npy_path(face, name, path)
        if wanted.dtype == "bfloat16":
            rules.reject_bfloat16_file(face, name)
        nothing = numpy.broadcast_to(numpy.empty((), wanted.dtype), wanted.shape)
        return Store(face, name, nothing, wanted.dtype, Place(path.resolve(), 0), mine=True)
    found = given(host, face, name, value)
    rules.check_output(face, name, found.spec, wanted, found.values.flags.writeable)
    return found


def opened(store: Store, anew: bool) -> Store:
    """The store of a result with its file there: made anew, or that of an interrupted call."""
    import numpy

    if not store.mine:
        return store
    assert store.place is not None
    path = store.place.path
    if anew:
        array = numpy.lib.format.open_memmap(path, "w+", store.dtype, store.values.shape)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    else:
        array = numpy.load(path, mmap_mode="r+", allow_pickle=False)
        spec = TensorSpec(array.shape, rules.numpy_dtype(store.face, store.name, array.dtype))
        rules.check_output(store.face, store.name, spec, store.spec, writable=True)
    return Store(store.face, store.name, array.view(numpy.ndarray), store.dtype, _place(array), mine=True)
