"""Several threads at once, which share everything that the packages cache."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from frameworks import PATHS, Path

from natten_mps._metal.plan import blocks, plan
from natten_mps._metal.plan.device import Device
from natten_mps._metal.problem import mask
from natten_mps._metal.problem.problem import Problem

THREADS = 8


@pytest.fixture
def switching_often() -> Iterator[None]:
    """The interpreter switches threads after a few operations."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(work: Any) -> None:
    """``work(number)`` in :data:`THREADS` threads that start at the same moment; raises the first failure."""
    failures: list[BaseException] = []
    ready = threading.Barrier(THREADS)

    def run(number: int) -> None:
        ready.wait()
        try:
            work(number)
        except BaseException as failure:  # noqa: BLE001 - handed to the test, whatever it is
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a thread hangs"
    if failures:
        raise failures[0]


# Many problems with one walk (they differ in their heads), and many walks: more than any cache keeps.
CALLS = [(length, heads, causal) for length in (9, 10, 31) for heads in range(1, 21) for causal in (False, True)]


def call(path: Path, length: int, heads: int, causal: bool) -> Any:
    framework = path.framework
    tensor = framework.tensor(np.cos(np.arange(length * heads * 2.0)).reshape(1, length, heads, 2), "float32")

    def attend(given: Any) -> tuple[Any]:
        return (framework.face("na1d")(given, given, given, 3, is_causal=causal, backend=path.backend),)

    (out,), (gradient,) = framework.vjp(attend, [tensor], [tensor])
    return framework.numpy(out), framework.numpy(gradient)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_threads_do_not_disturb_each_other(path: Path, switching_often: None) -> None:
    """Each thread calls the problems in its own order; each result equals that of a single thread."""
    with path.framework.watch() as ran:
        alone = {arguments: call(path, *arguments) for arguments in CALLS}
    assert ran == {path.backend}

    def work(number: int) -> None:
        order = random.Random(number).sample(CALLS, 40)
        for arguments in order:
            for found, wanted in zip(call(path, *arguments), alone[arguments], strict=True):
                assert np.array_equal(found, wanted), arguments

    together(work)


@dataclass(frozen=True)
class Name:
    """A thread yields in the middle of each look-up."""

    number: int

    def __hash__(self) -> int:
        time.sleep(0)
        return hash(self.number)


def test_what_a_chunk_caches_is_shared_and_bounded(switching_often: None) -> None:
    """Threads cache more values than are kept: each gets the value of its own key, whichever thread made it."""
    problem = Problem("na", 1, (64,), (64,), 1, 1, 4, 4, (5,), (1,), (1,), (False,), 1.0, "float32")
    walk = plan.plan(problem, Device("cpu", "cpu"), "pure", ("pure",)).forward.queries
    assert walk is not None
    tables = blocks.Tables(walk, mask.NumpyTables())

    def work(number: int) -> None:
        for turn in range(500):
            name = Name(turn * (number + 1) % 97)
            (chunk,) = tables.chunks()
            assert chunk.cached(name, lambda: [name]) == [name]  # noqa: B023 - called at once
            assert chunk.mask.shape == (walk.tiles, walk.tile_rows, walk.box_columns)

    together(work)
    (chunk,) = tables.chunks()
    assert len(chunk._cached) <= blocks.Chunk.MAX_CACHED + THREADS
