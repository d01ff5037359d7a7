"""The rules of the house: functions from source text to complaints, of which there are none if the rule holds.

`test_house.py` and `test_house_imports.py` apply them to the project, and each of them to a planted violation as well.
"""

from __future__ import annotations

import ast
import fnmatch
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from twin_lines import measure

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_FILES_WITHOUT_README = 5
# Per cent of the lines that natten-mps and natten-mlx have, as scripts/twin_lines.py counts them.
MAX_TWIN_LINES = 25
FRAMEWORKS = frozenset({"torch", "mlx"})

# Files that may define names with a rank in them, and the names they may define: the typed faces.
FACE_FILES = frozenset({"distributed", "functional", "split", "faces", "modules", "varlen"})
FACE_NAME = re.compile(r"na[123]d(_qk|_av|_varlen)?|NeighborhoodAttention[123]D")
RANKED_NAME = re.compile(r"(?<!\d)[123][dD]")
METAL_FUNCTION = re.compile(r"^[ \t]*(?:static )?(?:METAL|NA)_FUNC\b[^;{]*?(\w+)\([^;{]*\{", re.MULTILINE)
RANKED_IDENTIFIER = re.compile(r"\b[A-Za-z_]\w*(?<!\d)[123][dD]\w*")
# Names of Metal's own.
OF_METAL = frozenset({"matmul2d", "matmul2d_descriptor"})

# Words for window arithmetic, in addition to the names that window.py defines.
WINDOW_WORDS = frozenset({"leader", "inverse", "window"})
C_LEADER = re.compile(r"/\s*(\w+)\s*\)?\s*\*\s*\1\s*\+\s*\1\b")
JS_LEADER = re.compile(r"(?:,|/)\s*([\w.]+)\s*\)\s*\*\s*\1\s*\+\s*(?:div\()?\1\b")

REGISTRY_HOST = re.compile(
    r"pypi\.org|pythonhosted\.org|registry\.npmjs|deb\.debian\.org|download\.pytorch\.org|static\.crates\.io"
    r"|quay\.io|ghcr\.io"
)
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|farm|root|tmp|opt|home|Users)/\w")

RETIRED_WORD = re.compile(r"(?<![a-z])(?:[t]iers?|[d]ear|[l]ikeness|[o]bstacles?|_[t]old)(?![a-z])", re.IGNORECASE)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _line(node: ast.AST) -> str:
    return f"line {getattr(node, 'lineno', '?')}"


def _functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def _imported(node: ast.AST) -> list[str]:
    """The absolute modules that a node imports, by statement or by importlib with a literal name."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""] if node.level == 0 else []
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in {"import_module", "__import__"}:
            return [str(node.args[0].value)]
    return []


def framework_imports(source: str) -> list[str]:
    """Imports of torch or mlx, at any level."""
    return [
        f"{_line(node)}: imports {name}"
        for node in ast.walk(ast.parse(source))
        for name in _imported(node)
        if name.split(".")[0] in FRAMEWORKS
    ]


def at_module_level(statements: list[ast.stmt], functions: bool = False) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported, so none under TYPE_CHECKING; function bodies if asked for."""
    for statement in statements:
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
            yield from at_module_level(statement.orelse, functions)
            continue
        pending: list[ast.AST] = [statement]
        while pending:
            node = pending.pop()
            if functions or not isinstance(node, Function | ast.Lambda):
                yield node
                pending.extend(ast.iter_child_nodes(node))


def imports_beyond_stdlib(source: str) -> list[str]:
    """Module-level imports that are neither relative nor of the standard library."""
    return [
        f"{_line(node)}: imports {name} at module level"
        for node in at_module_level(ast.parse(source).body)
        for name in _imported(node)
        if name.split(".")[0] not in sys.stdlib_module_names
    ]


def long_file(source: str) -> list[str]:
    lines = len(source.splitlines())
    return [f"{lines} lines, at most {MAX_FILE_LINES}"] if lines > MAX_FILE_LINES else []


