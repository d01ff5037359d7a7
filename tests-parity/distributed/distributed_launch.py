"""Groups of processes on this machine, each of which runs ``member.py``."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Ended:
    """A process that has ended: its exit status, and what it reported."""

    status: int
    reports: list[dict[str, Any]]
    errors: str


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def run(framework: str, task: str, count: int, drawn: int = 0, timeout: float = 200) -> list[Ended]:
    """A task of ``member.py`` in ``count`` processes, with ``drawn`` random problems."""
    return run_program([str(HERE / "member.py"), framework, task], count, timeout, DRAWN=str(drawn))


def run_program(program: list[str], count: int, timeout: float = 200, **variables: str) -> list[Ended]:
    """A Python program in ``count`` processes, which find each other through environment variables.

    Raises ``subprocess.TimeoutExpired`` if one takes longer than ``timeout`` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        hosts = Path(folder) / "hosts.json"
        ports = free_ports(count)
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
        paths = os.pathsep.join([str(HERE), str(HERE.parent)])
        known = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "NATTEN_NUM_THREADS": "1"} | variables
        known |= {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0])}
        known |= {"MLX_HOSTFILE": str(hosts)} if count > 1 else {}
        started = [
            subprocess.Popen(
                [sys.executable, *program],
                env=known | {"RANK": str(index)} | ({"MLX_RANK": str(index)} if count > 1 else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index in range(count)
        ]
        try:
            ended = [each.communicate(timeout=timeout) for each in started]
        finally:
            for each in started:
                each.kill()
        return [
            Ended(each.returncode, [json.loads(line) for line in out.splitlines() if line.startswith("{")], errors)
            for each, (out, errors) in zip(started, ended, strict=True)
        ]
