"""Kernels with one planted fault each, reported as exactly that kind in every schedule; clean twins have none."""

import numpy as np
import pytest

from metal_emulator import EmulatorFault, FaultKind
from metal_emulator.launch import SCHEDULES

from .kernels import BARRIER, HEADER, kernel, library_of, run

SIMD_BARRIER = "simdgroup_barrier(mem_flags::mem_threadgroup);"
FILLED = f"s[i] = 0; {BARRIER} "
MATRIX = "simdgroup_float8x8 a(1.0f), b(1.0f), c(0.0f); simdgroup_multiply_accumulate(c, a, b, c);"

PLANTED = {
    "device_read_past_the_end": ("y[g] = x[g + 1];", FaultKind.OUT_OF_BOUNDS),
    "device_write_before_the_start": ("y[int(g) - 1] = x[g];", FaultKind.OUT_OF_BOUNDS),
    "vector_read_across_the_end": ("y[g] = ((device const float4*)(x + 126))->w;", FaultKind.OUT_OF_BOUNDS),
    "wide_vector_read_across_the_end": (
        "device const long4* v = (device const long4*)x; long4 w = v[g]; y[g] = float(w.w);",
        FaultKind.OUT_OF_BOUNDS,
    ),
    "far_device_read": ("y[g] = x[g + 100000];", FaultKind.OUT_OF_BOUNDS),
    "threadgroup_write_past_the_end": ("s[i + 1] = x[g]; y[g] = 0;", FaultKind.OUT_OF_BOUNDS),
    "threadgroup_read_far_away": (f"{FILLED} y[g] = s[i + 5000];", FaultKind.OUT_OF_BOUNDS),
    "null_pointer": ("y[g] = *(device const float*)0ul;", FaultKind.WILD_ACCESS),
    "uninitialised_threadgroup_read": (
        f"if (i < 63) s[i] = x[g]; {BARRIER} y[g] = s[63 - i];",
        FaultKind.UNINITIALISED_READ,
    ),
    "uninitialised_output_read": ("y[g] += x[g];", FaultKind.UNINITIALISED_READ),
    "missing_barrier": (f"{FILLED} s[i] = x[g]; y[g] = s[63 - i];", FaultKind.DATA_RACE),
    "missing_barrier_in_a_simdgroup": (f"{FILLED} s[i] = x[g]; y[g] = s[i ^ 1];", FaultKind.DATA_RACE),
    "simdgroup_barrier_across_simdgroups": (
        f"{FILLED} s[i] = x[g]; {SIMD_BARRIER} y[g] = s[63 - i];",
        FaultKind.DATA_RACE,
    ),
    "write_after_read": (f"s[i] = x[g]; {BARRIER} float a = s[63 - i]; s[i] = a; y[g] = a;", FaultKind.DATA_RACE),
    "write_after_read_of_a_third_thread": (
        f"{FILLED} float a = s[0]; if (sg == 0) {SIMD_BARRIER} if (i == 0) s[0] = 1; y[g] = a;",
        FaultKind.DATA_RACE,
    ),
    "write_after_read_in_a_simdgroup": (
        f"{FILLED} float a = sg == 0 && lane != 5 ? s[0] : 0; if (sg == 0 && lane == 5) s[0] = a + 1; y[g] = a;",
        FaultKind.DATA_RACE,
    ),
    "barrier_for_nothing": (
        f"{FILLED} s[i] = x[g]; threadgroup_barrier(mem_flags::mem_none); y[g] = s[63 - i];",
        FaultKind.DATA_RACE,
    ),
    "barrier_for_device_memory": (
        f"{FILLED} s[i] = x[g]; threadgroup_barrier(mem_flags::mem_device); y[g] = s[63 - i];",
        FaultKind.DATA_RACE,
    ),
    "barrier_for_threadgroup_memory": (f"y[g] = x[g]; {BARRIER} s[i] = y[g ^ 1];", FaultKind.DATA_RACE),
    "simdgroup_barrier_for_threadgroup_memory": (f"y[g] = x[g]; {SIMD_BARRIER} s[i] = y[g ^ 1];", FaultKind.DATA_RACE),
    "groups_write_the_same_element": ("y[i] = x[g];", FaultKind.DATA_RACE),
    "plain_sum": (f"if (i == 0) s[0] = 0; {BARRIER} s[0] += x[g]; {BARRIER} y[g] = s[0];", FaultKind.DATA_RACE),
    "atomic_beside_plain": (
        (
            f"threadgroup atomic_uint n; if (i == 0) atomic_store_explicit(&n, 0u, memory_order_relaxed); {BARRIER}"
            "atomic_fetch_add_explicit(&n, 1u, memory_order_relaxed); y[g] = *(threadgroup uint*)&n;"
        ),
        FaultKind.DATA_RACE,
    ),
    "barrier_in_a_branch": (f"s[i] = x[g]; if (i < 32) {BARRIER} y[g] = s[i];", FaultKind.BARRIER_DIVERGENCE),
    "two_barriers": (
        f"s[i] = x[g]; if (i < 32) {BARRIER} else {{ y[g] = 1; {BARRIER} }}",
        FaultKind.BARRIER_DIVERGENCE,
    ),
    "barrier_after_a_return": (
        f"if (i >= 60) return; s[i] = x[g]; {BARRIER} y[g] = s[i];",
        FaultKind.BARRIER_DIVERGENCE,
    ),
    "two_simdgroup_operations": (
        "float v = x[g]; if (lane < 16) v = simd_sum(v); y[g] = v + simd_max(v);",
        FaultKind.SIMDGROUP_DIVERGENCE,
    ),
    "the_same_operation_at_two_places": (
        "float v = x[g];\n if (lane < 16) v = simd_sum(v);\n else v = simd_sum(v);\n y[g] = v;",
        FaultKind.SIMDGROUP_DIVERGENCE,
    ),
    "simdgroup_operation_beside_a_barrier": (
        f"float v = x[g]; if (lane < 16) v = simd_sum(v); else {BARRIER} y[g] = v;",
        FaultKind.SIMDGROUP_DIVERGENCE,
    ),
    "matrix_without_all_lanes": (
        f"if (i >= 60) return; {MATRIX} y[g] = c.thread_elements()[0];",
        FaultKind.PARTIAL_SIMDGROUP,
    ),
    "shuffle_from_an_inactive_lane": (
        "if (lane >= 16) return; y[g] = simd_shuffle_xor(x[g], ushort(16));",
        FaultKind.INACTIVE_LANE,
    ),
    "shuffle_from_lane_40": ("y[g] = simd_shuffle(x[g], ushort(lane + 9));", FaultKind.INACTIVE_LANE),
    "too_much_threadgroup_memory": (
        "threadgroup float big[8192]; big[i] = 1; s[i] = 1; y[g] = big[i];",
        FaultKind.THREADGROUP_MEMORY,
    ),
    "write_to_a_read_only_buffer": ("((device float*)x)[g] = 1;", FaultKind.READ_ONLY_WRITE),
    "misaligned_read": ("y[g] = *(device const float*)((device const char*)x + 2);", FaultKind.MISALIGNED),
    "private_memory_of_another_thread": (
        (
            f"threadgroup ulong p[1]; float mine[2]; mine[i % 2] = x[g]; if (i == 0) p[0] = (ulong)mine; "
            f"{BARRIER} y[g] = *(thread float*)p[0];"
        ),
        FaultKind.PRIVATE_MEMORY,
    ),
    "private_memory_exhausted": (
        "float a[100000]; for (int k = 0; k < 100000; k++) a[k] = x[k % 128]; y[g] = a[g];",
        FaultKind.PRIVATE_MEMORY,
    ),
    "integer_division_by_zero": ("y[g] = 7 / int(x[g]);", FaultKind.UNDEFINED_BEHAVIOUR),
}

