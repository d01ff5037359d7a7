"""How many lines natten-mps and natten-mlx have in common: `python scripts/twin_lines.py`.

Each package's sources are read as statements, one line each, so that line breaks and comments' widths do not matter.
Names that differ only because the frameworks do (torch and mlx.core, Tensor and mx.array, cat and concatenate, a
stream argument) become one. Then lines are matched, each at most once:

- file by file, for files of the same path in both packages;
- package by package, each line against the whole of the other package, so that a body which moved to a file of
  another name is found as well. Short lines match there by chance (`return out`), so this figure is an upper bound.

Not counted: imports, and lines that hold nothing but brackets. The first figure of each pair also leaves out what
stays in each package because users read it: the signatures of public functions and classes, their docstrings, and the
overloads that type checkers read. The second figure counts these too.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import tokenize
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {name: Path("packages") / name / "src" / name.replace("-", "_") for name in ("natten-mps", "natten-mlx")}
# Private by name, but what they define without an underscore is public at the top of the package.
PUBLIC_MODULES = ("_config", "_export", "_signatures")
PUBLIC_METHODS = ("__init__", "__call__", "forward")

# One word for what both frameworks have under two; applied in this order.
WORDS = [
    (r"natten[-_](mps|mlx)", "natten"),
    (r"torch\.Tensor|\bTensor\b|mx\.array\b", "tensor"),
    (r"\barrays?\b|\btensors?\b", "tensor"),
    (r"TorchTables\([\w.]*\)|MlxTables\(\)", "tables"),
    (r"\b(torch\.dtype|mx\.Dtype)\b", "dtype"),
    (r"\b(torch|mx|mlx\.core)\b", "framework"),
    (r"\bMLX\b", "torch"),
    (r"\bswapaxes\b", "transpose"),
    (r"\bmoveaxis\b", "movedim"),
    (r"\bconcatenate\b", "cat"),
    (r"\bkeepdims\b", "keepdim"),
    (r"\bastype\b", "to"),
    (r"\bndim\b", "dim()"),
    (r"\bstop_gradient\b", "detach"),
    (r"\b__call__\b", "forward"),
]
Lines = Counter[str]


def is_public(module: Path, name: str) -> bool:
    """Whether a function or class of a module (its path in the package) is a user's to call."""
    inner = any(part.startswith("_") and part not in ("__init__", *PUBLIC_MODULES) for part in module.parts)
    return not inner and (not name.startswith("_") or name in PUBLIC_METHODS)


def _is_stub(node: ast.stmt) -> bool:
    """Whether a function computes nothing: an overload, or a protocol's method."""
    return isinstance(node, ast.FunctionDef) and ast.unparse(node.body[-1]) == "..."


def _takes_stream(name: str | None) -> bool:
    return name in ("stream", "where")


class _Alike(ast.NodeTransformer):
    """Takes out what only one framework needs: imports, streams, and if wanted public signatures and docstrings."""

    def __init__(self, module: Path, faces: bool) -> None:
        self.module, self.faces = module, faces

    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None

    def visit_If(self, node: ast.If) -> ast.AST | None:
        self.generic_visit(node)
        return node if node.body else None

    def visit_Module(self, node: ast.Module) -> ast.AST:
        if not self.faces and ast.get_docstring(node) is not None and is_public(self.module, "module"):
            node.body = node.body[1:]
        self.generic_visit(node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        node.keywords = [each for each in node.keywords if not _takes_stream(each.arg)]
        node.args = [each for each in node.args if not _takes_stream(getattr(each, "id", None))]
        return node

    def visit_arguments(self, node: ast.arguments) -> ast.AST:
        self.generic_visit(node)
        kept = [pair for pair in zip(node.kwonlyargs, node.kw_defaults, strict=True) if not _takes_stream(pair[0].arg)]
        node.kwonlyargs, node.kw_defaults = [each for each, _ in kept], [each for _, each in kept]
        return node

    def _definition(self, node: ast.FunctionDef | ast.ClassDef) -> ast.AST | list[ast.stmt]:
        shown = not self.faces and (is_public(self.module, node.name) or _is_stub(node))
        self.generic_visit(node)
        if not shown:
            return node
        if _is_stub(node):
            return []
        return node.body[1:] if ast.get_docstring(node) is not None else node.body

    visit_FunctionDef = visit_ClassDef = _definition


def _comments(source: str) -> list[str]:
    """All but directives to tools, and headings."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [t.string for t in tokens if t.type == tokenize.COMMENT and not re.match("# (fmt|noqa|type|---)", t.string)]


def normalised(source: str, module: Path, faces: bool = False) -> Lines:
    """The lines of a source text, names made alike. faces: also public signatures and docstrings."""
    tree = ast.fix_missing_locations(_Alike(module, faces).visit(ast.parse(source)))
    lines = [*ast.unparse(tree).splitlines(), *_comments(source)]
    for pattern, word in WORDS:
        lines = [re.sub(pattern, word, line) for line in lines]
    return Counter(kept for line in lines if re.search(r"\w", kept := " ".join(line.split())))


class Share(NamedTuple):
    """same: lines of both sides that have a twin on the other; lines: all of both sides."""

    same: int
    lines: int

    @property
    def percent(self) -> float:
        return 100 * self.same / self.lines if self.lines else 0.0

    def __str__(self) -> str:
        return f"{self.percent:5.1f} %  {self.same:5} of {self.lines:5}"


def share(a: Lines, b: Lines) -> Share:
    """The lines that two sources have in common, each matched once."""
    return Share(2 * (a & b).total(), a.total() + b.total())


def sources(root: Path, package: str) -> dict[Path, str]:
    """A package's own Python files, by path inside the package; what it shares by the link `_metal` is not its own."""
    folder = root / PACKAGES[package]
    found = (path.relative_to(folder) for path in folder.rglob("*.py"))
    return {path: (folder / path).read_text() for path in sorted(found) if path.parts[0] != "_metal"}


def measure(*packages: dict[Path, str], faces: bool = False) -> tuple[dict[Path, Share], Share, Share]:
    """The share of each pair of files of one path, of all pairs together, and of two packages as a whole."""
    both = [
        {path: normalised(text, path.with_suffix(""), faces) for path, text in package.items()} for package in packages
    ]
    pairs = {path: share(both[0][path], both[1][path]) for path in both[0] if path in both[1]}
    in_pairs = Share(sum(each.same for each in pairs.values()), sum(each.lines for each in pairs.values()))
    whole = share(*(sum(files.values(), Counter[str]()) for files in both))
    return pairs, in_pairs, whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to measure (default: this one)")
    parser.add_argument("--files", type=int, default=60, help="how many pairs of files to list, most twins first")
    arguments = parser.parse_args()
    both = [sources(arguments.root, package) for package in PACKAGES]
    found = [measure(*both, faces=faces) for faces in (False, True)]
    print(f"{'':32}{'bodies':27}with public signatures and docstrings")
    pairs = sorted(found[0][0], key=lambda path: -found[0][0][path].same)
    for path in pairs[: arguments.files]:
        print(f"{path!s:32}{found[0][0][path]!s:27}{found[1][0][path]}")
    print(f"{'files of the same name':32}{found[0][1]!s:27}{found[1][1]}")
    print(f"{'each package as a whole':32}{found[0][2]!s:27}{found[1][2]}")


if __name__ == "__main__":
    main()
