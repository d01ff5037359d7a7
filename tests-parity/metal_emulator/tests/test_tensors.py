"""Tensor operations of one simdgroup (Metal 4): right in every layout, and each misuse a fault."""

import numpy as np
import pytest

import metal_emulator
from metal_emulator import Buffer, CompileError, FaultKind
from metal_emulator.launch import SCHEDULES
from metal_emulator.strict import check
from metal_emulator.to_ptx import to_ptx

from .kernels import from_bfloat, to_bfloat

SEEDS = range(12)
SIDE, DEPTH, PITCH = 16, 32, 40
HEADER = """#include <metal_stdlib>
#include <metal_tensor>
#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>
using namespace metal;
using namespace mpp::tensor_ops;
typedef matmul2d_descriptor::mode Mode;
typedef dextents<int32_t, 2> Size;
template <typename T> using Far = tensor<device T, Size, tensor_inline>;
template <typename T> using Near = tensor<threadgroup T, Size, tensor_inline>;
"""
# Rows a [16][32], columns b [16][40] of which 32 count, values c [16][32], result y; s: 16 x 16 floats of the group.
SIGNATURE = """(device half* a [[buffer(0)]], device half* b [[buffer(1)]], device half* c [[buffer(2)]],
    device float* y [[buffer(3)]], uint lane [[thread_index_in_simdgroup]])"""
VIEWS = """
  threadgroup float s[256];
  threadgroup half rows[512];
  Far<half> ta(a, Size(32, 16));
  Far<half> tb(b, Size(32, 16), array<int32_t, 2>{{1, 40}});
  Far<half> tc(c, Size(32, 16));
  Near<float> ts(s, Size(16, 16));
  typedef matmul2d<matmul2d_descriptor(16, 16, 32, false, true, true, Mode::multiply), execution_simdgroup> Across;
  typedef matmul2d<matmul2d_descriptor(16, 32, 16, false, false, true, Mode::multiply_accumulate), execution_simdgroup>
      Along;
  typedef decltype(Along().get_left_input_cooperative_tensor<float, half, float>()) Left;
  Across across;
  Along along;
  auto w = across.get_destination_cooperative_tensor<Far<half>, Far<half>, float>();
  auto top = across.get_row_reduction_destination_cooperative_tensor<Far<half>, Far<half>, float>();
  auto o = along.get_destination_cooperative_tensor<Left, Far<half>, float>();
  for (ushort i = 0; i < o.get_capacity(); ++i) o[i] = 0.0f;
"""
ACROSS = "across.run(ta, tb, w); "
CONVERT = "auto left = along.get_left_input_cooperative_tensor<float, half, float>(w); along.run(left, tc, o); "
SIMD_BARRIER = "simdgroup_barrier(mem_flags::mem_threadgroup); "
THROUGH_MEMORY = (
    f"w.store(ts); {SIMD_BARRIER} auto left = along.get_left_input_cooperative_tensor<float, half, float>(); "
    "left.load(ts); along.run(left, tc, o); "
)
ASKED = f"if (along.is_compatible_as_left_input<float, half, float>(w)) {{ {CONVERT} }} else {{ {THROUGH_MEMORY} }}"
STAGED = f"for (uint i = lane; i < 512; i += 32) rows[i] = a[i]; {SIMD_BARRIER} Near<half> near(rows, Size(32, 16)); "


def written(of: str, columns: int) -> str:
    """Statements that write a tensor to y, element by element."""
    return (
        f"for (ushort i = 0; i < {of}.get_capacity(); ++i) {{ const auto at = {of}.get_multidimensional_index(i); "
        f"if ({of}.is_valid_element(i)) y[at[1] * {columns} + at[0]] = {of}[i]; }}"
    )


