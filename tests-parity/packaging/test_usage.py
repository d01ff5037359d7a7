"""Scripts that take files or folders: an option that they do not know, such as --help, is explained and is no file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
NAMES = ("build_macos_wheels", "build_wheels", "check_mlx_releases", "check_wheel", "fetch_sdists", "read_signatures")


@pytest.mark.parametrize("name", [*NAMES, "lock", "set_repository"])
def test_help_explains_and_makes_nothing(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPTS / f"{name}.py", "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    assert f"{name}.py" in said and "Traceback" not in said, said
    assert not list(tmp_path.iterdir())
