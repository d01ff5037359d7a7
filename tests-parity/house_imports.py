"""The rules for imports between modules; like those of `house.py`, functions from sources to complaints."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

from house import at_module_level

Edges = dict[str, set[str]]


def _targets(node: ast.AST, package: list[str], modules: frozenset[str]) -> Iterator[str]:
    """The modules among ``modules`` that a relative import in a module of ``package`` names."""
    if not isinstance(node, ast.ImportFrom) or not node.level:
        return
    base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
    for alias in node.names:
        inner = ".".join([*base, alias.name])
        yield inner if inner in modules else ".".join(base)


def imports_of(sources: dict[str, str]) -> Edges:
    """Module -> the modules of the same tree that it imports, at its top or inside a function.

    sources: text by path, relative to the tree's root; a package is its ``__init__.py``.
    """
    names = {path: PurePosixPath(path).with_suffix("").parts for path in sources}
    modules = {path: ".".join(p[:-1] if p[-1] == "__init__" else p) for path, p in names.items()}
    known, edges = frozenset(modules.values()), {}
    for path, source in sources.items():
        tree = ast.parse(source)
        nodes = at_module_level(tree.body, functions=True)
        found = {target for node in nodes for target in _targets(node, list(names[path][:-1]), known)}
        edges[modules[path]] = (found & known) - {modules[path]}
    return edges


def import_circles(edges: Edges) -> list[str]:
    """Modules that import each other, directly or by way of others: a complaint for each."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        pending = [start]
        while pending:
            for target in edges.get(pending.pop(), set()) - seen:
                seen.add(target)
                pending.append(target)
        return seen

    return [f"{module}: imports itself by way of others" for module in sorted(edges) if module in reached(module)]


def first_part(module: str) -> str:
    return module.split(".")[0]


def rooms_out_of_order(edges: Edges, order: dict[str, int], room_of: Callable[[str], str] = first_part) -> list[str]:
    """Imports of a room that comes later, or of another one at the same position. order: room -> its position."""

    def wrong(module: str, target: str) -> bool:
        room, other = room_of(module), room_of(target)
        return room != other and room in order and (other not in order or order[other] >= order[room])

    return [f"{m}: imports {t}" for m in sorted(edges) for t in sorted(edges[m]) if wrong(m, t)]


def _bound_by(node: ast.AST) -> Iterator[tuple[str, str]]:
    """(name, what it means) for what a statement binds; what is imported is written as in the import statement."""
    match node:
        case ast.ImportFrom():
            start = "." * node.level + (f"{node.module}." if node.module else "")
            yield from ((alias.asname or alias.name, start + alias.name) for alias in node.names)
        case ast.Import():
            yield from ((alias.asname or alias.name.split(".")[0], alias.name) for alias in node.names)
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield node.name, "a definition"
        case ast.Name(ctx=ast.Store()):
            yield node.id, "a value"


def hidden_modules(sources: dict[str, str]) -> list[str]:
    """Names of packages that mean something other than the package's module of that name.

    ``from package import module`` finds the other thing, until an import of the module itself replaces that for the
    package's own functions, too. sources: as for :func:`imports_of`.
    """
    paths = {path: PurePosixPath(path) for path in sources}
    modules = {(p.parent.parent, p.parent.name) if p.stem == "__init__" else (p.parent, p.stem) for p in paths.values()}
    found = []
    for path, place in paths.items():
        if place.name != "__init__.py":
            continue
        body = ast.parse(sources[path]).body
        # A definition is no node that `at_module_level` yields: its body does not run.
        bound = [pair for node in [*body, *at_module_level(body)] for pair in _bound_by(node)]
        wrong = {(name, what) for name, what in bound if (place.parent, name) in modules and what != f".{name}"}
        found += [f"{path}: {name} is {what}, not the module" for name, what in sorted(wrong)]
    return found


def imports_by_name(source: str) -> list[str]:
    """Calls that import a module by a name that is a value: the other rules cannot see what they import."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    names = [(ast.unparse(call.func).split(".")[-1], call.lineno) for call in calls]
    return [f"line {line}: {name}()" for name, line in names if name in ("import_module", "__import__")]
