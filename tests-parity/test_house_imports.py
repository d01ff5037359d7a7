"""Imports between modules: no circles, rooms and layers in order; and each of these rules can fail."""

from __future__ import annotations

from collections.abc import Callable

import house_imports
import pytest
import twin_lines
from house_files import ROOT, assert_none, project_files, shipped

# Trees of modules, and the rooms of the shared one in their order: each imports from those before it alone.
TREES = ("shared-metal/natten_metal", "packages/natten-mps/src/natten_mps", "packages/natten-mlx/src/natten_mlx")
ROOMS = {"caches": 0, "problem": 1, "metal": 2, "plan": 3, "api": 4}
ROOMS |= dict.fromkeys(("cpu", "compat", "slabs", "weights", "tuning", "bench", "viz"), 5) | {"tools": 6}
# The modules of each package form three layers (see `layer_of`): private ones compute, public ones hold what a user
# calls, and those around them, named here, may import both.
LAYERS = {"private": 0, "public": 1, "around": 2}
AROUND = {"__main__", "_tools", "cli", "compat", "extras", "merge", "nn", "support_matrix", "utils", "version"}
# The files that import modules by names that are values, and why an import statement would not do.
IMPORTS_BY_NAME = {
    "shared-metal/natten_metal/api/names.py": "a package's public names are found when first used",
    "shared-metal/natten_metal/tools/cli.py": "the command line runs one of two packages, and imports one tool of it",
    "shared-metal/natten_metal/tools/demo.py": "asks which optional packages there are",
    "packages/natten-mps/src/natten_mps/_with_torch.py": "registers the ops as soon as torch is imported",
    "packages/natten-mps/src/natten_mps/compat/_install.py": "the user names the generation",
    "packages/natten-mlx/src/natten_mlx/_launch/extension.py": "a wheel without the extension lacks these modules",
}


def modules_of(tree: str) -> dict[str, str]:
    paths = [p for p in project_files() if p.startswith(f"{tree}/") and p.endswith(".py")]
    return {p.removeprefix(f"{tree}/"): (ROOT / p).read_text() for p in paths}


@pytest.mark.parametrize("tree", TREES)
def test_no_module_imports_itself_by_way_of_others(tree: str) -> None:
    """Imports inside functions count: they make a circle work, but it is still one."""
    edges = house_imports.imports_of(modules_of(tree))
    assert sum(map(len, edges.values())) > 50, "hardly an import was seen"
    assert_none(house_imports.import_circles(edges))


@pytest.mark.parametrize("tree", TREES)
def test_packages_hide_none_of_their_modules(tree: str) -> None:
    assert_none(house_imports.hidden_modules(modules_of(tree)))


def test_modules_are_imported_by_statements() -> None:
    found = {p: house_imports.imports_by_name((ROOT / p).read_text()) for p in shipped(".py")}
    assert {path for path, calls in found.items() if calls} == IMPORTS_BY_NAME.keys()


def test_rooms_are_in_order() -> None:
    modules = modules_of(TREES[0])
    assert {path.split("/")[0] for path in modules} - {"__init__.py"} == set(ROOMS)
    assert_none(house_imports.rooms_out_of_order(house_imports.imports_of(modules), ROOMS))


def layer_of(module: str) -> str:
    """The layer to which a package's module belongs."""
    name = module.split(".")[0]
    if name in AROUND:
        return "around"
    return "private" if name.startswith("_") and name not in twin_lines.PUBLIC_MODULES else "public"


@pytest.mark.parametrize("tree", TREES[1:])
def test_layers_are_in_order(tree: str) -> None:
    edges = house_imports.imports_of(modules_of(tree))
    assert {layer_of(module) for module in edges} == set(LAYERS)
    assert_none(house_imports.rooms_out_of_order(edges, LAYERS, layer_of))


def sources_in(text: str) -> dict[str, str]:
    """Sources by path, from lines "path: statement"."""
    return {path: statement for path, _, statement in (line.partition(": ") for line in text.splitlines())}


def circles(text: str) -> list[str]:
    return house_imports.import_circles(house_imports.imports_of(sources_in(text)))


def layers(text: str) -> list[str]:
    return house_imports.rooms_out_of_order(house_imports.imports_of(sources_in(text)), LAYERS, layer_of)


def hidden(text: str) -> list[str]:
    return house_imports.hidden_modules(sources_in(text))


def rooms(statement: str) -> list[str]:
    """Complaints about a module in the second of three rooms."""
    sources = {"one/x.py": "", "two/y.py": statement, "two/z.py": "", "too/x.py": "", "three/x.py": "", "free.py": ""}
    return house_imports.rooms_out_of_order(
        house_imports.imports_of(sources), {"one": 0, "two": 1, "too": 1, "three": 2}
    )


# (rule, a violation that it must report, a clean twin that it must let through)
PLANTED: list[tuple[Callable[[str], list[str]], str, str]] = [
    (
        circles,
        "a/x.py: from .y import f\na/y.py: from ..b import g\nb.py: from .a import x",
        "a/x.py: from .y import f\na/y.py: from ..b import g\nb.py: import a.x",
    ),
    (
        circles,
        "a/x.py: from .y import f\na/y.py: from ..b import g\nb.py: from .a.x import f",
        "a/x.py: from .y import f\na/y.py: from ..b import g\nb.py: from .c import x",
    ),
    (circles, "a/__init__.py: from .x import f\na/x.py: from . import g", "a/__init__.py: from .x import f\na/x.py: 1"),
    (
        circles,
        "a/x.py: from .y import f\na/y.py: from ..b import g\nb.py: def f(): from .a import x",
        "a/x.py: from .y import f\na/y.py: from ..b import g\nb.py: if TYPE_CHECKING: from .a import x",
    ),
    (rooms, "from ..three import x", "from ..one.x import f\nfrom . import z"),
    (rooms, "from ..too.x import f", "from ..one import x"),
    (rooms, "from .. import free", "import free"),
    (layers, "_run.py: def f(): from .modules import x\nmodules.py: 1", "modules.py: from ._run import x\n_run.py: 1"),
    (layers, "split.py: from . import cli\ncli.py: 1", "cli.py: from . import split\nsplit.py: from . import _tensors"),
    (hidden, "a/__init__.py: from .. import x\na/x.py: 1", "a/__init__.py: from . import x\na/x.py: 1"),
    (hidden, "a/__init__.py: from .x import x\na/x.py: 1", "a/__init__.py: from .x import x as y\na/x.py: 1"),
    (hidden, "a/__init__.py: import x\na/x/__init__.py: 1", "a/__init__.py: import x\nx/__init__.py: 1"),
    (hidden, "a/__init__.py: def x(): pass\na/x.py: 1", "a/__init__.py: def f(): x = 1\na/x.py: 1"),
    (hidden, "a/__init__.py: x = 1\na/x.py: 1", "a/b.py: x = 1\na/x.py: 1"),
    (house_imports.imports_by_name, "def f(): importlib.import_module(name)", "from importlib import import_module"),
]


@pytest.mark.parametrize(("rule", "violation", "clean"), PLANTED)
def test_a_rule_finds_a_planted_violation(rule: Callable[[str], list[str]], violation: str, clean: str) -> None:
    assert rule(violation)
    assert_none(rule(clean))