def long_functions(source: str) -> list[str]:
    return [
        f"{_line(node)}: {node.name} has {lines} lines, at most {MAX_FUNCTION_LINES}"
        for node in _functions(ast.parse(source))
        if (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]


def metal_functions(source: str) -> Iterator[tuple[str, int, int]]:
    """Name, first line and number of lines of each function of a kernel header, up to its closing brace."""
    code = _without_c_comments(source)
    for found in METAL_FUNCTION.finditer(code):
        end, depth = found.end(), 1
        while depth:
            depth += {"{": 1, "}": -1}.get(code[end], 0)
            end += 1
        yield found.group(1), _line_of(code, found.start()), code.count("\n", found.start(), end) + 1


def long_functions_in_metal(source: str) -> list[str]:
    return [
        f"line {first}: {name} has {lines} lines, at most {MAX_FUNCTION_LINES}"
        for name, first, lines in metal_functions(source)
        if lines > MAX_FUNCTION_LINES
    ]


def _defined_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


def rank_copies(source: str, path: str) -> list[str]:
    """Python names with a rank in them that are defined elsewhere than in the faces, in compat and in extras."""
    parts = PurePosixPath(path).with_suffix("").parts
    if not {"compat", "extras"}.isdisjoint(parts):
        return []
    is_face = not FACE_FILES.isdisjoint(parts)
    return [
        f"line {line}: defines {name}: the rank is a parameter"
        for line, name in _defined_names(ast.parse(source))
        if RANKED_NAME.search(name) and not (is_face and FACE_NAME.fullmatch(name))
    ]


def _without_c_comments(source: str) -> str:
    """`source` with spaces in place of its comments, so that positions stay the same."""

    def blank(comment: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", comment.group())

    return re.sub(r"/\*.*?\*/|//[^\n]*", blank, source, flags=re.DOTALL)


def _line_of(source: str, position: int) -> int:
    return source.count("\n", 0, position) + 1


def rank_copies_in_c(source: str) -> list[str]:
    """Identifiers with a rank in them, in C++ or Metal."""
    code = _without_c_comments(source)
    return [
        f"line {_line_of(code, found.start())}: {found.group()}: the rank is a template parameter"
        for found in RANKED_IDENTIFIER.finditer(code)
        if found.group() not in OF_METAL
    ]


def window_functions(window_source: str) -> frozenset[str]:
    """The names that belong to window.py: those that it defines, and the words of its arithmetic."""
    defined = {node.name for node in ast.parse(window_source).body if isinstance(node, Function)}
    return frozenset(defined | WINDOW_WORDS)


def _is_leader(node: ast.AST) -> bool:
    """x // s * s + s // 2 or x // s * s + s, whatever the name of s."""
    match node:
        case ast.BinOp(
            left=ast.BinOp(left=ast.BinOp(op=ast.FloorDiv(), right=stride), op=ast.Mult(), right=again),
            op=ast.Add(),
            right=ast.BinOp(left=added, op=ast.FloorDiv()) | added,
        ):
            return ast.dump(stride) == ast.dump(again) == ast.dump(added)
    return False


def window_arithmetic(source: str, names: frozenset[str]) -> list[str]:
    """Functions named like those of window.py, or the leader of a stride group computed again.

    Window arithmetic takes a position and at least one size, so functions of one argument are allowed.
    """
    tree = ast.parse(source)
    named = [
        f"{_line(node)}: defines {node.name}: window arithmetic belongs to window.py"
        for node in _functions(tree)
        if node.name.strip("_") in names and len(node.args.args) > 1
    ]
    restated = [
        f"{_line(node)}: works out the leader again: window arithmetic belongs to window.py"
        for node in ast.walk(tree)
        if _is_leader(node)
    ]
    return named + restated


def window_arithmetic_in_c(source: str, names: frozenset[str]) -> list[str]:
    """The same for C++ and Metal, where it belongs to window.h."""
    code = _without_c_comments(source)
    defines = re.compile(rf"\w[\s&*>]+(?:{'|'.join(sorted(names))})\s*\([^;{{}}]*\)\s*(?:const\s*)?\{{")
    patterns = ((defines, "defines a window function"), (C_LEADER, "works out the leader again"))
    return [
        f"line {_line_of(code, found.start())}: {what}: window arithmetic belongs to window.h"
        for pattern, what in patterns
        for found in pattern.finditer(code)
    ]


def window_arithmetic_in_javascript(source: str, names: frozenset[str]) -> list[str]:
    """The same for JavaScript, where it belongs to window.js."""
    code = _without_c_comments(source)
    alternatives = "|".join(sorted(names))
    defines = re.compile(
        rf"\bfunction\*?\s+(?:{alternatives})\b|\b(?:const|let)\s+(?:{alternatives})\s*=\s*\(?[\w, ]*\)?\s*=>"
    )
    patterns = ((defines, "defines a window function"), (JS_LEADER, "works out the leader again"))
    return [
        f"line {_line_of(code, found.start())}: {what}: window arithmetic belongs to window.js"
        for pattern, what in patterns
        for found in pattern.finditer(code)
    ]


def _is_blind(caught: ast.expr | None) -> bool:
    match caught:
        case None:
            return True
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in {"Exception", "BaseException"}
        case ast.Tuple(elts=elements):
            return any(_is_blind(element) for element in elements)
    return False


def twin_lines(package: dict[Path, str], other: dict[Path, str]) -> list[str]:
    """Whether two packages have too many lines in common, in files of the same path or anywhere. Sources by path."""
    _, pairs, whole = measure(package, other)
    shares = {"in files of the same name": pairs, "in the packages as a whole": whole}
    return [
        f"{share.percent:.1f} % of the lines {where} are the same, at most {MAX_TWIN_LINES} %"
        for where, share in shares.items()
        if share.percent > MAX_TWIN_LINES
    ]


def blind_excepts(source: str) -> list[str]:
    """Bare except, except Exception or BaseException, and suppress() of them."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        caught_blindly = isinstance(node, ast.ExceptHandler) and _is_blind(node.type)
        suppressed_blindly = (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).split(".")[-1] == "suppress"
            and any(_is_blind(argument) for argument in node.args)
        )
        if caught_blindly or suppressed_blindly:
            lines.append(f"{_line(node)}: catches every exception")
    return lines


def _matches(pattern: re.Pattern[str], text: str) -> list[str]:
    return [f"line {_line_of(text, m.start())}: names {m.group()}" for m in pattern.finditer(text)]


FORBIDDEN = REGISTRY_HOST, MACHINE_PATH, RETIRED_WORD
registry_hosts, machine_paths, retired_words = (partial(_matches, pattern) for pattern in FORBIDDEN)


def lock_files(paths: list[str]) -> list[str]:
    locks = {"uv.lock", "package-lock.json", "poetry.lock", "pdm.lock"}
    return [f"{path}: records download addresses" for path in paths if PurePosixPath(path).name in locks]


def not_symlinks(index: str, wanted: dict[str, str]) -> list[str]:
    """`index` is what `git ls-files --stage` prints; `wanted` maps each path to the link's target."""
    modes = {line.split("\t")[1]: line.split()[0] for line in index.splitlines()}
    return [
        f"{path}: {modes.get(path, 'not in git')}, not a symlink to {target}"
        for path, target in wanted.items()
        if modes.get(path) != "120000"
    ]


def function_caches(source: str) -> list[str]:
    """``functools.cache`` and ``lru_cache``, which ``clear_all`` cannot empty."""
    names = {"lru_cache", "cache"}
    return [
        f"{_line(node)}: keeps values beside the caches: use caches.cached"
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.ImportFrom) and node.module == "functools" and names & {a.name for a in node.names})
        or (isinstance(node, ast.Attribute) and node.attr in names and ast.unparse(node.value) == "functools")
    ]


