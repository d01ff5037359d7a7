"""The examples of the documents run unmodified."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
EXAMPLES = {
    f"{document.name}: {title}": code
    for document in sorted(DOCS.glob("*.md"))
    for title, code in re.findall(
        r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(import torch\n.*?)^```", document.read_text(), re.M | re.S
    )
}


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example(title: str) -> None:
    done = subprocess.run([sys.executable, "-c", EXAMPLES[title]], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_an_example_prints() -> None:
    """The comment behind a print is what it prints."""
    code = EXAMPLES["pieces.md: Tokens that come one after another"]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == re.findall(r"print\(.*\)  # (.*)", code)[0]


def test_the_examples_are_found() -> None:
    assert sum(title.startswith("pieces.md") for title in EXAMPLES) == 4
