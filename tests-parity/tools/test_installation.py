"""What the doctor says before it imports a framework: of faulty installations, and of broken frameworks."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from processes import LIMIT

from natten_mps._metal.tools import installation
from natten_mps._metal.tools.installation import Installation, Machine

PACKAGES = ("natten_mps", "natten_mlx")
MODULES = {"natten_mps": "torch", "natten_mlx": "mlx"}
MAC = Machine("darwin", "macOS 15.6", "arm64", False, "Apple M4 Max", 40, 16, 64 << 30)
LINUX = Machine("linux", "Linux 6.1", "x86_64", False, "Some CPU", None, 2, None)


def installed(package: str, machine: Machine = MAC, python: str = "3.12.4", **versions: str | None) -> Installation:
    """A package on a machine, with everything that it needs but ``versions`` as given (mlx_metal for mlx-metal)."""
    known = {"torch": "2.13.0+cpu", "mlx": "0.32.4", "mlx-metal": "0.32.4", "mlx-cpu": "0.32.4"}
    known |= {name.replace("_", "-"): version for name, version in versions.items()}  # type: ignore[misc]
    requires = ("python>=3.11", "torch>=2.9", "mlx>=0.31", 'mlx[cpu]>=0.31; extra == "cpu"')
    return Installation(package.replace("_", "-"), machine, python, known, requires, "3.14", {})


def findings(package: str, here: Installation) -> list[tuple[str, str, bool]]:
    framework = importlib.import_module(f"{package}.cli").FRAMEWORK
    return [tuple(finding) for finding in installation.findings(here, framework)]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("machine", [MAC, LINUX], ids=["mac", "linux"])
def test_nothing_is_wrong(package: str, machine: Machine) -> None:
    assert findings(package, installed(package, machine)) == []


def test_pythons() -> None:
    (old,) = findings("natten_mps", installed("natten_mps", python="3.10.9"))
    assert old[0] == "Python 3.10.9 is too old: natten-mps needs 3.11 or newer" and old[2]
    assert old[1] == "install Python 3.14, make a new environment with it, and install natten-mps there"
    (new,) = findings("natten_mps", installed("natten_mps", python="3.15.0rc1"))
    assert new[0] == "Python 3.15.0rc1 is newer than 3.14, the newest that natten-mps is tested with"
    assert not new[2], "it may work"


def test_macs() -> None:
    def first(**changes: Any) -> str:
        found = findings("natten_mlx", installed("natten_mlx", dataclasses.replace(MAC, **changes)))
        return found[0][0]

    assert "runs under Rosetta" in first(rosetta=True, architecture="x86_64")
    assert first(architecture="x86_64") == "this Mac has an Intel CPU; the kernels are for Apple Silicon"
    assert first(os="macOS 13.7.1") == "macOS 13.7.1 is too old: 14.0 or newer is needed"
    assert findings("natten_mlx", installed("natten_mlx", dataclasses.replace(MAC, os="macOS 14.0"))) == []


def test_frameworks() -> None:
    mps, mlx = "natten_mps", "natten_mlx"
    assert findings(mps, installed(mps, torch=None)) == [("PyTorch is not installed", "pip install torch", True)]
    assert findings(mps, installed(mps, torch="2.8.1")) == [
        ("torch 2.8.1 is too old: natten-mps needs 2.9 or newer", "pip install --upgrade torch", True)
    ]
    assert findings(mlx, installed(mlx, LINUX, mlx=None)) == [
        ("MLX is not installed", "pip install 'natten-mlx[cpu]'", True)
    ]
    parts = "mlx-cpu or mlx-cuda-12 or mlx-cuda-13"
    assert findings(mlx, installed(mlx, LINUX, mlx_cpu=None)) == [
        (f"mlx is installed without its library, which {parts} holds", "pip install 'natten-mlx[cpu]'", True)
    ]
    assert findings(mlx, installed(mlx, LINUX, mlx_cpu=None, mlx_cuda_13="0.32.4")) == []
    assert findings(mlx, installed(mlx, MAC, mlx_metal="0.31.0")) == [
        (
            "mlx 0.32.4 and mlx-metal 0.31.0 do not belong together",
            "pip install --force-reinstall mlx==0.32.4 mlx-metal==0.32.4",
            True,
        )
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_this_installation(package: str) -> None:
    """The facts are those of this process, and nothing is wrong with it."""
    framework = importlib.import_module(f"{package}.cli").FRAMEWORK
    here = installation.here(package.replace("_", "-"), framework)
    for name in (framework.distribution, "rich", "platformdirs"):
        assert here.versions[name] == metadata.version(name)
    assert here.python == ".".join(map(str, sys.version_info[:3])) and here.requires[0] == "python>=3.11"
    assert here.newest_python == "3.14" and here.machine.system == sys.platform
    assert not [finding for finding in findings(package, here) if finding[2]]
    program = f"import {package}.cli as cli, sys; assert '{MODULES[package]}' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


# --- frameworks that are broken ------------------------------------------------------------------------


def run(package: str, path: Path, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A command where ``path`` comes first among the places that modules are imported from."""
    done = subprocess.run(
        [sys.executable, *options, "-m", package, *arguments],
        env=os.environ | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


BROKEN = {
    "raises": ("raise ImportError('libmissing.so: cannot open shared object file')", "libmissing.so: cannot open"),
    "dies": ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "its import ended the process by SIGILL"),
}


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("kind", BROKEN)
def test_a_framework_that_cannot_be_imported(package: str, kind: str, tmp_path: Path) -> None:
    """It is reported, in the file too, with what to do; and the process that reports survives."""
    module = tmp_path / MODULES[package]
    module.mkdir()
    (module / "__init__.py").write_text(BROKEN[kind][0])
    done = run(package, tmp_path, "doctor", "--json", str(tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())
    (finding,) = found["findings"]
    name = importlib.import_module(f"{package}.cli").FRAMEWORK.name
    assert finding["problem"].startswith(f"{name} is installed, but cannot be imported: ")
    assert BROKEN[kind][1] in finding["problem"] and "--force-reinstall" in finding["remedy"]
    assert f"  problem: {finding['problem']}\n    to do: {finding['remedy']}\n" in done.stdout
    assert done.returncode == found["status"] == 1 and found["rows"] == [] and found["backends"] == {}
    assert found["versions"][MODULES[package]] == metadata.version(MODULES[package])


@pytest.mark.parametrize("package", PACKAGES)
def test_the_file_does_not_name_the_home_folder(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "jane"
    (home / MODULES[package]).mkdir(parents=True)
    (home / MODULES[package] / "__init__.py").write_text(f"raise OSError({str(home / 'lib.so')!r} + ' is not there')")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NATTEN_TUNING", str(home / "tuning.json"))
    done = run(package, home, "doctor", "--json")
    found = json.loads(done.stdout)
    assert found["findings"][0]["problem"].endswith("cannot be imported: OSError: ~/lib.so is not there")
    assert found["settings"]["NATTEN_TUNING"] == "~/tuning.json" and "jane" not in done.stdout
    assert str(home / "lib.so") in done.stderr  # the table is for the user


@pytest.mark.parametrize("package", PACKAGES)
def test_other_commands_send_to_the_doctor(package: str, tmp_path: Path) -> None:
    (tmp_path / f"{MODULES[package]}.py").write_text(BROKEN["raises"][0])
    Image.new("RGB", (32, 24)).save(tmp_path / "photo.png")
    done = run(package, tmp_path, "demo", str(tmp_path / "photo.png"))
    command = package.replace("_", "-")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"{command}: ") and f"; `{command} doctor` says what to do" in done.stderr
    assert run(package, tmp_path, "--version").stdout == f"{command} {metadata.version(command)}\n"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere MLX's library cannot be left out by an extra")
def test_mlx_without_its_library(tmp_path: Path) -> None:
    """What `pip install natten-mlx` without [cpu] gives on Linux: mlx alone, whose core cannot be loaded."""
    import mlx.core

    (tmp_path / "mlx").mkdir()
    for entry in Path(str(mlx.core.__file__)).parent.iterdir():
        if entry.name != "lib":
            (tmp_path / "mlx" / entry.name).symlink_to(entry)
    for name in ("mlx", "natten-mlx"):
        folder = Path(str(metadata.distribution(name)._path))  # type: ignore[attr-defined]
        (tmp_path / folder.name).symlink_to(folder)
    natten_mlx = Path(str(importlib.import_module("natten_mlx").__file__)).parent
    (tmp_path / "natten_mlx").symlink_to(natten_mlx)
    done = run("natten_mlx", tmp_path, "doctor", options=("-S",))
    assert done.returncode == 1 and done.stdout.startswith("natten-mlx doctor\n")
    assert "  problem: mlx is installed without its library, which mlx-cpu" in done.stdout
    assert "    to do: pip install 'natten-mlx[cpu]'\n" in done.stdout
