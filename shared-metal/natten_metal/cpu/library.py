"""The CPU kernels' C interface (``cpu/natten_cpu.h``) through ctypes: no framework, only addresses and strides.

The library describes its own interface, and the structures here are built from that description. A tensor is given as
``(address, element strides)``; its shape follows from the problem.
"""

import ctypes
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..caches import Cache
from ..problem.problem import Problem

# NATTEN_CPU_ABI of the header: the meaning of its functions.
ABI = 6
FILE = "libnatten_cpu.dylib" if sys.platform == "darwin" else "libnatten_cpu.so"
FOLDER = "_native"
STATUS = {1: "no memory is left for its scratch space", 2: "it was given a problem that breaks its rules"}
_TYPES: dict[str, Any] = {"int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "double": ctypes.c_double}


class CpuTensor(ctypes.Structure):
    """``natten_tensor``: address and element strides (batch, axis 0..2, head, channel)."""

    _fields_ = (("data", ctypes.c_void_p), ("stride", ctypes.c_int64 * 6))


class Interface:
    """What ``natten_cpu_interface()`` describes: dtypes, fields of a problem, tensors with their layouts, functions.

    problem, tensors: ``natten_problem`` and ``natten_tensors`` as structures of ctypes. A tensor's gradient has its
    layout.
    """

    def __init__(self, description: str) -> None:
        table = {name: words for name, *words in (line.split() for line in description.splitlines())}
        self.dtypes, self.functions = tuple(table["dtypes"]), tuple(table["functions"])
        fields = [field.split(":") for field in table["fields"]]
        self.fields = {name: int(count) for _, name, count in fields}
        self.layouts: dict[str, str] = {}
        for name, layout in (tensor.split(":") for tensor in table["tensors"]):
            self.layouts |= {name: layout, f"{name}_grad": layout}
        types = [(name, _TYPES[kind] * 3 if count == "3" else _TYPES[kind]) for kind, name, count in fields]
        self.problem: Any = type("natten_problem", (ctypes.Structure,), {"_fields_": types})
        members = [(name, CpuTensor) for name in self.layouts]
        self.tensors: Any = type("natten_tensors", (ctypes.Structure,), {"_fields_": members})

    def strides(self, name: str, strides: tuple[int, ...]) -> "ctypes.Array[ctypes.c_int64]":
        """Strides of ``[B, *shape, H(, C)]`` in the order of the structure."""
        block = [0] * 6
        if self.layouts[name] != "FLAT":
            channels = strides[-1:] if self.layouts[name] == "CHANNELS" else ()
            batch, *axes, head = strides[: len(strides) - len(channels)]
            block[0], block[1 : 1 + len(axes)], block[4] = batch, axes, head
            block[5:] = channels or (0,)
        return (ctypes.c_int64 * 6)(*block)

    def pose(self, problem: Problem, threads: int) -> Any:
        """``problem`` as a ``natten_problem``."""
        settings = {"dtype": self.dtypes.index(problem.dtype), "threads": threads}
        posed = self.problem(**settings)
        for name, count in self.fields.items():
            if name not in settings:
                value = getattr(problem, name)
                setattr(posed, name, (ctypes.c_int64 * 3)(*value) if count == 3 else value)
        return posed


class CpuLibrary:
    """The loaded library.

    OSError if ``path`` cannot be loaded or has another version of the interface; ValueError if an environment
    variable that it reads (``NATTEN_NUM_THREADS``, ``NATTEN_CPU_ISA``) is set to something that it cannot use.
    """

    def __init__(self, path: Path) -> None:
        self._functions = ctypes.CDLL(str(path))
        found = self._functions.natten_cpu_abi()
        if found != ABI:
            raise OSError(f"{path.name} has interface {found}, this package uses {ABI}")
        for name in ("isa", "complaint", "interface"):
            getattr(self._functions, f"natten_cpu_{name}").restype = ctypes.c_char_p
        complaint = self._functions.natten_cpu_complaint()
        if complaint is not None:
            raise ValueError(complaint.decode(errors="replace"))
        self.region: int | None = None
        self.interface = Interface(self._functions.natten_cpu_interface().decode())
        self._layouts = Cache("layouts of CPU calls", 1024)
        self._calls = {name: getattr(self._functions, f"natten_{name}") for name in self.interface.functions}
        for call in self._calls.values():
            call.argtypes = [ctypes.c_void_p, ctypes.c_void_p]  # as numbers

    @property
    def instruction_set(self) -> str:
        """'avx512', 'avx2', 'sse' or 'neon'."""
        return str(self._functions.natten_cpu_isa().decode())

    @property
    def threads(self) -> int:
        """Threads of a call that does not say how many."""
        return int(self._functions.natten_cpu_threads())

    def use_region(self, region: int | None) -> None:
        """Run calls on a host's threads from now on, as ``natten_cpu_use_region`` says.

        region: the address of a function like ``GOMP_parallel``; None: threads of the library's own.
        """
        self._functions.natten_cpu_use_region(ctypes.c_void_p(region))
        self.region = region

    def call(
        self, function: str, problem: Problem, tensors: Mapping[str, tuple[int, tuple[int, ...]]], threads: int = 0
    ) -> None:
        """Run ``natten_<function>`` on tensors by name; those not given are absent. The outputs are written.

        tensors: name -> (address, element strides of every dimension). threads: how many to use, but no more than
        ``NATTEN_NUM_THREADS`` where that is set; 0 is :attr:`threads`. MemoryError if scratch memory is short.
        """
        key = problem, threads, tuple(tensors), tuple([strides for _, strides in tensors.values()])
        layout: _Layout = self._layouts.get_or_make(key, lambda: self._layout(*key))
        words = (ctypes.c_int64 * layout.length).from_buffer_copy(layout.words)
        for index, (address, _) in zip(layout.addresses, tensors.values(), strict=True):
            words[index] = address
        status = self._calls[function](ctypes.addressof(layout.problem), ctypes.addressof(words))
        if status:
            error = MemoryError if status == 1 else ValueError
            raise error(f"{problem.name}: the CPU kernel refused natten_{function}: {STATUS[status]}")

    def _layout(
        self, problem: Problem, threads: int, names: tuple[str, ...], strides: tuple[tuple[int, ...], ...]
    ) -> "_Layout":
        given = self.interface.tensors()
        for name, own in zip(names, strides, strict=True):
            getattr(given, name).stride = self.interface.strides(name, own)
        addresses = tuple(getattr(self.interface.tensors, name).offset // 8 for name in names)
        return _Layout(self.interface.pose(problem, threads), bytes(given), ctypes.sizeof(given) // 8, addresses)


class _Layout(NamedTuple):
    """What calls on tensors of one layout have in common. A call copies the words and adds the addresses, which takes
    a fraction of the time that filling the structure does.

    words: ``natten_tensors`` without addresses; length: in 64-bit words; addresses: the indices of those words.
    """

    problem: Any
    words: bytes
    length: int
    addresses: tuple[int, ...]