PRODUCTS, SUMS = written("w", 16), written("o", 32)
OF_ROWS = (
    "for (ushort i = 0; i < w.get_capacity(); ++i) { const auto at = w.get_multidimensional_index(i); "
    "if (w.is_valid_element(i)) y[at[1] * 16 + at[0]] = top[top.map_iterator(w.begin() + i) - top.begin()]; }"
)
DYNAMIC = (
    "matmul2d<matmul2d_descriptor(16, 16, static_cast<int>(dynamic_extent), false, true, true), execution_simdgroup> "
    "open; Far<half> shorter(a, Size(20, 16), array<int32_t, 2>{{1, 32}}); auto v = "
    "open.get_destination_cooperative_tensor<Far<half>, Far<half>, float>(); open.run(shorter, tb, v); "
)
CLEAN = {
    "across": ACROSS + PRODUCTS,
    "from_threadgroup_memory": f"{STAGED} across.run(near, tb, w); {PRODUCTS}",
    "depth_of_the_tensor": DYNAMIC + written("v", 16),
    "columns_that_are_not_there": (
        f"Far<half> few(b, Size(32, 11), array<int32_t, 2>{{{{1, 40}}}}); across.run(ta, few, w); {PRODUCTS}"
    ),
    "overwrites": f"{ACROSS} across.run(ta, tb, w); {PRODUCTS}",
    "accumulates": f"{ACROSS} {ASKED} {SIMD_BARRIER} {ASKED} {SUMS}",
    "through_memory": f"{ACROSS} {THROUGH_MEMORY} {SUMS}",
    "asked": f"{ACROSS} {ASKED} {SUMS}",
    "largest_of_rows": f"{ACROSS} reduce_rows(w, top, reduction_operation::max, -MAXFLOAT); {OF_ROWS}",
    "sums_of_rows": f"{ACROSS} reduce_rows(w, top, reduction_operation::sum, 0.0f); {OF_ROWS}",
}
SHORTER = "Far<half> shorter(a, Size(20, 16), array<int32_t, 2>{{1, 32}}); "
MORE = "Far<half> more(b + 40, Size(32, 16), array<int32_t, 2>{{1, 40}}); "
UNORDERED = "for (uint i = lane; i < 512; i += 32) rows[i] = a[i]; Near<half> near(rows, Size(32, 16)); "
CLEARED = "for (uint i = lane; i < 512; i += 32) rows[i] = half(0.0f); "
ELSEWHERE = (
    "reduce_rows(w, top, reduction_operation::sum, 0.0f); o[0] += float(top.map_iterator(o.begin()) - top.begin()); "
)
PLANTED = {
    "static_depth_past_the_end": (
        f"{SHORTER} across.run(shorter, tb, w); {PRODUCTS}",
        FaultKind.UNDEFINED_BEHAVIOUR,
    ),
    "columns_past_the_end_of_memory": (f"{MORE} across.run(ta, more, w); {PRODUCTS}", FaultKind.OUT_OF_BOUNDS),
    "lanes_differ": (
        f"Far<half> own(a + lane, Size(32, 15)); across.run(own, tb, w); {PRODUCTS}",
        FaultKind.SIMDGROUP_DIVERGENCE,
    ),
    "half_a_simdgroup": (f"if (lane < 16) return; {ACROSS} {PRODUCTS}", FaultKind.PARTIAL_SIMDGROUP),
    "lanes_at_different_products": (
        f"if (lane < 16) {{ {ACROSS} }} else {{ across.run(tc, tb, w); }} {PRODUCTS}",
        FaultKind.SIMDGROUP_DIVERGENCE,
    ),
    "no_barrier_after_staging": (f"{UNORDERED} across.run(near, tb, w); {PRODUCTS}", FaultKind.DATA_RACE),
    "no_barrier_before_the_next_use": (f"{STAGED} across.run(near, tb, w); {CLEARED} {PRODUCTS}", FaultKind.DATA_RACE),
    "not_staged": (
        f"Near<half> near(rows, Size(32, 16)); across.run(near, tb, w); {PRODUCTS}",
        FaultKind.UNINITIALISED_READ,
    ),
    "iterator_of_another_op": (f"{ACROSS} {ASKED} {ELSEWHERE} {SUMS}", FaultKind.UNDEFINED_BEHAVIOUR),
}


