"""How the project is built: each rule holds for the sources, and each rule finds a planted violation."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import house
import pytest
import twin_lines
from house_files import ROOT, assert_none, complaints, git, project_files, shipped

WINDOW = "shared-metal/natten_metal/problem/window.py"
WINDOW_HEADER = "shared-metal/kernels/window.h"
WINDOW_SCRIPT = "shared-metal/natten_metal/viz/window.js"
C_SUFFIXES = (".h", ".cpp", ".metal")
PAGE_SUFFIXES = (".js", ".html", ".css")
SYMLINKS = {
    "packages/natten-mps/src/natten_mps/_metal": "../../../../shared-metal/natten_metal",
    "packages/natten-mlx/src/natten_mlx/_metal": "../../../../shared-metal/natten_metal",
    "packages/natten-mps/csrc/cpu": "../../../shared-metal/cpu",
    "packages/natten-mps/csrc/kernels": "../../../shared-metal/kernels",
    "packages/natten-mlx/csrc/cpu": "../../../shared-metal/cpu",
    "packages/natten-mlx/csrc/kernels": "../../../shared-metal/kernels",
    "shared-metal/natten_metal/metal/kernels": "../../kernels",
}
NAMES = house.window_functions((ROOT / WINDOW).read_text())
BACKENDS = "shared-metal/natten_metal/plan/backend.py"
OPS = "shared-metal/natten_metal/problem/ops.py"
CHECKS, TEMPLATES = "shared-metal/natten_metal/problem/checks/", "shared-metal/natten_metal/metal/templates.py"
# Modules that raise errors other than those of an op, besides the tools, upstream's older interfaces and weights.
OTHER_ERRORS = {
    "shared-metal/natten_metal/api/recall.py",  # caught where the function is called
    "shared-metal/natten_metal/cpu/library.py",  # an environment variable, or a problem that passed the checks
    "packages/natten-mlx/src/natten_mlx/_launch/extension.py",  # an environment variable
    "shared-metal/natten_metal/plan/matrix_units.py",  # an environment variable
}


# --- the rules hold -----------------------------------------------------------------------------------


def test_shared_metal_is_free_of_frameworks() -> None:
    paths = [p for p in shipped(".py") if p.startswith("shared-metal/")]
    assert_none(complaints(paths, lambda source, _: house.framework_imports(source)))
    assert_none(complaints(paths, lambda source, _: house.imports_beyond_stdlib(source)))


def test_files_are_short() -> None:
    paths = [p for p in project_files() if p.endswith((".py", ".sh", *C_SUFFIXES, *PAGE_SUFFIXES))]
    assert_none(complaints(paths, lambda source, _: house.long_file(source)))


def test_functions_are_short() -> None:
    assert_none(complaints(shipped(".py"), lambda source, _: house.long_functions(source)))
    headers = [p for p in shipped(".h") if p.startswith("shared-metal/kernels/")]
    assert_none(complaints(headers, lambda source, _: house.long_functions_in_metal(source)))
    # Each function is found: as many as there are occurrences of the macro, outside its own definition.
    for header in headers:
        code = re.sub(r"//.*|#define.*", "", (ROOT / header).read_text())
        assert len(list(house.metal_functions(code))) == len(re.findall(r"\b(?:METAL|NA)_FUNC\b", code)), header


def test_rank_is_a_parameter() -> None:
    assert_none(complaints(shipped(".py"), house.rank_copies))
    if shipped(*C_SUFFIXES):
        assert_none(complaints(shipped(*C_SUFFIXES), lambda source, _: house.rank_copies_in_c(source)))


def test_window_arithmetic_is_written_once_per_language() -> None:
    python = [p for p in shipped(".py") if p != WINDOW]
    assert_none(complaints(python, lambda source, _: house.window_arithmetic(source, NAMES)))
    headers = [p for p in shipped(*C_SUFFIXES) if p != WINDOW_HEADER]
    if headers:
        assert_none(complaints(headers, lambda source, _: house.window_arithmetic_in_c(source, NAMES)))
    scripts = [p for p in shipped(".js") if p != WINDOW_SCRIPT]
    assert_none(complaints(scripts, lambda source, _: house.window_arithmetic_in_javascript(source, NAMES)))


def test_no_blind_except() -> None:
    assert_none(complaints(shipped(".py"), lambda source, _: house.blind_excepts(source)))


def test_caches_can_be_emptied() -> None:
    """Every cache of a function comes from the room ``caches``: named, bounded, and emptied by ``clear_all``."""
    assert_none(complaints(shipped(".py"), lambda source, _: house.function_caches(source)))


def test_a_template_is_named_once() -> None:
    names = frozenset(re.findall(r'^ +"(na_\w+)",$', (ROOT / TEMPLATES).read_text(), re.MULTILINE))
    headers = "".join((ROOT / p).read_text() for p in shipped(".h"))
    assert names == set(re.findall(r"^METAL_FUNC void (na_\w+)\(", headers, re.MULTILINE)), "the headers have others"
    paths = [p for p in shipped(".py") if p != TEMPLATES]
    assert_none(complaints(paths, lambda source, _: house.quoted_names(source, names)))


def test_a_backend_is_named_once() -> None:
    """Where code means a backend, it uses the record's name. Docstrings and messages may quote names within a text."""
    text = (ROOT / BACKENDS).read_text()
    names = frozenset(re.findall(r'^\w+ = (?:Backend\()?"(\w+)"', text, re.MULTILINE))
    assert {"auto", "pure"} < names and len(house.quoted_names(text, names)) == len(names)
    paths = [p for p in shipped(".py") if p != BACKENDS]
    assert_none(complaints(paths, lambda source, _: house.quoted_names(source, names)))


