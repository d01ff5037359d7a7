"""Sources and the cache: which kernels a library has, what is compiled once, and what is rejected."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import metal_emulator
from metal_emulator import CompileError, build, toolchain

from .kernels import HEADER, kernel

TEMPLATE = HEADER + (
    "template <typename T, int N> [[kernel]] void scale(device T* x [[buffer(0)]], uint g [[thread_position_in_grid]]) "
    "{ x[g] *= T(N); }\n"
    'template [[host_name("scale_float_3")]] [[kernel]] decltype(scale<float, 3>) scale<float, 3>;\n'
    'template [[host_name("scale_half_5")]] [[kernel]] void scale<half, 5>(device half*, uint);\n'
    "kernel void plain(device float* x, uint g [[thread_position_in_grid]]) { x[g] += 1; }\n"
)


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """A cache of its own; the runtime is rebuilt only by tests that launch."""
    monkeypatch.setenv("METAL_EMULATOR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_kernels_are_found_by_host_name():
    library = metal_emulator.compile_source(TEMPLATE)
    assert library.names == ("plain", "scale_float_3", "scale_half_5")
    x = np.arange(4, dtype=np.float32)
    library.kernel("scale_float_3").launch([x], 4, 4)
    library.kernel("plain").launch([x], 4, 4)
    assert x.tolist() == [1, 4, 7, 10]
    h = np.arange(4, dtype=np.float16)
    library.kernel("scale_half_5").launch([h], 4, 4)
    assert h.tolist() == [0, 5, 10, 15]


def test_only_what_is_requested_is_compiled():
    library = metal_emulator.compile_source(TEMPLATE, kernels=["scale_half_5"])
    assert library.names == ("scale_half_5",)
    with pytest.raises(
        ValueError, match="no kernel scale_int in the source; it has plain, scale_float_3, scale_half_5"
    ):
        metal_emulator.compile_source(TEMPLATE, kernels=["scale_int"])


def test_a_template_without_instances_has_no_kernels():
    with pytest.raises(ValueError, match="it has none"):
        metal_emulator.compile_source(TEMPLATE.partition("template [[")[0])


def test_compiled_once_and_by_content():
    first = metal_emulator.compile_source(TEMPLATE)
    stamp = first.path.stat().st_mtime_ns
    assert metal_emulator.compile_source(TEMPLATE).path == first.path
    assert first.path.stat().st_mtime_ns == stamp
    assert metal_emulator.compile_source(TEMPLATE.replace("T(N)", "T(N + 0)")).path != first.path
    assert metal_emulator.compile_source(TEMPLATE, fast_math=True).path != first.path


def test_the_precompiled_shim_goes_with_its_files(empty_cache, tmp_path, monkeypatch):
    """clang rejects it if its sources have moved or were written at another time."""
    found = [build.precompiled_shim(build.Variant())]
    for folder in ("runtime", "shim"):
        shutil.copytree(build.HERE / folder, tmp_path / folder)
    monkeypatch.setattr(build, "HERE", tmp_path)
    found.append(build.precompiled_shim(build.Variant()))
    os.utime(tmp_path / "shim" / "metal.h", (0, 0))
    found.append(build.precompiled_shim(build.Variant()))
    assert len(set(found)) == 3 and build.precompiled_shim(build.Variant()) == found[-1]


def test_nothing_is_built_inside_the_package():
    metal_emulator.compile_source(TEMPLATE)
    package = Path(metal_emulator.__file__).parent
    assert package not in toolchain.cache_folder().parents
    built = [path for path in package.rglob("*") if path.suffix in (".so", ".o", ".pch", ".ptx")]
    assert built == []


def test_an_unusable_home_falls_back_to_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("METAL_EMULATOR_CACHE", raising=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(toolchain.tempfile, "gettempdir", lambda: str(tmp_path))
    assert toolchain.cache_folder() == tmp_path / f"metal_emulator-{os.getuid()}"


def test_two_processes_build_the_same_library_at_once(empty_cache):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import metal_emulator, numpy as np\n"
        "x = np.zeros(4, np.float32)\n"
        "metal_emulator.compile_source(sys.argv[2]).kernel('plain').launch([x], 4, 4)\n"
        "assert x.tolist() == [1, 1, 1, 1]\n"
    )
    root = str(Path(metal_emulator.__file__).parents[1])
    running = [subprocess.Popen([sys.executable, "-c", program, root, TEMPLATE], stderr=subprocess.PIPE) for _ in "ab"]
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
    assert len(list(empty_cache.glob("kernels-*.so"))) == 1
    assert [path for path in empty_cache.iterdir() if path.name.startswith("tmp")] == []


def test_many_sources_at_once():
    sources = [HEADER + kernel("k", f"y[g] = x[g] * {n}.0f;") for n in range(1, 4)]
    libraries = metal_emulator.compile_sources(sources)
    x, y = np.ones(64, np.float32), np.zeros(64, np.float32)
    for n, library in enumerate(libraries, 1):
        library.kernel("k").launch([x, y], 64, 64)
        assert (y == n).all()


def test_a_compile_error_points_into_the_source():
    source = HEADER + "kernel void k(device float* x [[buffer(0)]]) {\n  x[0] = nothing;\n}\n"
    line = HEADER.count("\n") + 2
    with pytest.raises(CompileError, match=rf"kernel\.metal:{line}:\d+: error: use of undeclared identifier 'nothing'"):
        metal_emulator.compile_source(source)


def test_a_kernel_needs_parameters():
    with pytest.raises(ValueError, match=r"no kernel .*in the source; it has none"):
        metal_emulator.compile_source(HEADER + "kernel void k;")


def test_a_missing_include_is_a_compile_error(tmp_path):
    source = '#include "twice.h"\n' + HEADER + kernel("k", "y[g] = twice(x[g]);")
    with pytest.raises(CompileError, match=r"'twice\.h' file not found"):
        metal_emulator.compile_source(source)
    (tmp_path / "twice.h").write_text("#pragma once\ninline float twice(float x) { return x * 2; }\n")
    x, y = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    metal_emulator.compile_source(source, include_dirs=[tmp_path]).kernel("k").launch([x, y], 64, 64)
    np.testing.assert_array_equal(y, 2 * x)


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("constant bool& b [[function_constant(0)]]", "function constants are not supported"),
        ("device float* y [[buffer(31)]]", r"buffer\(31\) is past the last one"),
        ("float y [[stage_in]]", "cannot tell where this parameter comes from"),
    ],
)
def test_parameters_that_are_refused(parameter, message):
    with pytest.raises(ValueError, match=message):
        metal_emulator.compile_source(
            HEADER + f"kernel void k(device float* x [[buffer(0)]], {parameter}) {{ x[0] = 1; }}"
        )
