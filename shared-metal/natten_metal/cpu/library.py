"""The CPU kernels' C interface (``cpu/natten_cpu.h``) through ctypes: no framework, only addresses and strides.

A tensor is given as ``(address, element strides)``; its shape follows from the problem.
"""

import ctypes
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from ..problem.ops import AV, FUSED, QK
from ..problem.problem import DTYPES, Problem

# NATTEN_CPU_ABI of the header that this file restates.
ABI = 2
FILE = "libnatten_cpu.dylib" if sys.platform == "darwin" else "libnatten_cpu.so"
FOLDER = "_native"
STATUS = {1: "no memory is left for its scratch space", 2: "it was given a problem that breaks its rules"}
# The tensors of each function, inputs first, in the order of the header. Full attention is the fused op's, without
# additional keys and bias.
ARGUMENTS: dict[str, tuple[str, ...]] = {}
for _op in (FUSED, QK, AV):
    ARGUMENTS[_op.forward] = _op.input_names + _op.output_names
    ARGUMENTS[_op.backward] = tuple(
        [operand.gradient for operand in _op.outputs]
        + [operand.name for operand in _op.saved]
        + [operand.gradient for operand in _op.inputs]
    )
ROWS_ONLY = frozenset({"lse", "lse_grad"})

Axes = ctypes.c_int64 * 3


class CpuTensor(ctypes.Structure):
    """``natten_tensor``: address and element strides (batch, axis 0..2, head, channel)."""

    _fields_ = (("data", ctypes.c_void_p), ("stride", ctypes.c_int64 * 6))


class CpuProblem(ctypes.Structure):
    """``natten_problem``."""

    _fields_ = (
        ("dtype", ctypes.c_int32), ("rank", ctypes.c_int32), ("batch", ctypes.c_int64), ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64), ("head_dim", ctypes.c_int64), ("head_dim_v", ctypes.c_int64),
        ("additional", ctypes.c_int64), ("query_shape", Axes), ("key_shape", Axes), ("kernel_size", Axes),
        ("stride", Axes), ("dilation", Axes), ("is_causal", ctypes.c_int32 * 3), ("threads", ctypes.c_int32),
        ("scale", ctypes.c_double),
    )  # fmt: skip


class CpuLibrary:
    """The loaded library.

    OSError if ``path`` cannot be loaded or speaks another version of the interface; ValueError if an environment
    variable that it reads (``NATTEN_NUM_THREADS``, ``NATTEN_CPU_ISA``) is set to something that it cannot use.
    """

    def __init__(self, path: Path) -> None:
        self._functions = ctypes.CDLL(str(path))
        found = self._functions.natten_cpu_abi()
        if found != ABI:
            raise OSError(f"{path.name} has interface {found}, this package speaks {ABI}")
        self._functions.natten_cpu_isa.restype = self._functions.natten_cpu_complaint.restype = ctypes.c_char_p
        complaint = self._functions.natten_cpu_complaint()
        if complaint is not None:
            raise ValueError(complaint.decode(errors="replace"))

    @property
    def instruction_set(self) -> str:
        """'avx512', 'avx2', 'sse' or 'neon'."""
        return str(self._functions.natten_cpu_isa().decode())

    @property
    def threads(self) -> int:
        """Threads of a call that asks for none."""
        return int(self._functions.natten_cpu_threads())

    def call(
        self, function: str, problem: Problem, tensors: Mapping[str, tuple[int, Sequence[int]]], threads: int = 0
    ) -> None:
        """Run ``natten_<function>`` on tensors by name; those not given are absent. The outputs are written.

        tensors: name -> (address, element strides of every dimension). threads: how many to use, but no more than
        ``NATTEN_NUM_THREADS`` where that is set; 0 is :attr:`threads`. MemoryError if scratch memory is short.
        """
        given = [
            ctypes.byref(_tensor(name, *tensors[name])) if name in tensors else None for name in ARGUMENTS[function]
        ]
        status = getattr(self._functions, f"natten_{function}")(ctypes.byref(_problem(problem, threads)), *given)
        if status:
            error = MemoryError if status == 1 else ValueError
            raise error(f"{problem.name}: the CPU kernel refused natten_{function}: {STATUS[status]}")


def _tensor(name: str, address: int, strides: Sequence[int]) -> CpuTensor:
    return CpuTensor(address, _block(name, tuple(strides)))


@lru_cache(maxsize=1024)
def _block(name: str, strides: tuple[int, ...]) -> "ctypes.Array[ctypes.c_int64]":
    """Strides of ``[B, *shape, H(, C)]`` at their places in the structure; a bias is contiguous and needs none."""
    block = [0] * 6
    if not name.startswith("rpb"):
        channels = [] if name in ROWS_ONLY else [strides[-1]]
        batch, *axes, head = strides[: len(strides) - len(channels)]
        block[0], block[1 : 1 + len(axes)], block[4] = batch, axes, head
        block[5:] = channels or [0]
    return (ctypes.c_int64 * 6)(*block)


@lru_cache(maxsize=1024)
def _problem(p: Problem, threads: int) -> CpuProblem:
    padding = (1,) * (3 - p.rank)
    axes = (p.query_shape, p.key_shape, p.kernel_size, p.stride, p.dilation)
    return CpuProblem(
        DTYPES.index(p.dtype), p.rank, p.batch, p.heads, p.kv_heads, p.head_dim, p.head_dim_v, p.additional,
        *(Axes(*axis, *padding) for axis in axes), (ctypes.c_int32 * 3)(*p.is_causal), threads, p.scale,
    )  # fmt: skip