def test_an_op_is_named_once() -> None:
    """Names that public functions have too may be quoted, but not compared with."""
    names, faces = house.ops((ROOT / OPS).read_text())
    assert names - faces == {"na", "qk", "av"} and names & faces == {"attention"}
    paths = [p for p in shipped(".py") if p != OPS]
    assert_none(complaints(paths, lambda source, _: house.quoted_names(source, names - faces)))
    assert_none(complaints(paths, lambda source, _: house.compared_names(source, names & faces)))


def test_errors_of_ops_are_worded_in_one_place() -> None:
    elsewhere = re.compile(r"/compat/|/weights[/.]|/_?tools/")
    assert set(shipped(".py")) >= OTHER_ERRORS
    paths = {p for p in shipped(".py") if not p.startswith(CHECKS) and not elsewhere.search(p)}
    assert_none(complaints(sorted(paths - OTHER_ERRORS), lambda source, _: house.raised_errors(source)))


def test_no_registry_host_no_machine_path_no_lock_file() -> None:
    def rule(path: str) -> list[str]:
        content = (ROOT / path).read_bytes()
        if b"\0" in content:
            return []  # binary
        text = content.decode()
        rules = house.registry_hosts, house.machine_paths, house.retired_words
        return [f"{path}: {said}" for rule in rules for said in rule(text)]

    assert_none([said for path in project_files() for said in rule(path)])
    assert_none(house.lock_files(list(project_files())))


def test_vendored_folders_are_symlinks() -> None:
    assert_none(house.not_symlinks(git("ls-files", "--stage"), SYMLINKS))
    assert {path: os.readlink(ROOT / path) for path in SYMLINKS} == SYMLINKS


def test_folders_with_many_files_have_a_readme() -> None:
    folders: dict[str, list[str]] = {}
    for path in project_files():
        folder, _, name = path.rpartition("/")
        if folder and not folder.startswith("."):
            folders.setdefault(folder, []).append(name)
    assert len(folders) > 20
    readmes = {
        f: (ROOT / f / "README.md").read_text() if "README.md" in names else None for f, names in folders.items()
    }
    assert_none([said for f, names in folders.items() for said in house.undescribed_files(f, names, readmes[f])])


