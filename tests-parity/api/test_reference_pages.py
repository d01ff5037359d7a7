"""The reference pages of the documents are complete: public names, environment variables, supported versions."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import griffe
import pytest
from test_docstrings import public

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import docstring_roles  # noqa: E402

DOCS = ROOT / "docs"
PACKAGES = ("natten_mps", "natten_mlx")
ENTRY = re.compile(r"^::: (both|natten_mps|natten_mlx)\.(\S+)$", re.MULTILINE)
# Reads of the environment: getenv("NAME"), environ.get("NAME"), environ["NAME"]; what stands in place of the name.
READ = re.compile(r"(?:\bgetenv|\benviron(?:\.get)?)\s*[(\[]\s*([^,)\]\s]+)")


def entries(package: str) -> list[str]:
    """The names that the API pages document, without the package."""
    pages = "\n".join(page.read_text() for page in sorted((DOCS / "api").glob("*.md")))
    return [name for where, name in ENTRY.findall(pages) if where in ("both", package)]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_its_entry(package: str) -> None:
    documented = entries(package)
    assert len(documented) == len(set(documented))
    names = {name for name, _ in public(package)} | set(import_module(f"{package}.distributed").__all__)
    assert names - {name.rpartition(".")[2] for name in documented} == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_entry_is_a_name(package: str) -> None:
    for name in entries(package):
        home, _, last = f"{package}.{name}".rpartition(".")
        assert hasattr(import_module(home), last), name


@pytest.mark.parametrize("package", PACKAGES)
def test_every_argument_has_its_entry(package: str) -> None:
    """As the site's generator reads the docstrings: nothing is lost on the way."""
    sources = ROOT / "packages" / package.replace("_", "-") / "src"
    if not (sources / package / "functional.py").exists():
        pytest.skip("the packages' sources are not here: this is the gate, and the site is made from them")
    read = griffe.load(package, search_paths=[sources], extensions=griffe.load_extensions(docstring_roles.Roles))
    lost = {}
    for name in entries(package):
        value = read[name]
        sections = value.docstring.parse("google", warnings=False)
        listed = {
            each.strip(" *")
            for section in sections
            if section.kind is griffe.DocstringSectionKind.parameters
            for entry in section.value
            # Of its own, or beside another: `kernel_size: keys per query; dilation: ...`, "and value ``[B, S]``".
            for each in (*entry.name.split(","), *re.findall(r"\w+(?=:| ``)", entry.description))
        }
        if missing := {each.name for each in value.parameters} - listed - {"self"}:
            lost[name] = missing
    assert lost == {}
    assert len(entries(package)) > 30


def test_all_environment_variables_are_listed() -> None:
    """What C++ and Python read, apart from a compat helper that reads what its caller names."""
    folders = [ROOT / "shared-metal" / "cpu", ROOT / "packages" / "natten-mlx" / "csrc"]
    for package in PACKAGES:  # as installed
        here = Path(str(import_module(package).__file__)).parent
        folders += [here, here / "_metal"]
    sources = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".h", ".cpp")]
    texts = [path.read_text() for path in sources]
    read = {found for text in texts for found in READ.findall(text)}
    assert {name for name in read if not name.startswith('"')} == {"self.variable", "env_var"}
    backends = {import_module(f"{package}._backends").BACKENDS.variable for package in PACKAGES}
    names = {name.strip('"') for name in read if name.startswith('"')} | backends
    listed = re.findall(r"^\| `(\w+)` \|", (DOCS / "environment.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(names)
    assert "NATTEN_CPU_ISA" in names


def test_versions_are_those_of_the_packages() -> None:
    page = (DOCS / "versions.md").read_text()
    projects = {}
    for package in ("natten-mps", "natten-mlx"):
        with open(ROOT / "packages" / package / "pyproject.toml", "rb") as file:
            projects[package] = tomllib.load(file)["project"]
    for project in projects.values():
        assert project["requires-python"] == ">=3.11"
    assert "| Python | 3.11 or newer | 3.11 or newer |" in page
    asked = "\n".join(projects["natten-mps"]["dependencies"] + projects["natten-mlx"]["dependencies"])
    lowest = dict(re.findall(r"^(torch|mlx)>=([\d.]+)", asked, re.MULTILINE))
    assert f"| framework | PyTorch {lowest['torch']} or newer | MLX {lowest['mlx']} or newer" in page
