"""Checks and executes Metal Shading Language source on x86-64 Linux, without a Mac.

Test-only: nothing shipped depends on it.
"""

from .launch import Buffer, Kernel
from .library import Library, compile_source, compile_sources
from .report import EmulatorFault, Fault, FaultKind, Report
from .toolchain import CompileError, Unavailable, unavailable_reason

__all__ = [
    "Buffer",
    "CompileError",
    "EmulatorFault",
    "Fault",
    "FaultKind",
    "Kernel",
    "Library",
    "Report",
    "Unavailable",
    "compile_source",
    "compile_sources",
    "unavailable_reason",
]
