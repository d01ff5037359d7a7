"""The examples with pictures: they run, print what they should, and draw the pictures of docs/examples.md.

The examples for several processes are tested in `distributed/test_training.py`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = {
    name: ROOT / "examples" / f"{name}.py" for name in ("fill_gaps_mlx", "receptive_field_torch", "upsample_torch")
}


def run(name: str, folder: Path) -> list[str]:
    """What an example prints; its picture is compared with the one in docs/."""
    picture = f"{name.rpartition('_')[0]}.png"
    known = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, EXAMPLES[name], "--out", picture],
        cwd=folder,
        env=known,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    drawn, shown = (np.asarray(Image.open(each / picture), dtype=float) for each in (folder, ROOT / "docs"))
    assert drawn.shape == shown.shape
    # Rounding may turn a pixel that lies between two colors.
    assert np.abs(drawn - shown).mean() < 1
    assert drawn.std() > 20
    return done.stdout.splitlines()


def test_gaps_are_filled(tmp_path: Path) -> None:
    share, errors = run("fill_gaps_mlx", tmp_path)
    assert share == "28% was missing; filled in 2 passes"
    error, of_the_mean = map(float, re.findall(r"\d\.\d+", errors))
    assert error < 0.3 * of_the_mean


def test_a_receptive_field(tmp_path: Path) -> None:
    assert run("receptive_field_torch", tmp_path) == [
        "3 x 3: sees 4 tokens far, with 36 keys a query",
        "9 x 9: sees 16 tokens far, with 324 keys a query",
        "3 x 3, dilated: sees 15 tokens far, with 36 keys a query",
    ]


def test_upsampling_follows_edges(tmp_path: Path) -> None:
    (line,) = run("upsample_torch", tmp_path)
    nearest, attended = map(float, re.findall(r"[\d.]+(?=%)", line))
    assert attended < 0.5 < 5 < nearest


def test_every_example_is_tested() -> None:
    programs = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert programs == {*EXAMPLES, "train_on_shards_mlx", "train_on_shards_torch"}
    page = (ROOT / "docs" / "examples.md").read_text()
    assert all(f"examples/{name}.py" in page for name in programs)
