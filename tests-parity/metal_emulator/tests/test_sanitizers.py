"""Builds with sanitizer="address" and sanitizer="undefined": what each adds, and that the memory checks stay on."""

import pytest

import metal_emulator
from metal_emulator import FaultKind
from metal_emulator.launch import SCHEDULES

from .kernels import BARRIER, HEADER, kernel, library_of, run

ADDRESS = {
    "private_array_write": (
        "float a[4]; for (int k = 0; k < int(x[4]) + int(g) / 127; k++) a[k] = x[k]; y[g] = a[g % 4];",
        FaultKind.PRIVATE_MEMORY,
    ),
    "private_array_read": ("float a[4] = {1, 2, 3, 4}; y[g] = a[int(x[5])];", FaultKind.PRIVATE_MEMORY),
    "private_array_before_start": ("float a[4] = {1, 2, 3, 4}; y[g] = a[int(x[0]) - 1];", FaultKind.PRIVATE_MEMORY),
    "constant_table": ("y[g] = table[int(x[3])];", FaultKind.OUT_OF_BOUNDS),
    "device_read": ("y[g] = x[g + 1];", FaultKind.OUT_OF_BOUNDS),
    "race": (f"s[i] = 0; {BARRIER} s[i] = x[g]; y[g] = s[63 - i];", FaultKind.DATA_RACE),
    "clean": (
        (
            f"float a[4]; for (int k = 0; k < 4; k++) a[k] = x[k]; s[i] = a[i % 4] + table[i % 3]; "
            f"{BARRIER} y[g] = simd_sum(s[63 - i]);"
        ),
        None,
    ),
}
UNDEFINED = {
    "addition": ("y[g] = float(int(x[g]) + 2147483600);", FaultKind.UNDEFINED_BEHAVIOUR),
    "multiplication": ("y[g] = float(int(x[g]) * 100000000);", FaultKind.UNDEFINED_BEHAVIOUR),
    "division": ("y[g] = float(7 % int(x[g]));", FaultKind.UNDEFINED_BEHAVIOUR),
    "shift": ("y[g] = float(1 << int(x[g]));", FaultKind.UNDEFINED_BEHAVIOUR),
    "private_index": ("float a[4] = {1, 2, 3, 4}; y[g] = a[int(x[5])];", FaultKind.UNDEFINED_BEHAVIOUR),
    "misaligned_vector": ("y[g] = ((device const float4*)(x + 1))->x;", FaultKind.UNDEFINED_BEHAVIOUR),
    "threadgroup_array_as_vectors": (
        f"s[i] = x[g]; {BARRIER} y[g] = ((threadgroup float4*)s)[i / 4].x;",
        FaultKind.UNDEFINED_BEHAVIOUR,
    ),
    "float_to_int": ("y[g] = float(int(x[g] * 1e30f));", FaultKind.UNDEFINED_BEHAVIOUR),
    "race": (f"s[i] = 0; {BARRIER} s[i] = x[g]; y[g] = s[63 - i];", FaultKind.DATA_RACE),
    "clean": (
        f"threadgroup float4 v[16]; v[i / 4][i % 4] = x[g]; {BARRIER} y[g] = v[i / 4].x + float(int(x[g]) << 2);",
        None,
    ),
}
TABLE = "constant float table[3] = {1, 2, 3};\n"


@pytest.fixture(scope="module")
def libraries():
    def build(cases, sanitizer):
        text = HEADER + TABLE + "".join(kernel(name, body) for name, (body, _) in cases.items())
        return metal_emulator.compile_source(text, sanitizer=sanitizer)

    return {"address": build(ADDRESS, "address"), "undefined": build(UNDEFINED, "undefined")}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ADDRESS)
def test_address(libraries, name, schedule):
    _, report = run(libraries["address"], name, schedule=schedule, raise_on_fault=False)
    expected = ADDRESS[name][1]
    assert report.kinds() == (set() if expected is None else {expected})


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", UNDEFINED)
def test_undefined(libraries, name, schedule):
    _, report = run(libraries["undefined"], name, schedule=schedule, raise_on_fault=False)
    expected = UNDEFINED[name][1]
    assert report.kinds() == (set() if expected is None else {expected})


def test_a_stopped_launch_does_not_affect_the_next(libraries):
    for _ in range(3):
        _, bad = run(libraries["address"], "private_array_read", raise_on_fault=False)
        assert not bad.ok
        _, good = run(libraries["address"], "clean")
        assert good.ok


def test_unknown_sanitizer():
    with pytest.raises(ValueError, match="sanitizer must be one of"):
        library_of({"k": "y[g] = x[g];"}, sanitizer="memory")
