"""The recipes of docs/recipes.md that need a client, for the suite whose environment has it."""

from __future__ import annotations

import sys
from pathlib import Path

from stand_ins import MUSIC, SAMPLING, stand_in

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))

from code_blocks import ROOT, Block, blocks
from processes import python

# What a client imports and never calls on the way to its attention.
STAND_INS = {"allin1": MUSIC, "hdit": SAMPLING}


def recipe(title: str) -> Block:
    """The one block with a title."""
    (found,) = (block for block in blocks(ROOT / "docs" / "recipes.md") if block.title == title)
    return found


def execute(title: str) -> None:
    """Runs a recipe in this process, and compares what it prints with what it says."""
    from frameworks import MPS

    block = recipe(title)
    printed: list[str] = []
    names = {"__name__": "__main__", "print": lambda *words: printed.append(" ".join(map(str, words)))}
    with stand_in(STAND_INS.get(title, frozenset())), MPS.watch() as ran:
        exec(compile(block.code, f"{block.document}:{block.line}", "exec"), names)
    assert printed == block.printed(), printed
    assert ran == {"native"}, ran


def run(title: str) -> None:
    """:func:`execute` in a fresh interpreter: a recipe puts natten in place, and other clients keep what they found."""
    done = python(f"import recipes; recipes.execute({title!r})")
    assert done.returncode == 0, done.stderr