def source_of(bodies: dict[str, str]) -> str:
    return HEADER + "".join(f"kernel void {n}{SIGNATURE} {{{VIEWS}  {body}\n}}\n" for n, body in bodies.items())


def given() -> list[np.ndarray]:
    random = np.random.default_rng(3)
    return [random.standard_normal((SIDE, n)).astype(np.float16) for n in (DEPTH, PITCH, DEPTH)]


def truth(name: str) -> np.ndarray:
    """What a clean kernel writes."""
    a, b, c = (x.astype(np.float64) for x in given())
    s = a @ b[:, :DEPTH].T
    if name == "depth_of_the_tensor":
        return a[:, :20] @ b[:, :20].T
    if name == "columns_that_are_not_there":
        return np.where(np.arange(SIDE) < 11, s, 0)
    if name in ("largest_of_rows", "sums_of_rows"):
        of_rows = s.max(1) if name == "largest_of_rows" else s.sum(1)
        return np.broadcast_to(of_rows[:, None], s.shape)
    if name in ("accumulates", "through_memory", "asked"):
        return (s @ c) * (2 if name == "accumulates" else 1)
    return s


def run(library, name: str, columns: int = SIDE, **options):
    y = np.zeros((SIDE, columns), np.float32)
    report = library.kernel(name).launch([*given(), Buffer(y, initialised=False)], 32, 32, **options)
    return y, report


@pytest.fixture(scope="module")
def library():
    other = {
        "unasked": f"{ACROSS} {CONVERT} {SUMS}",
        "unset": (
            "auto p = across.get_destination_cooperative_tensor<Far<half>, Far<half>, float>(); " + written("p", 16)
        ),
    }
    planted = {name: body for name, (body, _) in PLANTED.items()}
    return metal_emulator.compile_source(source_of(CLEAN | planted | other))


@pytest.mark.parametrize("name", CLEAN)
def test_results_in_every_layout(library, name):
    """In all schedules. Where a float side takes part, its weights are cut to ten bits of mantissa."""
    wanted = truth(name)
    for seed in SEEDS:
        y, report = run(library, name, wanted.shape[1], seed=seed, schedule=SCHEDULES[seed % 4])
        bound = 2.0**-10 * np.abs(wanted).max() * DEPTH if wanted.shape[1] == DEPTH else 2e-5
        assert np.abs(y - wanted).max() <= bound and report.written_once(3)


def test_every_element_of_a_side_is_read_once(library):
    _, report = run(library, "across")
    assert report.read_once(0) and report.tensor_products == 1 and report.multiply_accumulates == 0
    assert (report.read_counts[1] == (np.arange(PITCH) < DEPTH)).all()


