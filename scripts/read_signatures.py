"""Public names and parameters of NATTEN's releases, read from their source distributions without running them.

    scripts/read_signatures.py FOLDER... >tests-parity/compat/upstream_signatures.tsv

Each FOLDER is an unpacked source distribution, ``natten-0.17.5``. One line for each way that a name is called:
module, name, kind ('function', 'class', 'value'), parameters ('=' follows those with a default), and the releases in
which it is called so. What a package imports from its own modules counts as its own.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path

ROOT = "natten"
# Command-line tools, and modules that choose among CUDA kernels; no client calls them.
LEFT_OUT = ("profiler", "profiling_utils", "autotuner", "backends.configs")
Found = dict[str, tuple[str, str]]


def parameters(arguments: ast.arguments) -> str:
    """``query key kernel_size dilation= *args bias= **kwargs``."""
    plain = [*arguments.posonlyargs, *arguments.args]
    first = len(plain) - len(arguments.defaults)
    words = [each.arg + "=" * (at >= first) for at, each in enumerate(plain)]
    if arguments.vararg:
        words.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        words.append("*")
    words += [
        each.arg + "=" * (default is not None)
        for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    return " ".join([*words, *([f"**{arguments.kwarg.arg}"] if arguments.kwarg else [])])


def constructor(node: ast.ClassDef) -> str:
    """The parameters of the class's constructor, after self; '-' where it is inherited."""
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and each.name == "__init__":
            return parameters(each.args).partition(" ")[2]
    return "-"


def statements(body: list[ast.stmt]) -> list[ast.stmt]:
    """A module's statements, those under ``if`` and ``try`` included."""
    found = []
    for node in body:
        found.append(node)
        for part in ("body", "orelse", "finalbody") if isinstance(node, ast.If | ast.Try) else ():
            found += statements(getattr(node, part, []))
    return found


def defined(node: ast.stmt) -> Found:
    """The names that a statement defines, each with kind and parameters."""
    if isinstance(node, ast.FunctionDef):
        return {node.name: ("function", parameters(node.args))}
    if isinstance(node, ast.ClassDef):
        return {node.name: ("class", constructor(node))}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id: ("value", "-") for target in targets if isinstance(target, ast.Name)}


def home(node: ast.ImportFrom, module: str, is_package: bool) -> str | None:
    """The module of the package that a ``from ... import`` names; None for another package's."""
    if not node.level:
        named = node.module or ""
        return named.removeprefix(ROOT).removeprefix(".") if named.split(".")[0] == ROOT else None
    parts = module.split(".") if module else []
    parts = parts[: len(parts) - (node.level - is_package)] if node.level > is_package else parts
    return ".".join([*parts, *([node.module] if node.module else [])])


class Package:
    """The modules of one release."""

    def __init__(self, folder: Path) -> None:
        root = next(path for path in (folder / "src" / ROOT, folder / ROOT) if path.is_dir())
        self.release = folder.name.partition("-")[2]
        self.trees, self.packages = {}, set()
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__init__")
            if left_out(name):
                continue
            self.trees[name] = ast.parse(path.read_text())
            if parts[-1] == "__init__":
                self.packages.add(name)
        self.names: dict[str, Found] = {}

    def of(self, module: str) -> Found:
        """Every name of a module, imported ones too."""
        if module not in self.names:
            self.names[module] = found = {}
            for node in statements(self.trees[module].body):
                found |= defined(node)
                if isinstance(node, ast.ImportFrom):
                    found |= self._imported(node, module)
        return self.names[module]

    def offered(self, module: str) -> Found:
        """A module's own names; for a package also those that it imports, since it imports them to re-export them."""
        found = self.of(module)
        if module in self.packages:
            return found
        own = {name for node in statements(self.trees[module].body) for name in defined(node)}
        return {name: found[name] for name in found if name in own}

    def _imported(self, node: ast.ImportFrom, module: str) -> Found:
        source = home(node, module, module in self.packages)
        if source not in self.trees:
            return {}
        there = self.of(source)
        return {each.asname or each.name: there[each.name] for each in node.names if each.name in there}


def left_out(module: str) -> bool:
    """Whether a module is one of the tools."""
    return any(module == out or module.startswith(f"{out}.") for out in LEFT_OUT)


def public(module: str) -> bool:
    """Whether no part of a module's name is private."""
    return not any(part.startswith("_") for part in module.split("."))


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    releases = defaultdict(list)
    packages = [Package(Path(folder)) for folder in sys.argv[1:]]
    for package in sorted(packages, key=lambda each: [int(part) for part in each.release.split(".")]):
        for module in filter(public, package.trees):
            for name, (kind, call) in package.offered(module).items():
                if not name.startswith("_"):
                    releases[module or "-", name, kind, call or "-"].append(package.release)
    print("module", "name", "kind", "parameters", "releases", sep="\t")
    for row, having in sorted(releases.items()):
        print(*row, " ".join(having), sep="\t")


if __name__ == "__main__":
    main()
