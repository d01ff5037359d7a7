"""The packages under type checkers: the examples of the READMEs, and return types that depend on `return_lse`.

mypy runs by default, pyright with --all (`./dev.sh test --all` installs it together with node).
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
import typing
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
READMES = [ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md"))]
ARRAYS = {"natten_mps": ("torch", "torch.Tensor"), "natten_mlx": ("mlx.core", "mlx.core.array")}
# The protocol of each public face that takes return_lse.
PROTOCOLS = {
    "functional": {
        **dict.fromkeys(("neighborhood_attention", "na1d", "na2d", "na3d"), "Fused"),
        "attention": "Full",
    },
    "varlen": {
        "na1d_varlen": "Sequences",
        "na2d_varlen": "Grids",
        "na3d_varlen": "Grids",
        "neighborhood_attention_varlen": "Packed",
    },
}
# Strict, except for what the frameworks leave untyped: torch's Tensor.backward; mlx.nn's modules, names and
# value_and_grad.
MYPY = """
[mypy]
strict = true
untyped_calls_exclude = torch, mlx
warn_return_any = false
[mypy-mlx.*]
implicit_reexport = true
"""
CALLS = """
import typing
import {framework}
from {package}.functional import {functional}
from {package}.varlen import {varlen}

Array: typing.TypeAlias = {array}
Both: typing.TypeAlias = tuple[Array, Array]

def some(x: Array, maybe: bool) -> None:
"""
FUSED = """
    typing.assert_type({face}(x, x, x{rest}), Array)
    typing.assert_type({face}(x, x, x{rest}, return_lse=False), Array)
    typing.assert_type({face}(x, x, x{rest}, return_lse=True), Both)
    typing.assert_type({face}(x, x, x{rest}, return_lse=maybe), Array | Both)
    {face}(x, x, x{rest}, return_lse="yes")  # type: ignore[call-overload]
    {face}(x, x{rest}, return_lse=True)  # type: ignore[call-overload]
"""
LISTED = """
    typing.assert_type({face}([x], [x], [x]{rest}), list[Array])
    typing.assert_type({face}([x], [x], [x]{rest}, return_lse=True), tuple[list[Array], list[Array]])
"""


def examples() -> dict[str, str]:
    """Each python block of a README, under a file name of its own."""
    return {
        f"{readme.parent.name if readme.parent != ROOT else 'both'}_{number}.py".replace("-", "_"): code
        for readme in READMES
        for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", readme.read_text(), re.M | re.S))
    }


def calls(package: str) -> str:
    """Calls of every face that takes `return_lse`, and the types they must have."""
    framework, array = ARRAYS[package]
    names = {home: ", ".join(faces) for home, faces in PROTOCOLS.items()}
    text = CALLS.format(package=package, framework=framework, array=array, **names)
    for home, faces in PROTOCOLS.items():
        for face, protocol in faces.items():
            sizes = {"Sequences": ", seq_lens=[3]", "Grids": ", spatial_sizes=[(3, 3)]"}.get(protocol, "")
            rest = sizes + ("" if protocol in ("Full", "Packed") else ", kernel_size=3")
            text += FUSED.format(face=face, rest=rest)
            if home == "varlen" and protocol != "Packed":
                text += LISTED.format(face=face, rest=rest)
    return text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files to check."""
    path = tmp_path_factory.mktemp("typed")
    files = examples() | {f"calls_of_{package}.py": calls(package) for package in ARRAYS}
    for name, text in files.items():
        (path / name).write_text(text)
    (path / "mypy.ini").write_text(MYPY)
    return path


