"""Fresh interpreters, for what happens only once in a process."""

from __future__ import annotations

import os
import subprocess
import sys

# Seconds until a process counts as hanging: about ten times what one that imports torch has taken on a busy machine.
LIMIT = 900
VARIABLES = ("NATTEN_NUM_THREADS", "NATTEN_CPU_ISA", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def in_a_process(code: str, timeout: float = LIMIT, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run(
        [sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True, timeout=timeout
    )


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that prints its log."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NATTEN")}
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "import logging; logging.basicConfig(level=0, format='%(levelname)s %(message)s')\n" + code,
        ],
        env=kept | {"PYTHONPATH": paths} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
