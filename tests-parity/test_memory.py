"""Memory is O(N): the peak of forward and backward above inputs, outputs and gradients, in fresh processes."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path as File
from typing import Any

import pytest

LIMIT = 1 << 30

# name -> face, shape of [1, *shape, heads, dim] tensors in float32, kernel_size
LARGE = {
    "sequence of 65536": ("na1d", (1, 65536, 4, 64), 127),
    "image of 256 x 256": ("na2d", (1, 256, 256, 4, 64), 13),
}


def memory() -> dict[str, int]:
    """Bytes of this process in memory now and at most so far."""
    status = File("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux a process inherits the peak of the one that started it.
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return {name: int(fields[field].split()[0]) << 10 for name, field in (("now", "VmRSS"), ("most", "VmHWM"))}
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"now": most, "most": most}


def measure(name: str, face: str, shape: list[int], kernel_size: int) -> dict[str, Any]:
    """Peak bytes above inputs, outputs and gradients of one forward and backward on the pure path."""
    import frameworks

    framework = {"mps": frameworks.MPS, "mlx": frameworks.MLX}[name]
    warm = [1, *(kernel_size + 1 for _ in shape[1:-2]), *shape[-2:]]
    sizes = {}
    for size in (warm, shape):
        given = random(framework, size)
        before, began = memory(), time.monotonic()
        run(framework, face, given, kernel_size)
        sizes = {"peak": memory()["most"] - before["now"], "seconds": time.monotonic() - began}
    tensor = 4 * shape[0] * _product(shape[1:])
    kept = 4 * tensor + tensor // shape[-1]  # out, three gradients, and lse
    return sizes | {"extra": sizes["peak"] - kept}


def _product(sizes: list[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def random(framework: Any, size: list[int]) -> list[Any]:
    """query, key, value and the output's cotangent, in memory."""
    if framework.name == "mps":
        import torch

        torch.set_num_threads(1)
        return [torch.randn(size) for _ in range(4)]
    import mlx.core as mx

    given = [mx.random.normal(size, stream=mx.cpu) for _ in range(4)]
    mx.eval(given)
    return given


def run(framework: Any, face: str, given: list[Any], kernel_size: int) -> None:
    with framework.watch() as ran:
        framework.vjp(lambda *t: (framework.face(face)(*t, kernel_size, backend="pure"),), given[:3], given[3:])
    assert ran == {"pure"}


def measured(name: str, face: str, shape: tuple[int, ...], kernel_size: int) -> dict[str, Any]:
    """:func:`measure` in a fresh process."""
    call = f"measure({name!r}, {face!r}, {list(shape)!r}, {kernel_size!r})"
    code = f"import json; from test_memory import *; print(json.dumps({call}))"
    paths = os.pathsep.join([str(File(__file__).parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    print(f"{name} {face} {shape}: {found['extra'] / 2**20:.0f} MiB extra, {found['seconds']:.1f} s")
    return found


SLOW = pytest.param("mlx", marks=pytest.mark.all)


@pytest.mark.parametrize("name", ["mps", SLOW])
@pytest.mark.parametrize("problem", LARGE)
def test_a_large_problem_takes_less_than_a_gibibyte(problem: str, name: str) -> None:
    found = measured(name, *LARGE[problem])
    assert found["peak"] > 0 and found["extra"] < LIMIT, found


@pytest.mark.parametrize("name", ["mps", "mlx"])
def test_memory_grows_with_the_tokens(name: str) -> None:
    """Twice the tokens: at most about twice as much. Quadratic logits would take 4 GiB."""
    small, large = (measured(name, "na1d", (1, tokens, 4, 16), 63)["extra"] for tokens in (8192, 16384))
    assert large < max(2.2 * small, 96 << 20), (small, large)
