"""Every code block of the documents runs unmodified; what cannot run here says so in its title."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests-parity" / "distributed")]

import code_blocks  # noqa: E402
from code_blocks import Block  # noqa: E402
from distributed_launch import run_program  # noqa: E402

LANGUAGES = {"python", "sh", "text"}
# What a block may need besides the two packages, by the title that says so.
PROCESSES = {"torchrun --nproc-per-node 2": 2, "mlx.launch -n 2": 2}
CLIENTS = {"allin1", "diffusers", "hdit", "transformers 4.53"}  # run by ./dev.sh clients
LONG = {"onnx": "onnx", "coremltools": "coremltools", "torch.compile": "torch"}  # with --all, if the package is there

BLOCKS = code_blocks.every_block()
PYTHON = [block for block in BLOCKS if block.language == "python"]
PLAIN = {name: list(group) for name, group in groupby((b for b in PYTHON if not b.title), lambda b: b.document)}


def run(blocks: list[Block], folder: Path, quiet: bool = True) -> list[str | None]:
    """Run blocks in one process; for each, what is wrong with it: its error, or what it prints and does not say.

    quiet: no warning may be written to stderr, nor anything be printed that the block does not say (exporters do both).
    """
    sources = json.dumps([(f"{block.document}:{block.line}", block.code) for block in blocks])
    known = os.environ | {"OMP_NUM_THREADS": "1"}
    program = [sys.executable, str(Path(__file__).with_name("run_blocks.py"))]
    done = subprocess.run(
        program, input=sources, cwd=folder, env=known, capture_output=True, text=True, check=False, timeout=400
    )
    assert (done.returncode, done.stderr if quiet else "") == (0, ""), done.stderr
    return [
        error or complaint(block, printed.splitlines(), exact=quiet)
        for block, (printed, error) in zip(blocks, json.loads(done.stdout), strict=True)
    ]


def complaint(block: Block, lines: list[str], exact: bool) -> str | None:
    """Where the lines that a block printed are not those that it says."""
    expected = block.printed()
    said = [text for text in expected if text is not None]
    if lines == said if exact and None not in expected else set(said) <= set(lines):
        return None
    return f"{block.document}:{block.line} prints {lines}, and says {expected}"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[Block, str | None]:
    """What is wrong with each block that needs nothing else. Most of a block's time is importing the frameworks."""
    blocks = [block for group in PLAIN.values() for block in group]
    return dict(zip(blocks, run(blocks, tmp_path_factory.mktemp("documents")), strict=True))


@pytest.mark.xdist_group("documents")
@pytest.mark.parametrize("document", PLAIN)
def test_the_blocks_of_a_document_run(document: str, plain: dict[Block, str | None]) -> None:
    found = [plain[block] for block in PLAIN[document]]
    assert found == [None] * len(found), "\n".join(filter(None, found))


@pytest.mark.parametrize("block", [b for b in PYTHON if b.title in PROCESSES], ids=lambda b: f"{b.document}:{b.line}")
def test_blocks_for_several_processes_run(block: Block, tmp_path: Path) -> None:
    program = tmp_path / "block.py"
    program.write_text(block.code)
    ended = run_program([str(program)], PROCESSES[block.title])
    assert [each.status for each in ended] == [0] * len(ended), "\n".join(each.errors[-3000:] for each in ended)


@pytest.mark.all
@pytest.mark.parametrize("block", [b for b in PYTHON if b.title in LONG], ids=lambda b: f"{b.document}:{b.line}")
def test_blocks_that_take_long_run(block: Block, tmp_path: Path) -> None:
    package = LONG[block.title]
    pytest.importorskip(package, reason=f"{package} is not installed: ./dev.sh test --all installs it")
    assert run([block], tmp_path, quiet=False) == [None]


def test_every_block_says_what_it_is() -> None:
    assert {block.language for block in BLOCKS} <= LANGUAGES
    assert {block.title for block in PYTHON} <= {"", *PROCESSES, *CLIENTS, *LONG}
    assert len(PYTHON) > 30
    assert sum(not block.title for block in PYTHON) > 0.7 * len(PYTHON)
    # Indented code would be none of these. What is indented without being code belongs to a list, a tab or a note.
    for document in code_blocks.documents():
        before = ""
        for paragraph in re.split(r"\n{2,}", code_blocks.FENCE.sub("", document.read_text())):
            assert not paragraph.startswith("    ") or re.match(r"- |\d|===|!!!", before), (document.name, paragraph)
            before = before if paragraph.startswith("    ") else paragraph


@pytest.mark.parametrize(
    "code", ["1 / 0", "print(1)  # 2", "print(1)", "print(1)  # 1\nprint(2)  # 3", "raise SystemExit(1)"]
)
def test_a_wrong_block_shows(code: str, tmp_path: Path) -> None:
    block = Block("planted", 1, "python", "", code + "\n")
    if code == "print(1)":  # says nothing certain
        assert run([block], tmp_path) == [None]
    else:
        (found,) = run([block], tmp_path)
        assert found is not None
        assert "planted" in found