def test_a_float_side_loses_thirteen_bits(library):
    """Exactly as if each weight were cut off to ten bits of mantissa, toward zero."""
    a, b, c = (x.astype(np.float32) for x in given())
    w = np.zeros((SIDE, SIDE), np.float32)
    for k in range(DEPTH):
        w += a[:, k, None] * b[None, :, k]
    cut = (w.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    y, _ = run(library, "through_memory", DEPTH)
    np.testing.assert_allclose(y, cut.astype(np.float64) @ c, atol=1e-4)
    assert np.abs(y - w.astype(np.float64) @ c).max() > 1e-3


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_reported(library, name, schedule):
    columns = DEPTH if PLANTED[name][0].endswith(SUMS) else SIDE
    for seed in range(4):
        _, report = run(library, name, columns, seed=seed, schedule=schedule, raise_on_fault=False)
        assert report.kinds() == {PLANTED[name][1]}


def test_a_conversion_that_was_not_asked_for(library):
    """Refused in some layouts, and then a fault; in the others right."""
    found = set()
    for seed in SEEDS:
        y, report = run(library, "unasked", DEPTH, seed=seed, raise_on_fault=False)
        found.add(report.ok)
        if report.ok:
            np.testing.assert_allclose(y, truth("asked"), atol=2.0**-10 * DEPTH * np.abs(y).max())
        else:
            assert report.kinds() == {FaultKind.UNDEFINED_BEHAVIOUR}
    assert found == {True, False}


def test_what_was_never_set_is_not_a_number(library):
    y, _ = run(library, "unset")
    assert np.isnan(y).all()


LAYOUT = """
kernel void layout(device int* y [[buffer(0)]], uint lane [[thread_index_in_simdgroup]]) {
  matmul2d<matmul2d_descriptor(16, 16, 32, false, true, true), execution_simdgroup> op;
  auto w = op.get_destination_cooperative_tensor<Far<half>, Far<half>, float>();
  for (ushort i = 0; i < w.get_capacity(); ++i) {
    const auto at = w.get_multidimensional_index(i);
    y[lane * 10 + i] = w.is_valid_element(i) ? at[1] * 16 + at[0] : -1;
  }
}
"""


def test_layouts_differ_and_have_slots_without_an_element():
    """Every element has one place; seeds give many different layouts, one of them that of M5."""
    kernel = metal_emulator.compile_source(HEADER + LAYOUT).kernel("layout")
    layouts = set()
    for seed in SEEDS:
        y = np.zeros((32, 10), np.int32)
        kernel.launch([Buffer(y, initialised=False)], 32, 32, seed=seed)
        assert sorted(y[y >= 0]) == list(range(256)) and (y < 0).sum() == 64
        layouts.add(y.tobytes())
        if seed % 4 == 2:  # fragments of 16x16: lane 5 has rows 2 and 10, columns 4 to 7
            assert y[5, :8].tolist() == [row * 16 + column for row in (2, 10) for column in range(4, 8)]
    assert len(layouts) == len(SEEDS) // 2 + 2


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("matmul2d<matmul2d_descriptor(8, 8, 32), execution_simdgroup> op; op.run(ta, tb, w);", "multiple of 16"),
        ("matmul2d<matmul2d_descriptor(16, 16, 24), execution_simdgroup> op; op.run(ta, tb, w);", "K must be dynamic"),
        ("along.run(ta, tb, w);", "belongs to another op"),
        ("Near<half> near(rows, Size(16, 16)); w.store(near);", "element types differ"),
    ],
)
def test_what_metal_refuses_does_not_compile(body, words):
    with pytest.raises(CompileError, match=words):
        metal_emulator.compile_source(source_of({"refused": body}))


def test_bfloat_sides():
    text = source_of({"across": ACROSS + PRODUCTS}).replace("half", "bfloat")
    a, b, c = (to_bfloat(x) for x in given())
    y = np.zeros((SIDE, SIDE), np.float32)
    metal_emulator.compile_source(text).kernel("across").launch([a, b, c, Buffer(y, initialised=False)], 32, 32)
    np.testing.assert_allclose(y, from_bfloat(a) @ from_bfloat(b)[:, :DEPTH].T, atol=2e-5)


def test_products_are_those_of_a_warp_in_ptx():
    """16x16x32 of half is four products of 16x8x16, 16x32x16 of float eight of 16x8x8; no conversion moves anything."""
    ptx = to_ptx(source_of({"asked": f"{ACROSS} {ASKED} {SUMS}"}))
    assert ptx.count("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32") == 4
    assert ptx.count("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32") == 8
    assert "shfl" not in ptx and "st.shared" not in ptx


def test_strict_check_knows_tensors():
    """The address space of a tensor's elements is part of its type."""
    assert check(source_of(CLEAN)) == []
    wrong = "Near<half> near(a, Size(32, 16)); across.run(near, tb, w); " + PRODUCTS
    assert {finding.rule for finding in check(source_of({"wrong": wrong}))} <= {"conversion", "address-space"}
    assert check(source_of({"wrong": wrong}))