CLEAN = {
    "reverse": f"s[i] = x[g]; {BARRIER} y[g] = s[63 - i];",
    "simdgroup_barrier_in_a_simdgroup": f"s[i] = x[g]; {SIMD_BARRIER} y[g] = s[i ^ 1];",
    "two_barriers_in_turn": f"s[i] = x[g]; {BARRIER} float a = s[63 - i]; {BARRIER} s[i] = a; y[g] = a;",
    "device_barrier": (
        "y[g] = x[g]; threadgroup_barrier(mem_flags::mem_device); float a = y[g ^ 63]; "
        "threadgroup_barrier(mem_flags::mem_device); y[g] = a;"
    ),
    "atomics": f"threadgroup atomic_uint n; if (i == 0) atomic_store_explicit(&n, 0u, memory_order_relaxed); {BARRIER}"
    f"atomic_fetch_add_explicit(&n, 1u, memory_order_relaxed); {BARRIER} y[g] = "
    f"atomic_load_explicit(&n, memory_order_relaxed);",
    "simdgroup": "y[g] = simd_sum(x[g]) + simd_shuffle_xor(x[g], ushort(1)) + simd_broadcast(x[g], ushort(3));",
    "whole_group_returns": f"if (group == 1) {{ y[g] = 0; return; }} s[i] = x[g]; {BARRIER} y[g] = s[63 - i];",
    "readers_then_barrier": f"s[i] = x[g]; {BARRIER} float a = s[0] + s[1]; {BARRIER} if (i < 2) s[i] = a; y[g] = a;",
}