# --- names that are spelled once, and errors ---------------------------------------------------------------


def quoted_names(source: str, names: frozenset[str]) -> list[str]:
    """String constants that are one of ``names``, which code has to read from the record of that name."""
    tree = ast.parse(source)
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    return [
        f"{_line(node)}: spells {node.value!r}, which its record knows"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names
        if id(node) not in parts
    ]


def ops(source: str) -> tuple[frozenset[str], frozenset[str]]:
    """The names of the ops, and of their faces, in records ``Op(name, faces, ...)``."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    made = [call.args for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Op"]
    faces = [face for _, given, *_ in made for face in ast.literal_eval(given)]
    return frozenset(ast.literal_eval(name) for name, *_ in made), frozenset(faces)


def compared_names(source: str, names: frozenset[str]) -> list[str]:
    """Comparisons with one of ``names``. Elsewhere they may be quoted, since public functions have these names too."""
    return [
        f"{_line(node)}: compares with {part.value!r}, which its record knows"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare)
        for side in (node.left, *node.comparators)
        for part in ast.walk(side)
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value in names
    ]


USER_ERRORS = frozenset({"TypeError", "ValueError", "NotImplementedError"})


def raised_errors(source: str) -> list[str]:
    """Errors for users that are worded where they are raised; bare ones, as in abstract methods, are allowed."""
    return [
        f"{_line(node)}: raises a {node.exc.func.id}: errors of ops are worded in problem/checks"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)
        if node.exc.func.id in USER_ERRORS
    ]


def undescribed_files(folder: str, names: list[str], readme: str | None) -> list[str]:
    """Files of a folder with many that its README does not name in backticks, or by a pattern such as `mlx-*.txt`.

    readme: its text; None if it has none. Stored answers (.npz) and package markers need no description.
    """
    described = {"README.md", "__init__.py"}
    files = [name for name in names if name not in described and not name.endswith(".npz")]
    if len(names) <= MAX_FILES_WITHOUT_README:
        return []
    if readme is None:
        return [f"{folder}: {len(names)} files and no README.md"]
    patterns = [pattern for pattern in re.findall(r"`([^`\n]+)`", readme) if pattern.strip("*.")]
    missing = [name for name in files if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    return [f"{folder}/README.md: does not name `{name}`" for name in missing]
