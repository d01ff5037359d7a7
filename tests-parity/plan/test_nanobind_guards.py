"""When natten-mlx's C++ extension is not used: each guard gives its reason in a sentence, and another backend runs."""

from __future__ import annotations

import importlib.machinery
import re
import shutil
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from frameworks import MLX

ROOT = Path(__file__).resolve().parents[2]
RELEASE_SCRIPT = ROOT / "packages" / "natten-mlx" / "cmake" / "mlx_release.py"
MODULE = f"natten_mlx._ext_{mx.__version__.replace('.', '_')}"
Provoke = Callable[[pytest.MonkeyPatch, Path], None]


def nothing_built(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "natten_mlx._build_info", None)  # as if the file did not exist


def another_mlx(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Two releases, none of which is the one here: nothing must be loaded, and the attempt would be another reason."""
    built = dict.fromkeys((mx.__version__, "0.32.10", "0.32.9"), "22")  # a published wheel has more
    monkeypatch.setattr(MLX.module("_build_info"), "NANOBIND_INTERNALS", built)
    for release in ("0.32.10", "0.32.9"):
        module = f"natten_mlx._ext_{release.replace('.', '_')}"
        monkeypatch.setitem(sys.modules, module, found_but_not_loading(module))
    monkeypatch.setitem(sys.modules, MODULE, None)


def another_python(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Of the release here there are modules, but for other versions of Python only."""
    another_mlx(monkeypatch, folder)
    monkeypatch.delitem(MLX.module("_build_info").NANOBIND_INTERNALS, "0.32.9")


def found_but_not_loading(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    return module


def not_loading(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    module = MLX.module("_launch.extension")
    imported = module.import_module

    def refuses(name: str, package: str | None = None) -> types.ModuleType:
        if name.endswith(MODULE.partition(".")[2]):
            raise ImportError("libmlx.so: undefined symbol")
        return imported(name, package)

    monkeypatch.setattr(module, "import_module", refuses)


def other_kernels(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    digests = MLX.module("_digests")
    shutil.copytree(digests.KERNELS, folder / "kernels")
    with (folder / "kernels" / "na_fwd.h").open("a") as file:
        file.write("// one comment more\n")
    monkeypatch.setattr(digests, "KERNELS", folder / "kernels")


def other_sources(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "csrc").mkdir()
    (folder / "csrc" / "plan.cpp").write_text("int main() {}\n")
    monkeypatch.setattr(MLX.module("_digests"), "SOURCES", folder / "csrc")


GUARDS: dict[Provoke, str] = {
    nothing_built: (
        "this installation of natten-mlx has no C++ extension: where it was built, CMake, a C++20 compiler or the "
        "matching MLX was missing"
    ),
    another_mlx: (
        f"the C++ extensions here were built for MLX 0.32.9, 0.32.10 and cannot run with MLX {mx.__version__}; "
        "natten-mlx's README says how one is built for it"
    ),
    another_python: (
        f"the C++ extensions here were built for MLX 0.32.10 and cannot run with MLX {mx.__version__}; natten-mlx's "
        "README says how one is built for it"
    ),
    not_loading: "the C++ extension does not load: libmlx.so: undefined symbol",
    other_kernels: (
        "the C++ extension was built from other kernel sources than this installation has: install it again"
    ),
    other_sources: "the C++ extension was built from other sources than csrc has now: build it again",
}


@pytest.fixture
def afresh() -> Iterator[None]:
    """The extension is looked for again, and the outcome is forgotten afterwards."""
    device = MLX.module("_device")
    with device.on_machine(device.Machine()):
        yield


@pytest.mark.parametrize("provoke", GUARDS, ids=lambda provoke: provoke.__name__)
def test_each_guard_gives_its_reason_and_another_backend_runs(
    provoke: Provoke, afresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package, reason = MLX.package, GUARDS[provoke]
    query = mx.array(np.random.default_rng(0).standard_normal((1, 9, 2, 4)), dtype=mx.float32)
    provoke(monkeypatch, tmp_path)
    assert package.nanobind_unavailable_reason() == reason
    assert not package.has_nanobind()
    entry = package.get_support_matrix()["nanobind"]
    assert (entry["available"], entry["reason"]) == (False, reason)
    text = package.explain("na1d", query, query, query, kernel_size=3)
    assert f"backend: pure (nanobind: {reason}; " in text
    with MLX.watch() as ran:
        mx.eval(package.na1d(query, query, query, 3))
    assert ran == {"pure"}
    with pytest.raises(NotImplementedError, match=re.escape(reason)), package.use_backend("nanobind"):
        package.na1d(query, query, query, 3)


@pytest.mark.parametrize("provoke", GUARDS, ids=lambda provoke: provoke.__name__)
def test_the_slow_backend_is_logged_once(
    provoke: Provoke, afresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only where a call under 'auto' falls back to it, and not where it was requested."""
    package, query = MLX.package, mx.ones((1, 9, 2, 4))
    provoke(monkeypatch, tmp_path)
    MLX.module("_metal.plan.backends").logged.clear()
    package.get_support_matrix()
    package.na1d(query, query, query, 3, backend="pure")
    with package.use_backend("dense"):
        package.na1d(query, query, query, 3)
    assert not caplog.records
    for _ in range(2):
        package.na1d(query, query, query, 3)
        package.na1d_qk(query, query, 3)
        package.attention(query, query, query)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and record.message == (
        f"na1d: the pure backend runs on this CPU, many times slower than the C++ kernels: {GUARDS[provoke]}. With a "
        "C++ compiler, `pip install --force-reinstall --no-deps --no-cache-dir --no-binary natten-mlx natten-mlx` "
        "builds them again; backend='pure' chooses it without this warning"
    )


def test_without_a_reason_it_runs(afresh: None) -> None:
    """The guards accept what matches, silently."""
    assert MLX.package.nanobind_unavailable_reason() is None
    assert MLX.package.has_nanobind()


IMPORTS = {
    # The type check inside the extension: an mlx.core that registered nothing with the extension's nanobind.
    "mlx.core.array is not visible: MLX was built with another nanobind ABI": """
        import ctypes, importlib.util, pathlib, sys, types
        folder = pathlib.Path(next(iter(importlib.util.find_spec("mlx").submodule_search_locations)))
        ctypes.CDLL(str(next((folder / "lib").glob("libmlx.*"))))
        sys.modules["mlx.core"] = types.ModuleType("mlx.core")
        import MODULE
    """,
    "nanobind backend module 'nanobind_backend' is not installed": """
        import mlx.core, sys
        sys.modules["nanobind_backend"] = None
        import MODULE
    """,
}


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", IMPORTS)
def test_the_extension_refuses_to_be_imported(words: str) -> None:
    done = python(IMPORTS[words].replace("MODULE", MODULE))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: ") and words in done.stderr, done.stderr


def test_without_nanobind_s_runtime_another_backend_runs() -> None:
    done = python("""
        import mlx.core, sys
        sys.modules["nanobind_backend"] = None
        import natten_mlx
        print(natten_mlx.nanobind_unavailable_reason())
    """)
    assert not done.stderr, "printed on import"
    assert done.stdout.startswith("the C++ extension does not load: ") and "nanobind" in done.stdout, done


# --- the ABI, when an extension is configured --------------------------------------------------------


def release_script(*arguments: str | Path) -> Any:
    return subprocess.run([sys.executable, RELEASE_SCRIPT, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def laid_out(tmp_path: Path) -> Path:
    """A folder as scripts/mlx_releases.py fills it, with stand-ins for the files that are read."""
    for name, text in {
        "mlx/include/mlx/version.h": "#define MLX_VERSION_MAJOR 1\n#define MLX_VERSION_MINOR 20\n"
        "#define MLX_VERSION_PATCH 3\n#define MLX_VERSION_NUMERIC \\\n  (100000 * MLX_VERSION_MAJOR)\n",
        "mlx/core.cpython-311.so": "\x7fELF\x00nanobind_system_libcpp_abi1_a1_v22\x00more",
        "nanobind/src/nb_abi.h": "#  define NB_INTERNALS_VERSION 22\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_build_knows_the_release_that_is_installed() -> None:
    done = release_script()
    assert done.returncode == 0, done.stderr
    version, internals, mlx, nanobind = done.stdout.strip().split(";")
    assert version == mx.__version__
    assert MLX.module("_build_info").NANOBIND_INTERNALS[version] == internals
    assert (Path(mlx) / "include").is_dir() and (Path(nanobind) / "include").is_dir()


def test_the_build_knows_a_release_in_a_folder(laid_out: Path) -> None:
    """Tags of nanobind 3 and of nanobind 2."""
    for tag, internals in (("nanobind_system_libcpp_abi1_a1_v22", "22"), ("v17_system_libcpp_abi1", "17")):
        (laid_out / "mlx" / "core.cpython-311.so").write_text(f"\x7fELF\x00{tag}\x00more")
        (laid_out / "nanobind" / "src" / "nb_abi.h").write_text(f"#  define NB_INTERNALS_VERSION {internals}\n")
        done = release_script(laid_out)
        assert done.stdout.strip() == f"1.20.3;{internals};{laid_out / 'mlx'};{laid_out / 'nanobind'}", done.stderr


def test_the_build_stops_at_another_nanobind(laid_out: Path) -> None:
    (laid_out / "nanobind" / "src" / "nb_abi.h").write_text("#  define NB_INTERNALS_VERSION 7\n")
    done = release_script(laid_out)
    assert done.returncode == 1
    assert done.stderr == (
        "this nanobind has internals v7, the MLX wheel was built with v22: build with nanobind==3.1.0\n"
    )


def test_the_build_stops_where_something_is_missing(laid_out: Path) -> None:
    (laid_out / "mlx" / "core.cpython-311.so").write_bytes(b"\x7fELF nothing of nanobind\x00")
    done = release_script(laid_out)
    assert done.returncode == 1 and "no nanobind ABI tag" in done.stderr
    (laid_out / "mlx" / "core.cpython-311.so").unlink()
    assert "no compiled module" in release_script(laid_out).stderr
