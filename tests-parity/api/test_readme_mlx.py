"""The examples of natten-mlx's README run unmodified."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "packages" / "natten-mlx" / "README.md"
EXAMPLES = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", README.read_text(), re.M | re.S))


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example(title: str) -> None:
    done = subprocess.run([sys.executable, "-c", EXAMPLES[title]], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    if title == "Training":
        first, last = map(float, done.stdout.split())
        assert last < first / 2
    else:
        assert done.stdout.startswith("(1, 32, 32, 4, 64) (1, 32, 32, 4, 64)\nna2d: batch 1, ")


def test_the_examples_are_found() -> None:
    assert set(EXAMPLES) == {"Quick start", "Training"}
