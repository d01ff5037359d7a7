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
    # The comment behind a print says what it prints.
    assert done.stdout.splitlines() == re.findall(r"^ *print\(.*\)  # (.*)", EXAMPLES[title], re.M)


def test_the_examples_are_found() -> None:
    assert sum(title.startswith("pieces.md") for title in EXAMPLES) == 4
    assert any("  # 1000 254" in code for code in EXAMPLES.values())  # one prints
