"""What the documents point to: links, anchors and commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import code_blocks  # noqa: E402

# Folders that commands leave in a checkout; the gate's is not a clone, so that git cannot say.
MADE = re.compile(r"\.(?!github)|(site|build|dist|wheels|demo-output)$")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<(?:img|a|source)[^>]*(?:src|href|srcset)=\"([^\"]+)\"")


def documents() -> list[str]:
    """Every document of the checkout."""
    found: list[str] = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if not MADE.match(name)]
        found += [Path(folder, name).relative_to(ROOT).as_posix() for name in names if name.endswith(".md")]
    return sorted(found)


DOCUMENTS = documents()
SHELL = [
    (block.document, block.line + place, line)
    for block in code_blocks.every_block()
    if block.language == "sh"
    for place, line in enumerate(block.code.splitlines())
    if line.strip() and not line.lstrip().startswith("#")
]


@cache
def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub and mkdocs both make them; of a picture: none."""
    if document.suffix != ".md":
        return set()
    text = code_blocks.FENCE.sub("", document.read_text())
    titles = re.findall(r"^#+ (.+?)(?: \{#([\w-]+)\})?$", text, re.MULTILINE)
    return {own or re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title, own in titles}


@cache
def repository() -> str:
    """The address of the project, as the packages give it."""
    with open(ROOT / "packages" / "natten-mps" / "pyproject.toml", "rb") as file:
        return tomllib.load(file)["project"].get("urls", {}).get("Repository", "none given").rstrip("/")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    document = ROOT / name
    for found in LINK.finditer(code_blocks.FENCE.sub("", document.read_text())):
        target = found[1] or found[2]
        own = re.match(re.escape(repository()) + r"/(?:blob|tree|raw)/main/(.*)", target)
        if own:
            path, _, anchor = own[1].partition("#")
            reached = ROOT / path
        elif re.match(r"https?://|mailto:", target):
            continue
        else:
            path, _, anchor = target.partition("#")
            reached = (document.parent / path).resolve() if path else document
        assert reached.exists(), f"{name}: {target}"
        if anchor:
            assert anchor in anchors(reached), f"{name}: {target}"


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if re.fullmatch(r"packages/[\w-]+/README.md", name)])
def test_links_of_an_index_page_are_absolute(name: str) -> None:
    """A package's README is shown where no file of the repository is."""
    targets = [found[1] or found[2] for found in LINK.finditer((ROOT / name).read_text())]
    assert targets
    assert [target for target in targets if not re.match(r"https://|#", target)] == []


def test_links_are_found() -> None:
    assert len(DOCUMENTS) > 30
    links = {name: len(LINK.findall((ROOT / name).read_text())) for name in DOCUMENTS}
    assert links["README.md"] > 5
    assert {"how-it-is-built", "install"} <= anchors(ROOT / "README.md")


def exists(words: list[str]) -> bool:
    """Whether a command of a document is one: of dev.sh, of a package, a program of ours, or a known tool."""
    program, *rest = words
    if program == "./dev.sh":
        return bool(re.search(rf"^  {re.escape(rest[0])}\b", (ROOT / "dev.sh").read_text(), re.MULTILINE))
    if program in ("natten-mps", "natten-mlx"):
        command = rest[0] if rest else "--help"
        done = subprocess.run(
            [sys.executable, "-m", program.replace("-", "_"), command, "--help"], capture_output=True, check=False
        )
        return done.returncode == 0
    if program in ("python", "torchrun", "mlx.launch"):
        files = [word for word in rest if word.endswith(".py")]
        return bool(files) and all((ROOT / file).exists() for file in files)
    if program == "pip":
        ours = re.compile(r"(\./packages/)?natten-(mps|mlx)(\[(demo|cpu|cpu,demo)\])?(==[\d.]+)?")
        pinned = "\n".join(file.read_text() for file in (ROOT / "requirements").glob("*.txt"))
        tools = set(re.findall(r"^([\w.-]+)==", pinned, re.MULTILINE))
        words = [word for word in rest[1:] if not word.startswith("--")]
        return rest[0] == "install" and all(ours.fullmatch(word) or word.split("==")[0] in tools for word in words)
    return program in ("cd", "git")


@pytest.mark.parametrize(("document", "line", "command"), SHELL, ids=lambda value: str(value))
def test_commands_exist(document: str, line: int, command: str) -> None:
    words = shlex.split(command, comments=True)
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    assert exists(words), f"{document}:{line}: {command}"


def test_commands_are_found() -> None:
    assert len(SHELL) > 5
    assert not exists(["./dev.sh", "fly"])
    assert not exists(["natten-mps", "fly"])
    assert not exists(["python", "scripts/fly.py"])
    assert not exists(["pip", "install", "natten"])
    assert not exists(["pip", "install", "-e", "natten-mps"])