def test_every_command_has_a_row_in_its_room() -> None:
    (listed,) = re.findall(r"the command line: (.+) \|$", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    readme = (ROOT / "shared-metal/natten_metal/tools/README.md").read_text()
    commands = [name.replace("training demo", "demo train") for name in listed.split(", ")]
    assert len(commands) >= 8 and [name for name in commands if f"`{name}`" not in readme] == []


def test_packages_share_what_is_the_same() -> None:
    mps, mlx = (twin_lines.sources(ROOT, package) for package in twin_lines.PACKAGES)
    assert len(mps.keys() & mlx.keys()) > 30
    assert_none(house.twin_lines(mps, mlx))


# --- and each of them can fail ------------------------------------------------------------------------

Rule = Callable[[str], list[str]]

HOST = "https://" + "pypi" + ".org/simple"
PATH = "open('" + "/ro" + "ot/data.npy')"
LINE = "    x = 1\n"
METAL = "  static METAL_FUNC int f(int a,\n int b) {\n"


def ranks_in(path: str) -> Rule:
    return lambda source: house.rank_copies(source, path)


def windows_python(source: str) -> list[str]:
    return house.window_arithmetic(source, NAMES)


def windows_c(source: str) -> list[str]:
    return house.window_arithmetic_in_c(source, NAMES)


def windows_javascript(source: str) -> list[str]:
    return house.window_arithmetic_in_javascript(source, NAMES)


def readme_of_six(readme: str) -> list[str]:
    return house.undescribed_files("f", ["a.py", "b.py", "c.py", "d.h", "e.npz", "__init__.py"], readme or None)


def link_to_b(index: str) -> list[str]:
    return house.not_symlinks(index, {"a/_metal": "../b"})


def templates(source: str) -> list[str]:
    return house.quoted_names(source, frozenset({"na_fwd"}))


def compared(source: str) -> list[str]:
    return house.compared_names(source, frozenset({"attention"}))


# (rule, a violation that it must report, a clean twin that it must let through)
PLANTED: list[tuple[Rule, str, str]] = [
    (house.framework_imports, "def f():\n    import torch.nn", "import math\nfrom . import torch"),
    (house.framework_imports, "from mlx.core import array", "from .mlx import array"),
    (house.framework_imports, "importlib.import_module('torch')", "importlib.import_module('re')"),
    (house.imports_beyond_stdlib, "try:\n    import numpy\nfinally: ...", "def f():\n    import numpy"),
    (house.imports_beyond_stdlib, "from natten_metal import x", "from .window import x\nimport ast"),
    (house.imports_beyond_stdlib, "class A:\n    import numpy", "class A:\n    import re"),
    (house.imports_beyond_stdlib, "if X:\n    import numpy", "if TYPE_CHECKING:\n    import numpy"),
    (house.long_file, LINE * 401, LINE * 400),
    (house.long_functions, "def f():\n" + LINE * 60, "def f():\n" + LINE * 59),
    (house.long_functions, "class A:\n  async def f(self):\n" + LINE * 60, "if x:\n" + LINE * 100),
    (house.long_functions_in_metal, METAL + "  x = {1};\n" * 58 + "}\n", METAL + "  // {\n" * 57 + "}\n" + LINE),
    (house.long_functions_in_metal, "struct A {\n" + METAL + LINE * 58 + "}\n};", "struct A {\n" + LINE * 99 + "};"),
    (ranks_in("_pure.py"), "def _forward_2d(q): ...", "def forward(rank): ..."),
    (ranks_in("plan.py"), "tile2d = 1", "float32dtype = 'tile2d'"),
    (ranks_in("pkg/_ops.py"), "class Tile3D: ...", "class Tile: ..."),
    (ranks_in("pkg/functional.py"), "def na2d_fast(): ...", "def na2d_qk(): ..."),
    (ranks_in("pkg/modules.py"), "class Bias2D: ...", "class NeighborhoodAttention2D: ..."),
    (ranks_in("pkg/compatible.py"), "natten2dqk = 1", "natten_qk = 1"),
    (house.rank_copies_in_c, "void na2d_fwd(int x) {}", "// na2d\nvoid na_fwd(float2 x) { y = 0x2d; }"),
    (windows_python, "def _window(p, n): ...", "def _window(text): ..."),
    (windows_python, "def inverse(j, n): ...", "x = inverse(j, n)"),
    (windows_python, "def group_length(n, g): ...", "def windows(n, g): ..."),
    (windows_python, "i = (p // st) * st + st // 2", "i = p // s * t + s // 2"),
    (windows_python, "i = p // a.s * a.s + a.s - 1", "i = n // b * b"),
    (windows_c, "inline int leader(int p) { return p; }", "// int leader(int p) {\nint x = leader(p);"),
    (windows_c, "i = (p / s) * s + s / 2;", "i = p / s * t + s;"),
    (windows_javascript, "function window(p, n) { return p; }", "// function window(p, n) {\nx = window(p, n);"),
    (windows_javascript, "const inverse = (j, n) => j;", "const inversed = inverse(j, n);"),
    (windows_javascript, "x = Math.floor(p / s) * s + s - 1;", "x = div(p, s) * t + s;"),
    (windows_javascript, "x = div(p, a.s) * a.s + div(a.s, 2);", "x = p - (p % s);"),
    (house.blind_excepts, "try: f()\nexcept: pass", "try: f()\nexcept OSError: pass"),
    (house.blind_excepts, "try: f()\nexcept (OSError, BaseException): pass", "raise Exception"),
    (house.blind_excepts, "try: f()\nexcept builtins.Exception: pass", "x = Exception"),
    (house.blind_excepts, "with contextlib.suppress(Exception): f()", "with suppress(OSError): f()"),
    (house.function_caches, "from functools import lru_cache as kept", "from functools import cached_property"),
    (house.function_caches, "@functools.cache\ndef f(): ...", "@caches.cache\ndef f(): ..."),
    (templates, "x = {'na_fwd': 1}", "x = 'na_fwd_r2'"),
    (templates, "if name in ('na_fwd',): ...", "na_fwd = f'na_{name}'"),
    (compared, "if op == 'attention': ...", "op = 'attention'"),
    (compared, "x = op not in ('na', 'attention')", "x = {'attention': 1}[op]"),
    (house.raised_errors, "def f():\n  raise ValueError('x')", "raise NotImplementedError"),
    (house.raised_errors, "raise TypeError(f'{x}') from None", "raise checks.no_backend('x')"),
    (house.registry_hosts, HOST, "the package registry"),
    (house.machine_paths, PATH, "packages/work/x, ../tmp/y, and/or/else"),
    (house.retired_words, "first_t" + "ier = 1", "a frontier, entire"),
    (house.retired_words, "no o" + "bstacle", "told, endear"),
    (lambda path: house.lock_files([path]), "packages/natten-mps/uv.lock", "docs/uv.lock.md"),
    (link_to_b, "100644 01 0\ta/_metal\n120000 01 0\tb", "120000 01 0\ta/_metal"),
    (link_to_b, "", "120000 01 0\ta/_metal"),
    (readme_of_six, "", "`a.py`, `b.py`, `c.py`, `d.h`"),
    (readme_of_six, "`a.py`, `b.py`, `c.py`", "| `d.h` | `a.py` `b.py` `c.py` |"),
]


@pytest.mark.parametrize(("rule", "violation", "clean"), PLANTED)
def test_a_rule_finds_a_planted_violation(rule: Rule, violation: str, clean: str) -> None:
    assert rule(violation)
    assert_none(rule(clean))


BODY = "def _scaled(x):\n    y = x * 2\n    z = y + 1\n    return z\n"


@pytest.mark.parametrize(
    ("other", "complaints"),
    [
        ({"a.py": BODY}, 2),
        ({"b.py": BODY.replace("x * 2", "(x\n * 2)")}, 1),  # in a file of another name, with other line breaks
        ({"a.py": BODY.replace("return z", "return [z, y]"), "b.py": "B = 1\n" * 30}, 1),
        ({"a.py": "def _shifted(t):\n    return t.roll(1)\n"}, 0),
        # Public signatures and their docstrings may be the same.
        ({"a.py": 'def scaled(x: Tensor) -> Tensor:\n    """Twice x."""\n    return twice(x)\n'}, 0),
    ],
)
def test_twin_lines_are_found(other: dict[str, str], complaints: int) -> None:
    own = {"a.py": 'def scaled(x: mx.array) -> mx.array:\n    """Twice x."""\n    return 2 * x\n' + BODY}
    found = house.twin_lines(*({Path(name): text for name, text in each.items()} for each in (own, other)))
    assert len(found) == complaints, found


def test_compat_may_name_ranks() -> None:
    assert_none(house.rank_copies("natten2dqk = 1", "pkg/compat/v014.py"))
