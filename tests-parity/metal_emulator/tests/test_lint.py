"""Every rule of the lint finds its planted mistake at its line, and nothing else; clean code has no findings."""

import pytest

from metal_emulator.lint import lint

from .kernels import HEADER

KERNEL = "kernel void k(device float* x [[buffer(0)]]) {{ {} }}\n"
PLANTED = {
    "double": (KERNEL.format("double d = x[0]; x[0] = d;"), ("banned", 1)),
    "goto": (KERNEL.format("goto e; e: x[0] = 1;"), ("banned", 1)),
    "std": (KERNEL.format("x[0] = std::max(1, 2);"), ("banned", 1)),
    "static local": (KERNEL.format("static int c = 0; x[0] = c++;"), ("static-local", 1)),
    "program-scope variable": ("float state = 1;\n" + KERNEL.format("x[0] = state;"), ("program-scope", 1)),
    "program-scope variable without a value": ("int state;\n" + KERNEL.format("x[0] = state;"), ("program-scope", 1)),
    "pointer without an address space": (
        "float f(float* p) { return *p; }\n" + KERNEL.format("float v; x[0] = f(&v);"),
        ("address-space", 1),
    ),
    "reference without an address space": (
        "void f(const int& p, device float* q) { *q = p; }\n" + KERNEL.format("f(1, x);"),
        ("address-space", 1),
    ),
    "local pointer without an address space": (KERNEL.format("\n float* p = x; *p = 1;"), ("address-space", 2)),
    "recursion": ("int f(int n) { return n ? f(n - 1) : 0; }\n" + KERNEL.format("x[0] = f(3);"), ("recursion", 1)),
    "mutual recursion": (
        "int g(int n);\nint f(int n) { return g(n); }\nint g(int n) { return n ? f(n - 1) : 0; }\n",
        ("recursion", 2),
    ),
    "function named like Metal's": (
        "METAL_FUNC float clamp(float a) { return a; }\n" + KERNEL.format("x[0] = 1;"),
        ("name-clash", 1),
    ),
    "constant named like Metal's": ("constant float step = 1.0f;\n" + KERNEL.format("x[0] = 1;"), ("name-clash", 1)),
    "infinity": (KERNEL.format("x[0] = -INFINITY;"), ("fast-math", 1)),
    "isnan": (KERNEL.format("x[0] = isnan(x[1]) ? 0 : 1;"), ("fast-math", 1)),
    "literal without a suffix": (KERNEL.format("x[0] = 1.5;"), ("literal", 1)),
    "exponent without a suffix": (KERNEL.format("x[0] = 1e-3;"), ("literal", 1)),
    "volatile": (KERNEL.format("volatile float v = x[0]; x[1] = v;"), ("volatile", 1)),
    "buffer index": ("kernel void k(device float* x [[buffer(31)]]) { x[0] = 1; }\n", ("buffer-index", 1)),
    "non-ASCII": ("// caf\u00e9\n" + KERNEL.format("x[0] = 1;"), ("non-ascii", 1)),
}
CLEAN = """// 1.0 and INFINITY in a comment; double /* too */
constant constexpr float low = -1.7014117e38f;
constant int table[2] = {1, 2};
struct Span { int lo; int hi; };
template <typename T, int N>
struct Rows {
  const threadgroup T* base;
  METAL_FUNC T at(int row, int length) const thread { return base[row * N + length]; }
};
METAL_FUNC float twice(float v) { return v * 2.0f; }
template <typename T>
METAL_FUNC void fill(thread T* p, const device T* q, int n) {
  for (int i = 0; i < n; ++i) p[i] = q[i] * T(0.5h);
}
[[kernel]] void k(device float* x [[buffer(0)]], constant float& scale [[buffer(30)]],
    uint i [[thread_position_in_grid]]) {
  threadgroup float s[32];
  float held[2];
  fill(held, (const device float*)x, 2);
  thread float& first = held[0];
  float step = twice(scale * first) * 1e-3f;
  s[i] = step * 3 + table[i & 1];
  const int n = int(i) * 2 & 3;
  x[i] = s[i ^ 1] * float(n);
}
"""


@pytest.mark.parametrize("name", PLANTED)
def test_planted_mistake(name):
    text, (rule, line) = PLANTED[name]
    found = {(finding.rule, finding.line) for finding in lint(HEADER + text)}
    assert (rule, line + HEADER.count("\n")) in found
    assert {other for other, _ in found} == {rule}


def test_include_is_reported(tmp_path):
    (tmp_path / "mine.h").write_text("METAL_FUNC int one() { return 1; }\n")
    findings = lint('#include "mine.h"\n' + HEADER + KERNEL.format("x[0] = one();"), include_dirs=[tmp_path])
    assert [(finding.rule, finding.line) for finding in findings] == [("include", 1)]


def test_clean_code():
    assert lint(HEADER + CLEAN) == []
