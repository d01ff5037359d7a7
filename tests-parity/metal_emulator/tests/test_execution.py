"""Results of clean kernels against numpy: positions, buffers, vectors, simdgroup operations, matrices, atomics."""

import numpy as np
import pytest

import metal_emulator
from metal_emulator import Buffer
from metal_emulator.launch import SCHEDULES

from .kernels import BARRIER, HEADER, from_bfloat, kernel, library_of, run, to_bfloat

X = np.arange(128, dtype=np.float32)
LANES = X.reshape(4, 32)


def each_lane(function):
    """Expected y when lane l of every simdgroup gets function(values of its simdgroup, l)."""
    return np.array([function(row, lane) for row in LANES for lane in range(32)], np.float32)


SIMD = {
    "simd_sum": ("simd_sum(x[g])", lambda v, n: v.sum()),
    "simd_product": ("simd_product(x[g] * 0.0f + 1.5f)", lambda v, n: np.float32(1.5) ** 32),
    "simd_max": ("simd_max(x[g])", lambda v, n: v.max()),
    "simd_min": ("simd_min(x[g])", lambda v, n: v.min()),
    "simd_and": ("float(simd_and(uint(x[g]) | 3u))", lambda v, n: np.bitwise_and.reduce(v.astype(np.uint32) | 3)),
    "simd_or": ("float(simd_or(uint(x[g])))", lambda v, n: np.bitwise_or.reduce(v.astype(np.uint32))),
    "simd_xor": ("float(simd_xor(uint(x[g]) * 3u))", lambda v, n: np.bitwise_xor.reduce(v.astype(np.uint32) * 3)),
    "shuffle": ("simd_shuffle(x[g], ushort((lane * 7 + 3) % 32))", lambda v, n: v[(n * 7 + 3) % 32]),
    "shuffle_half": ("float(simd_shuffle(half(x[g]), ushort(31 - lane)))", lambda v, n: v[31 - n]),
    "shuffle_vector": ("simd_shuffle(float4(x[g], 1, 2, 3), ushort(31 - lane)).x", lambda v, n: v[31 - n]),
    "broadcast": ("simd_broadcast(x[g], ushort(5))", lambda v, n: v[5]),
    "broadcast_first": ("simd_broadcast_first(x[g])", lambda v, n: v[0]),
    "shuffle_xor": ("simd_shuffle_xor(x[g], ushort(9))", lambda v, n: v[n ^ 9]),
    "shuffle_up": ("simd_shuffle_up(x[g], ushort(5))", lambda v, n: v[n - 5] if n >= 5 else v[n]),
    "shuffle_down": ("simd_shuffle_down(x[g], ushort(5))", lambda v, n: v[n + 5] if n + 5 < 32 else v[n]),
    "rotate_up": ("simd_shuffle_rotate_up(x[g], ushort(5))", lambda v, n: v[(n - 5) % 32]),
    "rotate_down": ("simd_shuffle_rotate_down(x[g], ushort(5))", lambda v, n: v[(n + 5) % 32]),
    "fill_down": (
        "simd_shuffle_and_fill_down(x[g], -x[g], ushort(3))",
        lambda v, n: v[n + 3] if n + 3 < 32 else -v[n + 3 - 32],
    ),
    "fill_up": (
        "simd_shuffle_and_fill_up(x[g], -x[g], ushort(3), ushort(8))",
        lambda v, n: v[n - 3] if n % 8 >= 3 else -v[n + 5],
    ),
    "prefix_inclusive": ("simd_prefix_inclusive_sum(x[g])", lambda v, n: v[: n + 1].sum()),
    "prefix_exclusive": ("simd_prefix_exclusive_sum(x[g])", lambda v, n: v[:n].sum()),
    "ballot": ("float(popcount(ulong(simd_ballot(int(x[g]) % 3 == 0))))", lambda v, n: (v % 3 == 0).sum()),
    "any": ("simd_any(x[g] == 40) ? 1.0f : 0.0f", lambda v, n: (v == 40).any()),
    "all": ("simd_all(x[g] < 64) ? 1.0f : 0.0f", lambda v, n: (v < 64).all()),
    "is_first": ("simd_is_first() ? 1.0f : 0.0f", lambda v, n: n == 0),
    "quad_sum": ("quad_sum(x[g])", lambda v, n: v[n // 4 * 4 : n // 4 * 4 + 4].sum()),
    "quad_broadcast": ("quad_broadcast(x[g], ushort(2))", lambda v, n: v[n // 4 * 4 + 2]),
    "quad_shuffle_xor": ("quad_shuffle_xor(x[g], ushort(3))", lambda v, n: v[n ^ 3]),
}
VALUES = {
    "swizzles": (
        "float4 v = float4(x[g], 2, 3, 4); v.zw = v.xy + v.ww; y[g] = v.x + 10 * v.y + 100 * v.z + 1000 * v.w + v.b;",
        X + 20 + 101 * (X + 4) + 6000,
    ),
    "component_lists": (
        "float2 a = float2(x[g], 1); float4 v = float4(a, a.yx); y[g] = dot(v, float4(1, 2, 3, 4));",
        5 * X + 5,
    ),
    "vec3_is_as_large_as_vec4": ("y[g] = sizeof(float3) * 100 + sizeof(packed_float3);", 0 * X + 1612),
    "comparison": (
        "float3 v = float3(x[g], 5, 6); y[g] = (any(v > 100.0f) ? 1 : 0) + (all(v.yz < 7.0f) ? 2 : 0);",
        (X > 100) + 2,
    ),
    "select_and_clamp": (
        "y[g] = select(clamp(x[g], 10.0f, 20.0f), -1.0f, x[g] > 50);",
        np.where(X > 50, -1, np.clip(X, 10, 20)),
    ),
    "as_type": ("y[g] = as_type<float>(as_type<uint>(x[g]) ^ 0x80000000u);", -X),
    "half_rounds_each_operation": (
        "half a = half(x[g] + 1); half b = a / half(3); y[g] = float(b * b);",
        ((X + 1).astype(np.float16) / np.float16(3)) ** 2,
    ),
    "literals_are_float": ("y[g] = x[g] * 0.1 + 1.5h;", X * np.float32(0.1) + np.float32(1.5)),
    "integer_functions": (
        "uint u = uint(x[g]); y[g] = popcount(u) + 100 * clz(u) + ctz(u | 256u) / 256;",
        [bin(int(v)).count("1") + 100 * (32 - int(v).bit_length()) for v in X],
    ),
    "program_constant": ("y[g] = table[i % 3] + scale;", np.tile(np.arange(64) % 3 + 1.5, 2)),
}
TABLE = "constant float table[3] = {1, 2, 3};\nconstant constexpr float scale = 0.5f;\n"


@pytest.fixture(scope="module")
def library():
    bodies = {name: f"y[g] = {expression};" for name, (expression, _) in SIMD.items()} | {
        name: body for name, (body, _) in VALUES.items()
    }
    return metal_emulator.compile_source(
        HEADER + TABLE + "".join(kernel(f"test_{name}", body) for name, body in bodies.items())
    )


@pytest.mark.parametrize("name", SIMD)
def test_simdgroup_operation(library, name):
    y, report = run(library, f"test_{name}")
    np.testing.assert_allclose(y, each_lane(SIMD[name][1]), rtol=1e-6)
    assert report.ok


@pytest.mark.parametrize("name", VALUES)
def test_value(library, name):
    y, _ = run(library, f"test_{name}")
    np.testing.assert_array_equal(y, np.asarray(VALUES[name][1], np.float32))


MATRIX = (
    HEADER
    + """
template <typename T>
[[kernel]] void product(const device T* a [[buffer(0)]], const device T* b [[buffer(1)]],
    const device float* c [[buffer(2)]],
                        device float* d [[buffer(3)]], device T* spread [[buffer(4)]],
    uint sg [[simdgroup_index_in_threadgroup]],
                        uint lane [[thread_index_in_simdgroup]]) {
  threadgroup T staged[2][64];
  staged[sg][lane] = a[sg * 64 + lane];
  staged[sg][lane + 32] = a[sg * 64 + lane + 32];
  simdgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_matrix<T, 8, 8> ma;
  simdgroup_matrix<T, 8, 8> mb;
  simdgroup_float8x8 mc;
  simdgroup_load(ma, &staged[sg][0], 8);
  simdgroup_load(mb, b, 8, ulong2(0, 0), true);
  simdgroup_load(mc, c, 16, ulong2(3, 2));
  simdgroup_multiply_accumulate(mc, ma, mb, mc);
  simdgroup_store(mc, d + sg * 64, 8);
  spread[sg * 64 + lane * 2] = ma.thread_elements()[0];
  spread[sg * 64 + lane * 2 + 1] = ma.thread_elements()[1];
}
template [[host_name("product_float")]] [[kernel]] decltype(product<float>) product<float>;
template [[host_name("product_half")]] [[kernel]] decltype(product<half>) product<half>;
template [[host_name("product_bfloat")]] [[kernel]] void product<bfloat>(const device bfloat*,
    const device bfloat*, const device float*, device float*, device bfloat*, uint, uint);

kernel void fills(device float* d [[buffer(0)]], uint lane [[thread_index_in_simdgroup]]) {
  simdgroup_store(simdgroup_float8x8(3.0f), d, 8);
  simdgroup_store(make_filled_simdgroup_matrix<float, 8, 8>(4.0f), d + 64, 8);
  simdgroup_float8x8 unset;
  simdgroup_store(unset, d + 128, 8);
  simdgroup_float8x8 twice;
  simdgroup_multiply(twice, simdgroup_float8x8(2.0f), make_filled_simdgroup_matrix<float, 8, 8>(5.0f));
  simdgroup_store(twice, d + 192, 8, ulong2(0, 0), true);
}
"""
)
ROUND = {"float": lambda v: v, "half": lambda v: v.astype(np.float16), "bfloat": to_bfloat}
BACK = {"float": lambda v: v, "half": lambda v: v.astype(np.float32), "bfloat": from_bfloat}


@pytest.fixture(scope="module")
def matrices():
    return metal_emulator.compile_source(MATRIX)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", ROUND)
def test_matrix_product(matrices, dtype, schedule):
    rng = np.random.default_rng(5)
    a, b = (ROUND[dtype](rng.standard_normal(shape).astype(np.float32)) for shape in ((2, 8, 8), (8, 8)))
    c = rng.standard_normal((10, 16)).astype(np.float32)
    d = np.zeros((2, 8, 8), np.float32)
    spread = np.zeros_like(a)
    report = matrices.kernel(f"product_{dtype}").launch(
        [a, b, c, Buffer(d, initialised=False), Buffer(spread, initialised=False)], 64, 64, schedule=schedule
    )
    exact = BACK[dtype](a).astype(np.float64) @ BACK[dtype](b).astype(np.float64).T + c[2:10, 3:11]
    assert np.abs(d - exact).max() <= 8 * np.finfo(np.float32).eps * np.abs(exact).max()
    assert report.multiply_accumulates == 2
    assert report.matrix_accesses == 8
    assert report.written_once(3)
    for lane in range(32):
        row = (lane // 4 & 4) + lane // 2 % 4
        col = (lane // 4 & 2) * 2 + lane % 2 * 2
        np.testing.assert_array_equal(spread.reshape(2, 32, 2)[:, lane], a[:, row, col : col + 2])


def test_matrix_constructors(matrices):
    d = np.zeros((4, 8, 8), np.float32)
    matrices.kernel("fills").launch([d], 32, 32)
    np.testing.assert_array_equal(d[0], 3 * np.eye(8))
    np.testing.assert_array_equal(d[1], np.full((8, 8), 4))
    assert np.isnan(d[2]).all()
    np.testing.assert_array_equal(d[3], np.full((8, 8), 10))


POSITIONS = (
    HEADER
    + """
kernel void positions(device uint* out [[buffer(0)]], uint3 at [[thread_position_in_grid]],
    uint3 in_group [[thread_position_in_threadgroup]],
    uint3 group [[threadgroup_position_in_grid]], uint3 size [[threads_per_threadgroup]],
    uint3 groups [[threadgroups_per_grid]],
    ushort3 grid [[threads_per_grid]], uint index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    ushort sg [[simdgroup_index_in_threadgroup]], uint width [[threads_per_simdgroup]],
    uint sgs [[simdgroups_per_threadgroup]],
    uint2 asked [[dispatch_threads_per_threadgroup]]) {
  device uint* o = out + ((at.z * grid.y + at.y) * grid.x + at.x) * 8;
  o[0] = in_group.x + 100 * in_group.y + 10000 * in_group.z;
  o[1] = group.x + 100 * group.y + 10000 * group.z;
  o[2] = size.x + 100 * size.y + 10000 * size.z;
  o[3] = groups.x + 100 * groups.y + 10000 * groups.z;
  o[4] = index;
  o[5] = lane + 100 * sg;
  o[6] = width + 100 * sgs;
  o[7] = asked.x + 100 * asked.y;
}
kernel void add(device float* out [[buffer(1)]], const device float* a [[buffer(0)]], constant float& b [[buffer(3)]],
                threadgroup float* t [[threadgroup(0)]], uint g [[thread_position_in_grid]],
    uint i [[thread_position_in_threadgroup]]) {
  t[i] = a[g] + b;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[g] = t[i ^ 1];
}
"""
)


@pytest.fixture(scope="module")
def hosts():
    return metal_emulator.compile_source(POSITIONS)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_positions_with_smaller_groups_at_the_edges(hosts, schedule):
    grid, asked = (10, 5, 3), (4, 3, 2)
    out = np.zeros((*grid[::-1], 8), np.uint32)
    report = hosts.kernel("positions").launch([out], grid, asked, schedule=schedule)
    assert report.threadgroups == 3 * 2 * 2
    assert report.written_once(0)
    for z, y, x in np.ndindex(*grid[::-1]):
        at = (x, y, z)
        group = [p // t for p, t in zip(at, asked, strict=True)]
        inside = [p % t for p, t in zip(at, asked, strict=True)]
        size = [min(t, n - q * t) for t, n, q in zip(asked, grid, group, strict=True)]
        index = (inside[2] * size[1] + inside[1]) * size[0] + inside[0]
        total = size[0] * size[1] * size[2]

        def packed(v):
            return v[0] + 100 * v[1] + 10000 * v[2]

        expected = [
            packed(inside),
            packed(group),
            packed(size),
            packed((3, 2, 2)),
            index,
            index % 32 + 100 * (index // 32),
            32 + 100 * (-(-total // 32)),
            304,
        ]
        assert out[z, y, x].tolist() == expected


def test_offsets_scalars_and_threadgroup_arguments(hosts):
    a = np.arange(20, dtype=np.float32)
    out = np.zeros(16, np.float32)
    buffers = {0: Buffer(a, offset=12), 1: out, 3: np.float32(0.5)}
    report = hosts.kernel("add").launch_groups(buffers, 2, 8, threadgroup_memory={0: 32})
    np.testing.assert_array_equal(out, a[3:19].reshape(-1, 2)[:, ::-1].reshape(-1) + 0.5)
    assert report.threadgroup_bytes == 32


def test_buffers_can_share_an_array(hosts):
    shared = np.arange(32, dtype=np.float32)
    hosts.kernel("add").launch(
        {0: shared, 1: Buffer(shared, offset=64), 3: np.float32(1)}, 16, 16, threadgroup_memory={0: 64}
    )
    np.testing.assert_array_equal(shared[16:], np.arange(16).reshape(-1, 2)[:, ::-1].reshape(-1) + 1)


def test_wrong_launches_are_refused(hosts):
    add = hosts.kernel("add")
    a, out = np.zeros(16, np.float32), np.zeros(16, np.float32)
    with pytest.raises(ValueError, match=r"kernel add has buffers \[0, 1, 3\], but was given \[0, 1\]"):
        add.launch([a, out], 16, 16, threadgroup_memory={0: 64})
    with pytest.raises(ValueError, match=r"threadgroup arguments \[0\], but was given \[\]"):
        add.launch({0: a, 1: out, 3: np.float32(1)}, 16, 16)
    with pytest.raises(ValueError, match=r"buffer\(0\) and buffer\(1\) overlap"):
        add.launch({0: out[:8], 1: out, 3: np.float32(1)}, 16, 16, threadgroup_memory={0: 64})
    with pytest.raises(ValueError, match=r"buffer\(0\) is not contiguous"):
        add.launch(
            {0: np.zeros((16, 2), np.float32)[:, 0], 1: out, 3: np.float32(1)}, 16, 16, threadgroup_memory={0: 64}
        )
    with pytest.raises(ValueError, match="at most 1024 threads"):
        add.launch({0: a, 1: out, 3: np.float32(1)}, 2048, 2048, threadgroup_memory={0: 64})
    with pytest.raises(ValueError, match="schedule must be one of"):
        add.launch({0: a, 1: out, 3: np.float32(1)}, 16, 16, threadgroup_memory={0: 64}, schedule="backward")
    with pytest.raises(KeyError, match="no kernel 'sub' in this library; it has positions, add"):
        hosts.kernel("sub")


ATOMICS = (
    HEADER
    + """
kernel void atomics(const device uint* x [[buffer(0)]], device atomic_uint* n [[buffer(1)]],
    device atomic_float* f [[buffer(2)]], uint g [[thread_position_in_grid]]) {
  atomic_fetch_add_explicit(&n[0], x[g], memory_order_relaxed);
  atomic_fetch_max_explicit(&n[1], x[g], memory_order_relaxed);
  atomic_fetch_min_explicit(&n[2], x[g], memory_order_relaxed);
  atomic_fetch_or_explicit(&n[3], 1u << (x[g] % 32), memory_order_relaxed);
  uint seen = atomic_load_explicit(&n[4], memory_order_relaxed);
  while (!atomic_compare_exchange_weak_explicit(&n[4], &seen, seen + 2, memory_order_relaxed, memory_order_relaxed)) {}
  atomic_fetch_add_explicit(f, 0.5f, memory_order_relaxed);
}
"""
)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_atomics(schedule):
    x = np.random.default_rng(0).integers(1, 1000, 256, dtype=np.uint32)
    n = np.array([0, 0, 5000, 0, 0], np.uint32)
    f = np.zeros(1, np.float32)
    metal_emulator.compile_source(ATOMICS).kernel("atomics").launch([x, n, f], 256, 64, schedule=schedule)
    assert n.tolist() == [x.sum(), x.max(), x.min(), np.bitwise_or.reduce(np.uint32(1) << x % 32), 512]
    assert f[0] == 128


def test_all_schedules_give_the_same_bits():
    body = (
        f"s[i] = exp(x[g] * 0.01f); {BARRIER} float a = 0; for (int k = 0; k < 64; k++) a = fma(s[(i + "
        f"k) % 64], 0.3f, a); y[g] = simd_sum(a);"
    )
    library = library_of({"mixed": body})
    results = {
        schedule: run(library, "mixed", schedule=schedule, seed=seed)[0].tobytes()
        for seed, schedule in enumerate(SCHEDULES)
    }
    assert len(set(results.values())) == 1


def test_fast_math_build_differs_where_fast_math_may():
    bodies = {"nan": "y[g] = x[g] != x[g] ? 1 : 0;", "denormal": "y[g] = x[g] * 0.5f;"}
    x = np.full(128, np.nan, np.float32)
    tiny = np.full(128, 1.5e-38, np.float32)
    precise, fast = library_of(bodies), library_of(bodies, fast_math=True)
    assert (run(precise, "nan", x)[0] == 1).all()
    assert (run(fast, "nan", x)[0] == 0).all()
    assert (run(precise, "denormal", tiny)[0] > 0).all()
    assert (run(fast, "denormal", tiny)[0] == 0).all()
