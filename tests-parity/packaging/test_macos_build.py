"""The macOS side of natten-mlx's C++ extension, compiled and linked on Linux (scripts/check_macos_build.py)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import check_macos_build  # noqa: E402

pytestmark = pytest.mark.xdist_group("macos-build")


@pytest.fixture(scope="module")
def fetched() -> Iterator[None]:
    try:
        check_macos_build.fetch()
    except check_macos_build.UnreachableRegistry as reason:
        pytest.skip(f"the package registry cannot be reached: {reason}")
    yield


@pytest.mark.all
def test_it_compiles_links_and_finds_its_symbols(fetched: None) -> None:
    verdict = check_macos_build.check()
    assert verdict.startswith("the extension compiles and links for aarch64-macos.14.0; libmlx exports all "), verdict
    # What metal.cpp calls.
    imported, _, theirs = check_macos_build.symbols(check_macos_build.CACHE / "_ext.abi3.so")
    for name in ("get_command_encoder", "get_library", "get_kernel", "dispatch_threadgroups", "set_input_array"):
        assert any(name in symbol for symbol in imported & theirs), name


@pytest.mark.all
def test_a_method_that_mlx_does_not_have_is_noticed(fetched: None, tmp_path: Path) -> None:
    """The headers are the real ones: what they do not declare does not compile."""
    text, wrong = (check_macos_build.CSRC / "metal.cpp").read_text(), tmp_path / "metal.cpp"
    assert text.count("get_kernel(") == 1
    wrong.write_text(text.replace("get_kernel(", "get_kernels("))
    with pytest.raises(subprocess.CalledProcessError):
        check_macos_build.compile_source(str(wrong), tmp_path / "metal.o")


def test_a_symbol_that_libmlx_lacks_is_noticed() -> None:
    imported = {"__ZN3mlx4core5metal6deviceENS0_6DeviceE", "__ZN3MTL6goneEv", "__ZNSt9exceptionD2Ev", "_PyErr_Clear"}
    exported = {"__ZN3mlx4core5metal6deviceENS0_6DeviceE"}
    assert check_macos_build.unexported(imported, exported) == ["__ZN3MTL6goneEv"]
    assert check_macos_build.unexported(imported - {"__ZN3MTL6goneEv"}, exported) == []


def test_an_unreachable_registry_is_no_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing else is excused: a version that the registry does not have is an error."""
    errors = {
        "unreachable": "error: Failed to fetch: `...`\n  Caused by: dns error",
        "wrong": "no version of mlx==9",
        "gone": "error: Failed to fetch: `...`\n  Caused by: HTTP status client error (404 Not Found)",
    }
    for kind in errors:
        raised = check_macos_build.UnreachableRegistry if kind == "unreachable" else SystemExit
        uv = tmp_path / f"uv-{kind}"
        uv.write_text(f"#!/bin/sh\ncat >&2 <<'TEXT'\n{errors[kind]}\nTEXT\nexit 2\n")
        uv.chmod(0o755)
        monkeypatch.setenv("UV", str(uv))
        monkeypatch.setattr(check_macos_build, "CACHE", tmp_path / kind)
        with pytest.raises(raised):
            check_macos_build.fetch()
