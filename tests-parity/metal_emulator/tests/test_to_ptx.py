"""The same Metal text as PTX: entries, shared memory, shuffles; assembled if ptxas is available. Nothing runs here."""

import re
import shutil

import pytest

from metal_emulator import CompileError
from metal_emulator.to_ptx import assemble, to_ptx

from .kernels import BARRIER, HEADER, kernel

PRODUCT = """
template <typename T>
[[kernel]] void product(const device T* a [[buffer(0)]], device float* c [[buffer(1)]],
                        uint sg [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  threadgroup T staged[64];
  staged[lane] = a[sg * 64 + lane];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_matrix<T, 8, 8> m;
  simdgroup_load(m, staged, 8);
  simdgroup_float8x8 d = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  simdgroup_multiply_accumulate(d, m, m, d);
  simdgroup_store(d, c, 8);
}
template [[host_name("product_half")]] [[kernel]] decltype(product<half>) product<half>;
template [[host_name("product_bfloat")]] [[kernel]] decltype(product<bfloat>) product<bfloat>;
"""
REST = kernel(
    "rest",
    f"threadgroup atomic_uint n; if (i == 0) atomic_store_explicit(&n, 0u, memory_order_relaxed); {BARRIER} "
    "atomic_fetch_max_explicit(&n, uint(x[g]), memory_order_relaxed); s[i] = simd_prefix_exclusive_sum(exp2(x[g])); "
    "simdgroup_barrier(mem_flags::mem_threadgroup); "
    "y[g] = simd_max(s[i ^ 1]) + (simd_any(x[g] > 1) ? low : table[i % 3]);",
)
CONSTANTS = "constant float table[3] = {1, 2, 3};\nconstant constexpr float low = -1.0f;\n"
SOURCE = HEADER + CONSTANTS + PRODUCT + REST


def test_entries_and_instructions():
    ptx = to_ptx(SOURCE)
    assert set(re.findall(r"\.entry (\w+)", ptx)) == {"e_product_half", "e_product_bfloat", "e_rest"}
    assert ".target sm_90" in ptx
    assert ".shared" in ptx
    assert "bar.sync" in ptx
    product = ptx[ptx.index(".entry e_product_half") :].partition(".entry e_")[2].partition(".entry")[0]
    assert len(re.findall(r"shfl\.sync\.idx", product)) == 16


def test_chosen_kernels_and_architecture():
    ptx = to_ptx(SOURCE, kernels=["rest"], arch="sm_80")
    assert re.findall(r"\.entry (\w+)", ptx) == ["e_rest"]
    assert ".target sm_80" in ptx


def test_an_error_is_a_compile_error():
    with pytest.raises(CompileError, match="undeclared identifier 'nothing'"):
        to_ptx(HEADER + kernel("k", "y[g] = nothing;"))


@pytest.mark.skipif(shutil.which("ptxas") is None, reason="ptxas is not on the PATH")
def test_ptxas_accepts_it():
    cubin = assemble(to_ptx(SOURCE), max_registers=64)
    assert 0 < cubin.registers <= 64
    assert cubin.shared_bytes >= 256
    assert cubin.code.startswith(b"\x7fELF")
