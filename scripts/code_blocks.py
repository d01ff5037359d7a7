"""The code blocks of the documents, for the tests that run them.

A block's language follows its fence, and its title, which the site shows, says what it needs besides the two packages:
```` ```python title="allin1" ````. A comment after a print says what is printed; one that begins with `e.g.`, what may
be printed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^( *)```(\S*)(?: title=\"([^\"\n]*)\")?([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
PRINT = re.compile(r"^ *print\(.*?(?:\)  # (.*))?$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block. document: the path from the root of the repository; line: of its first line of code."""

    document: str
    line: int
    language: str
    title: str
    code: str

    def printed(self) -> list[str | None]:
        """What each print prints, according to the comment after it; None where that is not certain."""
        said = [found[1] for found in PRINT.finditer(self.code)]
        return [None if text is None or text.startswith("e.g. ") else text for text in said]


def documents() -> list[Path]:
    """What readers are shown: the READMEs of the project and of both packages, the examples' and all of docs/."""
    readmes = [ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md")), ROOT / "examples" / "README.md"]
    return [*readmes, *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(document: Path) -> Iterator[Block]:
    """The fenced blocks of a document; ValueError for a fence that says more than a language and a title."""
    text = document.read_text()
    name = document.relative_to(ROOT).as_posix()
    for found in FENCE.finditer(text):
        indent, language, title, rest, code = found.groups()
        line = text.count("\n", 0, found.start()) + 2
        if rest.strip():
            raise ValueError(f"{name}:{line - 1}: a fence says its language and its title, not {rest.strip()!r}")
        code = "\n".join(each.removeprefix(indent) for each in code.splitlines()) + "\n"
        yield Block(name, line, language, title or "", code)


def every_block() -> list[Block]:
    """The blocks of all documents."""
    return [block for document in documents() for block in blocks(document)]
