"""The strict check finds planted mistakes under the right rule, at the right line, and nothing in legal code."""

import pytest

from metal_emulator.strict import check

from .kernels import HEADER

PLANTED = {
    "device pointer to a thread parameter": (
        "void f(thread float* p) { *p = 1; }\nkernel void k(device float* x [[buffer(0)]]) { f(x); }",
        "conversion",
        2,
    ),
    "threadgroup pointer to a device parameter": (
        (
            "void f(device float* p) { *p = 1; }\nkernel void k(device float* x [[buffer(0)]]) { "
            "threadgroup float s[4]; f(s); }"
        ),
        "conversion",
        2,
    ),
    "constant to device": (
        "kernel void k(constant float* x [[buffer(0)]]) {\n device float* p = x; *p = 1; }",
        "address-space",
        2,
    ),
    "write through constant": ("kernel void k(constant float* x [[buffer(0)]]) { x[0] = 1; }", "const", 1),
    "cast that changes the address space": (
        "kernel void k(device float* x [[buffer(0)]]) {\n thread float4* v = (thread float4*)x; *v = 1; }",
        "address-space",
        2,
    ),
    "reinterpret_cast that changes it": (
        "kernel void k(device float* x [[buffer(0)]]) { auto v = reinterpret_cast<threadgroup float4*>(x); *v = 1; }",
        "address-space",
        1,
    ),
    "half4 from float4": ("kernel void k(device half4* x [[buffer(0)]]) { float4 v = 1; x[0] = v; }", "conversion", 1),
    "float into bfloat": (
        "kernel void k(device bfloat* x [[buffer(0)]], device float* y [[buffer(1)]]) {\n x[0] = y[0]; }",
        "bfloat",
        2,
    ),
    "function pointer": (
        (
            "float g(float a) { return a; }\nkernel void k(device float* x [[buffer(0)]]) { float "
            "(*p)(float) = g; x[0] = p(1); }"
        ),
        "language",
        2,
    ),
    "virtual function": (
        (
            "struct A { virtual float f() { return 1; } };\nkernel void k(device float* x [[buffer(0)]]) "
            "{ A a; x[0] = a.f(); }"
        ),
        "language",
        1,
    ),
    "exception": ("kernel void k(device float* x [[buffer(0)]]) { throw 1; }", "language", 1),
    "variable-length array": (
        (
            "kernel void k(device float* x [[buffer(0)]], constant int& n [[buffer(1)]]) { float a[n]; "
            "a[0] = 1; x[0] = a[0]; }"
        ),
        "language",
        1,
    ),
    "new": (
        "kernel void k(device float* x [[buffer(0)]]) { thread float* p = new float[3]; x[0] = p[0]; }",
        "language",
        1,
    ),
    "typeid": (
        "struct A {};\nkernel void k(device int* x [[buffer(0)]]) { A a; x[0] = typeid(a) == typeid(A); }",
        "language",
        2,
    ),
    "max of int and uint": (
        "kernel void k(device int* x [[buffer(0)]], uint i [[thread_position_in_grid]]) { x[0] = max(x[1], i); }",
        "conversion",
        1,
    ),
    "threadgroup initialiser": (
        "kernel void k(device int* x [[buffer(0)]]) {\n threadgroup int s[2] = {1, 2}; x[0] = s[0]; }",
        "address-space",
        2,
    ),
    "reference from an unqualified member": (
        (
            "struct A { float v; thread float& at() { return v; } };\nkernel void k(device float* x "
            "[[buffer(0)]]) { A a; x[0] = a.at(); }"
        ),
        "address-space",
        1,
    ),
    "shuffle of a 64-bit value": (
        "kernel void k(device long* x [[buffer(0)]]) {\n x[0] = simd_shuffle(x[0], ushort(1)); }",
        "language",
        2,
    ),
    "sum of a bfloat": ("kernel void k(device bfloat* x [[buffer(0)]]) {\n x[0] = simd_sum(x[0]); }", "language", 2),
    "matrix of int": (
        (
            "kernel void k(device int* x [[buffer(0)]]) {\n simdgroup_matrix<int, 8, 8> m; x[0] = "
            "m.thread_elements()[0]; }"
        ),
        "language",
        2,
    ),
    "float atomic maximum": (
        (
            "kernel void k(device atomic_float* x [[buffer(0)]]) {\n atomic_fetch_max_explicit(x, 1.0f, "
            "memory_order_relaxed); }"
        ),
        "language",
        2,
    ),
    "mistake in an instantiated template": (
        (
            "template <typename T> [[kernel]] void k(device T* x [[buffer(0)]]) {\n threadgroup T* p = x; *p = 1; }\n"
            'template [[host_name("k_float")]] [[kernel]] decltype(k<float>) k<float>;'
        ),
        "address-space",
        2,
    ),
}
LEGAL = {
    "lambda": "kernel void k(device float* x [[buffer(0)]]) { auto f = [](float a) { return a + 1; }; x[0] = f(1); }",
    "member of a thread object": (
        "struct A { float v; thread float& at() thread { return v; } };\nkernel void k(device float* "
        "x [[buffer(0)]]) { A a; a.at() = 1; x[0] = a.at(); }"
    ),
    "bfloat written out": (
        "kernel void k(device bfloat* x [[buffer(0)]], device float* y [[buffer(1)]]) { bfloat v = "
        "bfloat(y[0]); x[0] = y[1] > 0 ? x[1] * v : bfloat(0.0f); y[2] = x[2]; }"
    ),
    "vectors": (
        "kernel void k(device float4* x [[buffer(0)]], constant half4* h [[buffer(1)]]) { float4 v = "
        "float4(h[0]); v.xy += v.zw * 2.0f; v.x += h[1].y + h[1].zw[0]; x[0] = fma(v, v, v.wzyx) + "
        "float4(v.xy, 1, 2); }"
    ),
    "threadgroup memory as vectors": (
        "kernel void k(device float* x [[buffer(0)]], uint i [[thread_position_in_threadgroup]]) { "
        "threadgroup uint4 s[8]; threadgroup half* h = (threadgroup half*)s; h[i] = half(x[i]); x[i] "
        "= h[i ^ 1]; }"
    ),
    "address space by template": (
        "template <typename P> float first(P p) { return p[0]; }\nkernel void k(device float* x "
        "[[buffer(0)]], constant float* y [[buffer(1)]]) { x[0] = first(x) + first(y); }"
    ),
    "matrices": (
        "kernel void k(const device half* x [[buffer(0)]], device float* y [[buffer(1)]]) { "
        "threadgroup half s[64]; simdgroup_half8x8 a, b; simdgroup_float8x8 c(0.0f); "
        "simdgroup_load(a, x, 8); simdgroup_load(b, s, 8, ulong2(0), true); "
        "simdgroup_multiply_accumulate(c, a, b, c); c.thread_elements()[0] *= 2; simdgroup_store(c, "
        "y, 8); }"
    ),
    "atomics": (
        "kernel void k(device atomic_uint* x [[buffer(0)]], device atomic_float* y [[buffer(1)]]) { "
        "threadgroup atomic_int n; atomic_store_explicit(&n, 0, memory_order_relaxed); "
        "atomic_fetch_add_explicit(y, 1.0f, memory_order_relaxed); atomic_fetch_max_explicit(x, 3u, "
        "memory_order_relaxed); }"
    ),
    "program constants": (
        "constant float table[2] = {1, 2};\nconstant constexpr float low = -1.7014117e38f;\nkernel "
        "void k(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) { x[i] = "
        "max(table[i % 2], low); }"
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_mistake(name):
    text, rule, line = PLANTED[name]
    findings = check(HEADER + text)
    header_lines = HEADER.count("\n")
    assert (rule, header_lines + line) in {(finding.rule, finding.line) for finding in findings}


@pytest.mark.parametrize("name", LEGAL)
def test_legal_code(name):
    assert check(HEADER + LEGAL[name]) == []


def test_an_uninstantiated_template_is_parsed_only():
    template = "template <typename T> [[kernel]] void k(device T* x [[buffer(0)]]) { x[0] = T(1).nothing; }\n"
    assert check(HEADER + template) == []
    findings = check(HEADER + template + 'template [[host_name("k_float")]] [[kernel]] decltype(k<float>) k<float>;')
    assert [finding.rule for finding in findings] == ["language"]