def complaints(folder: Path, *command: str) -> str:
    """The output of a checker for the files; empty if it finds nothing."""
    files = sorted(path.name for path in folder.glob("*.py"))
    done = subprocess.run(
        [sys.executable, "-m", *command, *files], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout if done.returncode else ""


def mypy(folder: Path) -> str:
    # A separate cache: strict mode reads the frameworks with other settings than the project's own.
    cache = ROOT / ".mypy_cache" / "examples"
    return complaints(folder, "mypy", "--config-file", "mypy.ini", "--cache-dir", str(cache))


def pyright(folder: Path) -> str:
    assert importlib.util.find_spec("pyright"), "pyright is missing: ./dev.sh test --all installs it"
    return complaints(folder, "pyright", "--pythonpath", sys.executable)


# One worker: mypy ends in an internal error where another mypy writes to its cache meanwhile.
one_worker = pytest.mark.xdist_group("type checkers")
CHECKERS = [pytest.param(mypy, id="mypy"), pytest.param(pyright, id="pyright", marks=pytest.mark.all)]


@one_worker
@pytest.mark.parametrize("checker", CHECKERS)
def test_examples_and_calls_pass(checker: typing.Callable[[Path], str], folder: Path) -> None:
    names = {path.name for path in folder.glob("*.py")}
    assert {"both_0.py", "both_1.py", "natten_mps_0.py", "natten_mlx_0.py", "calls_of_natten_mlx.py"} <= names
    assert checker(folder) == ""


@one_worker
@pytest.mark.parametrize("checker", CHECKERS)
def test_a_wrong_type_is_noticed(checker: typing.Callable[[Path], str], tmp_path: Path) -> None:
    """Errors in the return type of a face, in the name of a face, in an example."""
    (tmp_path / "mypy.ini").write_text(MYPY)
    wrong = calls("natten_mps").replace("return_lse=True), Both", "return_lse=True), Array", 1)
    (tmp_path / "calls.py").write_text(wrong)
    (tmp_path / "example.py").write_text(examples()["both_1.py"] + 'na2d(query, key, "value", kernel_size=7)\n')
    found = checker(tmp_path)
    assert re.search(r"calls\.py:14.*(assert-type|reportAssertTypeFailure)", found, re.S)
    assert re.search(r"example\.py:\d+.*call-overload|example\.py:\d+.*reportArgumentType", found, re.S)
    assert found.count(" error: ") == 2


# --- overloads agree with the signature of the face --------------------------------------------------


@pytest.mark.parametrize("package", ARRAYS)
def test_every_face_with_lse_has_overloads(package: str) -> None:
    for home in ("functional", "varlen", "modules", "weights"):
        module = import_module(f"{package}.{home}")
        public = {
            name
            for name, value in vars(module).items()
            if inspect.isfunction(value) and not name.startswith("_") and value.__module__ == module.__name__
        }
        with_lse = {name for name in public if "return_lse" in inspect.signature(getattr(module, name)).parameters}
        assert with_lse == set(PROTOCOLS.get(home, ())), home


@pytest.mark.parametrize("package", ARRAYS)
@pytest.mark.parametrize(("home", "face"), [(home, face) for home, faces in PROTOCOLS.items() for face in faces])
def test_overloads_agree_with_the_signature(package: str, home: str, face: str) -> None:
    """Parameters, kinds, defaults and annotations, except those that depend on `return_lse`, and lists of arrays."""
    signatures = import_module(f"{package}._signatures")
    own = inspect.signature(getattr(import_module(f"{package}.{home}"), face))
    # Python registers overloads by module and name; the name itself is a function of typing's.
    of = SimpleNamespace(__module__=signatures.__name__, __qualname__=f"{PROTOCOLS[home][face]}.__call__")
    overloads = typing.get_overloads(of)  # type: ignore[arg-type]
    flags = [inspect.signature(each).parameters["return_lse"] for each in overloads]
    required = inspect.Parameter.empty
    wanted_flags = [(typing.Literal[False], False), (typing.Literal[True], required), (bool, required)]
    assert [(flag.annotation, flag.default) for flag in flags] == wanted_flags
    for each in overloads:
        _, *given = inspect.signature(each).parameters.values()
        assert [(p.name, p.kind) for p in given] == [(p.name, p.kind) for p in own.parameters.values()]
        for parameter in given:
            if parameter.name != "return_lse":
                assert parameter.default == own.parameters[parameter.name].default
                generic = parameter.annotation is signatures.Items
                wanted = signatures.Padded if generic else parameter.annotation
                assert own.parameters[parameter.name].annotation == wanted, parameter.name
