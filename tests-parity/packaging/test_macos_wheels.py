"""Wheels for macOS built on Linux (scripts/build_macos_wheels.py): its parts and, with --all, the wheels themselves."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import build_macos_wheels  # noqa: E402
import macos_clang  # noqa: E402
import mlx_releases  # noqa: E402
import registry  # noqa: E402

pytestmark = pytest.mark.xdist_group("macos-wheels")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="a Mac builds its wheels with Apple's compiler")
CSRC = ROOT / "packages" / "natten-mlx" / "csrc"
LIBMLX, LIBCXX = "@rpath/libmlx.dylib", "/usr/lib/libc++.1.dylib"


def test_what_cmake_says_to_apples_clang_is_said_to_ziglangs() -> None:
    given = ["-O3", "-arch", "arm64", "-isysroot", "/SDK", "-mmacosx-version-min=14.0", "-bundle", "-o", "a.so", "a.o"]
    same = ["-shared", "-o", "a.so", "a.o", "-fno-sanitize=all"]
    assert list(macos_clang.translated(given)) == ["-O3", *same[:4], "-target", "aarch64-macos.14.0", same[4]]
    # Where CMake does not say for which macOS, the result is not for 14.0, which check_wheel.py refuses.
    assert "aarch64-macos.11.0" in macos_clang.translated(["-c", "a.cpp"])
    with pytest.raises(SystemExit, match="for arm64 alone"):
        list(macos_clang.translated(["-arch", "x86_64"]))


def test_a_symbol_that_its_library_lacks_and_one_of_no_library_are_noticed() -> None:
    imported = {"__ZN3mlx4core5arrayC1Ev": LIBMLX, "__ZNSt9exceptionD2Ev": LIBCXX, "_PyErr_Clear": ""}
    exported = {LIBMLX: {"__ZN3mlx4core5arrayC1Ev"}}
    assert build_macos_wheels.misplaced(imported, exported) == []
    imported |= {"__ZN3MTL6goneEv": LIBMLX, "__ZNSt3__113__hash_memoryEPKvm": ""}
    assert build_macos_wheels.misplaced(imported, exported) == [
        f"imports __ZN3MTL6goneEv, which {LIBMLX} does not export",
        "imports __ZNSt3__113__hash_memoryEPKvm from no library; it looks for Python's symbols alone in all of them",
    ]


def test_an_unreachable_registry_is_no_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing else is excused: a version that the registry does not have is an error."""
    said = {
        "unreachable": "error: Failed to fetch: `...`\n  Caused by: dns error",
        "wrong": "no version of mlx==9",
        "gone": "error: Failed to fetch: `...`\n  Caused by: HTTP status client error (404 Not Found)",
    }
    monkeypatch.setattr(sys, "argv", ["build_macos_wheels.py"])
    monkeypatch.setattr(mlx_releases, "FOLDER", tmp_path / "releases")
    for kind, text in said.items():
        uv = tmp_path / f"uv-{kind}"
        uv.write_text(f"#!/bin/sh\ncat >&2 <<'TEXT'\n{text}\nTEXT\nexit 2\n")
        uv.chmod(0o755)
        monkeypatch.setenv("UV", str(uv))
        if kind == "unreachable":
            with pytest.raises(registry.UnreachableRegistry, match="dns error"):
                registry.uv("anything")
            build_macos_wheels.main()
        else:
            with pytest.raises(SystemExit) as stopped:
                build_macos_wheels.main()
            assert text in str(stopped.value)


@pytest.mark.all
@on_linux
def test_the_wheels_are_as_they_should_be() -> None:
    done = subprocess.run([ROOT / "dev.sh", "macos-wheels"], capture_output=True, text=True, check=False)
    assert "build_macos_wheels: as they should be: " in done.stdout, f"{done.stdout}\n{done.stderr}"


@pytest.mark.all
@on_linux
def test_extensions_use_mlxs_metal_and_the_kernels(tmp_path: Path) -> None:
    """What metal.cpp and operation.cpp are written for, in each extension of the wheel that was just built."""
    (wheel,) = build_macos_wheels.WHEELS.glob("natten_mlx-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if "/_ext_" in name and name.endswith(".so")]
        found = {name: build_macos_wheels.imports(Path(archive.extract(name, tmp_path))) for name in names}
    assert {name.split("/")[1].partition(".")[0] for name in names} == {
        f"_ext_{release.replace('.', '_')}" for release in mlx_releases.releases()
    }
    for imported in found.values():
        theirs = {symbol for symbol, library in imported.items() if library == LIBMLX}
        for word in ("get_command_encoder", "get_library", "get_kernel", "dispatch_threadgroups", "set_input_array"):
            assert any(word in symbol for symbol in theirs), word
        assert imported["_natten_cpu_isa"] == "@rpath/libnatten_mlx_cpu.dylib"
        assert imported["_objc_msgSend"] == "/usr/lib/libobjc.A.dylib"


@pytest.mark.all
@on_linux
def test_a_method_that_mlx_does_not_have_is_noticed(tmp_path: Path) -> None:
    """The headers are the real ones: what they do not declare does not compile."""
    text, wrong = (CSRC / "metal.cpp").read_text(), tmp_path / "metal.cpp"
    assert text.count("get_kernel(") == 1
    for content, fails in ((text, False), (text.replace("get_kernel(", "get_kernels("), True)):
        wrong.write_text(content)
        mlx = mlx_releases.FOLDER / "macos" / f"mlx-{mlx_releases.releases()[0]}" / "mlx" / "include"
        includes = [f"-I{CSRC}", "-isystem", mlx, "-isystem", mlx / "metal_cpp"]
        command = [build_macos_wheels.MACOS / "bin" / "clang", "-std=c++20", '-DNATTEN_KERNELS_DIGEST="0"', *includes]
        done = subprocess.run(
            [*command, "-c", wrong, "-o", tmp_path / "metal.o"],
            env={"NATTEN_MACOS": str(build_macos_wheels.MACOS), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert bool(done.returncode) == fails, done.stderr
        assert ("get_kernels" in done.stderr) == fails
