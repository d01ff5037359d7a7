"""Small Metal sources for the tests."""

from collections.abc import Mapping
from typing import Any

import numpy as np

import metal_emulator
from metal_emulator import Buffer, Report

HEADER = "#include <metal_stdlib>\n#include <metal_simdgroup_matrix>\nusing namespace metal;\n"
PARAMETERS = """device const float* x [[buffer(0)]], device float* y [[buffer(1)]],
    uint i [[thread_position_in_threadgroup]], uint g [[thread_position_in_grid]],
    uint group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]], uint sg [[simdgroup_index_in_threadgroup]]"""
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
THREADS, GROUP = 128, 64


def kernel(name: str, body: str) -> str:
    """A kernel over x -> y, 128 threads in groups of 64, with 64 floats of threadgroup memory s."""
    return f"kernel void {name}({PARAMETERS}) {{\n  threadgroup float s[64];\n  {body}\n}}\n"


def library_of(bodies: Mapping[str, str], **options: Any) -> metal_emulator.Library:
    """All bodies as kernels of one library."""
    return metal_emulator.compile_source(
        HEADER + "".join(kernel(name, body) for name, body in bodies.items()), **options
    )


def run(
    library: metal_emulator.Library, name: str, x: np.ndarray | None = None, **options
) -> tuple[np.ndarray, Report]:
    """Launch one of kernel()'s kernels; y starts uninitialised."""
    x = np.arange(THREADS, dtype=np.float32) if x is None else x
    y = np.zeros(THREADS, np.float32)
    report = library.kernel(name).launch([x, Buffer(y, initialised=False)], THREADS, GROUP, **options)
    return y, report


def to_bfloat(x: np.ndarray) -> np.ndarray:
    """Bits of float32 values rounded to bfloat, to nearest, ties to even."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bfloat(bits: np.ndarray) -> np.ndarray:
    """float32 values of bfloat bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
