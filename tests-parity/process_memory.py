"""The memory of a process, and values computed in a fresh one."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path as File
from typing import Any


def memory() -> dict[str, int]:
    """Current and peak memory of this process in bytes."""
    status = File("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux a process inherits the peak of its parent.
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return {name: int(fields[field].split()[0]) << 10 for name, field in (("now", "VmRSS"), ("peak", "VmHWM"))}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"now": peak, "peak": peak}


def in_a_fresh_process(module: str, call: str) -> Any:
    """The value of an expression, evaluated in a process that has imported only one module of the tests."""
    code = f"import json; from {module} import *; print(json.dumps({call}))"
    paths = os.pathsep.join([str(File(__file__).parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        # Each thread has buffers of its own, whatever the number of tokens: with few threads they do not matter.
        env=os.environ | {"PYTHONPATH": paths, "NATTEN_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