@pytest.fixture(scope="module")
def library():
    bodies = {name: body for name, (body, _) in PLANTED.items()} | {
        f"clean_{name}": body for name, body in CLEAN.items()
    }
    return library_of(bodies)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_reported(library, name, schedule):
    _, report = run(library, name, schedule=schedule, seed=3, raise_on_fault=False)
    assert report.kinds() == {PLANTED[name][1]}
    assert all(fault.where == () or fault.where[0].startswith("kernel.metal:") for fault in report.faults)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", CLEAN)
def test_clean_kernel_gives_no_report(library, name, schedule):
    _, report = run(library, f"clean_{name}", schedule=schedule, seed=3, raise_on_fault=False)
    assert report.faults == ()


def test_the_error_names_kind_place_and_thread(library):
    with pytest.raises(
        EmulatorFault,
        match=(
            r"device_read_past_the_end:\nout of bounds at kernel\.metal:\d+.*read of 4 bytes at byte 512 "
            r"of buffer\(0\), which has 512"
        ),
    ):
        run(library, "device_read_past_the_end")


def test_a_fault_names_the_line(library):
    source_line = "y[g] = x[g + 1];"
    _, report = run(library, "device_read_past_the_end", raise_on_fault=False)
    text = HEADER + kernel("device_read_past_the_end", PLANTED["device_read_past_the_end"][0])
    line = 1 + next(n for n, words in enumerate(text.splitlines()) if source_line in words)
    assert report.faults[0].where == (f"kernel.metal:{line}",)
    assert report.faults[0].group == (1, 0, 0)
    assert report.faults[0].thread == (63, 0, 0)


def test_divergence_names_both_places(library):
    _, report = run(library, "the_same_operation_at_two_places", raise_on_fault=False)
    (fault,) = report.faults
    first, second = (int(place.rpartition(":")[2]) for place in fault.where)
    assert second == first + 1


def test_early_return_is_allowed_on_request(library):
    y, report = run(library, "barrier_after_a_return", early_return=True)
    assert report.ok
    assert np.array_equal(y[:60], np.arange(60))


def test_threadgroup_limit_is_a_parameter(library):
    _, report = run(library, "too_much_threadgroup_memory", threadgroup_limit=65536)
    assert report.ok
    assert report.threadgroup_bytes == 8192 * 4 + 64 * 4


def test_unchecked_build_still_sees_crashes_and_divergence():
    names = ("far_device_read", "barrier_in_a_branch", "two_simdgroup_operations")
    library = library_of({name: PLANTED[name][0] for name in names}, checked=False)
    for name in names:
        _, report = run(library, name, raise_on_fault=False)
        assert report.kinds() == {PLANTED[name][1]}


@pytest.mark.parametrize("optimised", [True, False])
def test_an_unoptimised_build_keeps_loads_whose_value_is_not_used(optimised):
    library = library_of({"selected_away": "float z = x[g + 1]; y[g] = g + 1 < 128 ? z : 0.0f;"}, optimised=optimised)
    _, report = run(library, "selected_away", raise_on_fault=False)
    assert report.kinds() == (set() if optimised else {FaultKind.OUT_OF_BOUNDS})
