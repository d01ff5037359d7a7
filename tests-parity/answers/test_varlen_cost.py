"""Items of different sizes cost what their tokens cost: memory for many sizes, launches for equal ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import wraps
from pathlib import Path as File
from typing import Any

import numpy as np
import pytest
from frameworks import FRAMEWORKS, MLX, MPS, Framework
from process_memory import memory
from processes import LIMIT

COUNT, LONGEST, HEADS, DIM = 192, 200, 2, 8
LENGTHS = list(range(LONGEST - COUNT + 1, LONGEST + 1))
Array = Any


def forms(framework: Framework) -> dict[str, tuple[list[Array], Any]]:
    """Arrays and the call: a padded batch, a list, packed sequences; no two items have the same length."""
    random = np.random.default_rng(0)
    batch, flat = ([random.random(s).astype(np.float32) for _ in range(3)] for s in SHAPES)
    ends = np.cumsum(LENGTHS)[:-1]

    def listed(*given: Any) -> Any:
        parts = [list(given[COUNT * i : COUNT * (i + 1)]) for i in range(3)]
        return framework.face("na1d_varlen")(*parts, None, 5)

    def padded(*given: Any) -> Any:
        return [framework.face("na1d_varlen")(*given, LENGTHS, 5)]

    def packed(*given: Any) -> Any:
        return [framework.face("attention")(*given, seqlens_Q=LENGTHS, seqlens_KV=LENGTHS)]

    return {
        "padded": (batch, padded),
        "listed": ([part for whole in flat for part in np.split(whole[0], ends)], listed),
        "packed": (flat, packed),
    }


SHAPES = ((COUNT, LONGEST, HEADS, DIM), (1, sum(LENGTHS), HEADS, DIM))


def measure(name: str) -> dict[str, dict[str, int]]:
    """For each form, the bytes of the inputs, and by how much forward and backward raise the peak of memory.

    A process has only one peak, so what is found for a form may be due to an earlier one.
    """
    framework = next(each for each in FRAMEWORKS if str(each) == name)
    small = framework.tensor(np.ones((1, 9, 2, 8)), "float32")
    framework.evaluate(framework.face("na1d")(small, small, small, 5))  # load what is loaded lazily
    found = {}
    for form, (arrays, call) in forms(framework).items():
        given = [framework.tensor(a, "float32") for a in arrays]
        cotangents = [framework.tensor(np.ones(a.shape), "float32") for a in arrays[: len(arrays) // 3]]
        before = memory()
        framework.vjp(call, given, cotangents)
        found[form] = {"given": sum(4 * a.size for a in arrays), "grown": memory()["peak"] - before["now"]}
    return found


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_memory_is_linear(framework: Framework) -> None:
    """Forward and backward of 192 sizes take up to ten times the inputs; one output per size would take 64 times."""
    command = [sys.executable, __file__, str(framework)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(File(__file__).parents[1])}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=LIMIT)
    found = json.loads(done.stdout)
    assert set(found) == {"padded", "listed", "packed"}
    for form, each in found.items():
        assert each["grown"] < 10 * each["given"] + (24 << 20), (form, found)


def counting(function: Any, seen: list[int]) -> Any:
    """The function; each call adds an entry to ``seen``."""

    @wraps(function)
    def counted(*given: Any, **options: Any) -> Any:
        seen.append(1)
        return function(*given, **options)

    return counted


@pytest.mark.parametrize(("framework", "launches"), [(MPS, 3), (MLX, 5)], ids=str)
def test_launches(framework: Framework, launches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adjacent items of one size share a launch; natten-mps also gathers small ones that are not adjacent."""
    sizes, shape = [5, 5, 9, 5, 7, 9], (6, 9, 2, 4)
    tensors = [framework.tensor(np.random.default_rng(i).random(shape), "float32") for i in range(3)]
    module, seen = framework.module(framework.compiled_module), []
    # MLX repeats the plan of a problem that it has launched before.
    for name in ("run", "repeat"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, counting(getattr(module, name), seen))
    framework.evaluate(framework.face("na1d_varlen")(*tensors, sizes, 5))
    assert sum(seen) == launches


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
