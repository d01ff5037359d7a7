"""An interrupted ``tiled`` resumes after the slabs that are on the disk, and never takes another file for its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import FRAMEWORKS, MLX, MPS, Framework
from processes import in_a_process

from slabs.test_tiled import both, cut_into, image, on_cpu

LENGTHS = (1, 5, 33)
SLABS = 6


def save(folder: Path) -> dict[str, str]:
    """Inputs in files."""
    for name, array in image().items():
        np.save(folder / f"{name}.npy", array)
    return {name: str(folder / f"{name}.npy") for name in image()}


def tiled(framework: Framework, folder: Path, **changed: Any) -> Any:
    given: dict[str, Any] = {name: folder / f"{name}.npy" for name in ("query", "key", "value")}
    given |= {"kernel_size": 3, "out": folder / "out.npy", "backend": "pure"} | on_cpu(framework, tiled=True) | changed
    with cut_into(framework, LENGTHS):
        return framework.package.tiled(**given)


@contextlib.contextmanager
def computed(framework: Framework) -> Iterator[list[tuple[int, ...]]]:
    """Within: the starts of the slabs that are computed."""
    module, starts = framework.module("_metal.slabs.tiled"), []
    original = module._compute

    def watched(work: Any, slab: Any) -> None:
        original(work, slab)
        starts.append(tuple(low for low, _ in slab))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_compute", watched)
        yield starts


@contextlib.contextmanager
def interrupted(framework: Framework, number: int, error: BaseException) -> Iterator[None]:
    """Within, ``error`` is raised while the slab of this number is written: half of it is in the file."""
    store = framework.module("_metal.slabs.stores").Store
    original, writes = store.write, []

    def write(self: Any, at: Any, part: Any) -> None:
        writes.append(at)
        if len(writes) > number:
            half = len(part[0]) // 2 + 1
            original(self, [at[0], (at[1][0], at[1][0] + half), *at[2:]], part[:, :half] + 1)
            raise error
        original(self, at, part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "write", write)
        yield


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[Framework, Any]:
    found = {}
    for framework in FRAMEWORKS:
        folder = tmp_path_factory.mktemp("whole")
        save(folder)
        found[framework] = np.array(tiled(framework, folder))
    return found


@both
@pytest.mark.parametrize("number", range(SLABS))
def test_goes_on_after_an_interrupt(
    framework: Framework, number: int, tmp_path: Path, wanted: dict[Framework, Any]
) -> None:
    save(tmp_path)
    journal = tmp_path / "out.npy.journal"
    with interrupted(framework, number, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt) as error:
        tiled(framework, tmp_path)
    assert error.value.__notes__ == [
        f"tiled: {number} of {SLABS} slabs are done; the same call resumes after them, by 'out.npy.journal'"
    ]
    assert json.loads(journal.read_text())["done"] == number
    with computed(framework) as starts:
        out = tiled(framework, tmp_path)
    assert len(starts) == SLABS - number and starts[-1] == (1, 10, 0)
    assert np.array_equal(out, wanted[framework])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["key.npy", "out.npy", "query.npy", "value.npy"]


KILLED = """
import json, os, signal, sys
sys.path[:0] = {paths!r}
from pathlib import Path
from frameworks import {framework}
from slabs import test_resume
{framework}.package.tiled
folder, sync, states, number = Path({folder!r}), os.fsync, [], 1
journal = folder / "out.npy.journal"

def run(number):
    calls = iter(range(1, 1 << 30))
    def killed(file):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(file)
    os.fsync = killed
    test_resume.tiled({framework}, folder)
    os._exit(0)

while not states or states[-1][0] != "exit 0":
    child = os.fork()  # before anything is computed, and so before there are threads
    if not child:
        run(number)
    status = os.waitpid(child, 0)[1]
    end = f"signal {{os.WTERMSIG(status)}}" if os.WIFSIGNALED(status) else f"exit {{os.WEXITSTATUS(status)}}"
    states.append((end, json.loads(journal.read_text())["done"] if journal.exists() else None))
    number = number % 5 + 2
    assert len(states) < 50
print(json.dumps(states))
"""


@both
def test_goes_on_after_it_was_killed(framework: Framework, tmp_path: Path, wanted: dict[Framework, Any]) -> None:
    """Again and again, each time at another of its calls of fsync."""
    save(tmp_path)
    paths = [str(Path(__file__).parents[1]), *filter(None, sys.path)]
    code = KILLED.format(paths=paths, framework=framework.name.upper(), folder=str(tmp_path))
    # Apple's frameworks refuse to run in a forked child otherwise; here it computes on the CPU alone.
    ended = in_a_process(code, OBJC_DISABLE_INITIALIZE_FORK_SAFETY="YES")
    assert ended.returncode == 0, ended.stderr
    states = json.loads(ended.stdout)
    assert [end for end, _ in states] == ["signal 9"] * (len(states) - 1) + ["exit 0"]
    done = [number for _, number in states]
    assert done[0] is None and done[-1] is None, "there is no journal before the first file, nor after the last slab"
    assert done[1:-1] == sorted(done[1:-1]) and len(set(done)) > 3, done
    assert np.array_equal(np.load(tmp_path / "out.npy"), wanted[framework])


def test_the_other_package_goes_on(tmp_path: Path) -> None:
    save(tmp_path)
    with interrupted(MPS, 3, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        tiled(MPS, tmp_path)
    with computed(MLX) as starts:
        out = tiled(MLX, tmp_path)
    assert len(starts) == 3
    folder = tmp_path / "whole"
    folder.mkdir()
    save(folder)
    assert np.allclose(out, tiled(MPS, folder), rtol=0, atol=1e-5)


@both
def test_a_full_disk(framework: Framework, tmp_path: Path, wanted: dict[Framework, Any]) -> None:
    save(tmp_path)
    with (
        interrupted(framework, 2, OSError(28, "No space left on device")),
        pytest.raises(OSError, match="space") as error,
    ):
        tiled(framework, tmp_path)
    assert "2 of 6 slabs are done" in error.value.__notes__[0]
    assert np.array_equal(tiled(framework, tmp_path), wanted[framework])


@both
def test_arrays_in_memory_are_recognised_by_content(framework: Framework, tmp_path: Path) -> None:
    save(tmp_path)
    arrays = image()
    with interrupted(framework, 4, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        tiled(framework, tmp_path, **arrays)
    arrays["value"][1, 13, 32, 1, 5] += 1
    with pytest.raises(ValueError, match=r"value's digest was '[0-9a-f]{32}' and is '[0-9a-f]{32}'"):
        tiled(framework, tmp_path, **arrays)
    arrays = image()
    with computed(framework) as starts:
        tiled(framework, tmp_path, **arrays)
    assert len(starts) == 2


@both
def test_without_a_file_there_is_no_journal(framework: Framework, tmp_path: Path) -> None:
    save(tmp_path)
    out = np.zeros((*image()["query"].shape[:-1], 6), np.float32)
    with interrupted(framework, 2, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt) as error:
        tiled(framework, tmp_path, out=out)
    assert not hasattr(error.value, "__notes__")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["key.npy", "query.npy", "value.npy"]


# --- journals that do not fit ------------------------------------------------------------------------


@pytest.fixture
def begun(tmp_path: Path, framework: Framework) -> Path:
    """A folder in which a call was interrupted after two slabs."""
    save(tmp_path)
    with interrupted(framework, 2, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        tiled(framework, tmp_path)
    return tmp_path


def refused(framework: Framework, folder: Path, **changed: Any) -> str:
    """The error of a call, which changes nothing."""
    before = {each: each.read_bytes() for each in folder.iterdir()}
    with pytest.raises(ValueError) as error:
        tiled(framework, folder, **changed)
    assert {each: each.read_bytes() for each in folder.iterdir()} == before
    return str(error.value)


WORDS = "tiled: 'out.npy.journal' is the journal of another call, whose results are in the same file: {}. Repeat that "
WORDS += "call to continue it, or delete the journal to start over"


@both
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"kernel_size": 5}, "kernel_size was [3, 3] and is [5, 5]"),
        ({"is_causal": (True, False)}, "is_causal was [False, False] and is [True, False]"),
        ({"scale": 0.5}, f"scale was {8**-0.5} and is 0.5"),
        ({"stride": 2, "dilation": 2}, "stride was [1, 1] and is [2, 2]; dilation was [1, 1] and is [2, 2]"),
    ],
)
def test_a_journal_of_other_arguments(framework: Framework, begun: Path, changed: dict[str, Any], words: str) -> None:
    assert refused(framework, begun, **changed) == WORDS.format(words)


@both
def test_a_journal_of_other_files(framework: Framework, begun: Path) -> None:
    times = begun / "query.npy"
    was = times.stat()
    os.utime(times, ns=(was.st_atime_ns, was.st_mtime_ns + 1))
    moved = f"query's modification time was {was.st_mtime_ns} and is {was.st_mtime_ns + 1}"
    assert refused(framework, begun) == WORDS.format(moved)
    os.utime(times, ns=(was.st_atime_ns, was.st_mtime_ns))
    number = (begun / "out.npy").stat().st_ino
    (begun / "out.npy").rename(begun / "kept.npy")
    assert refused(framework, begun) == WORDS.format(f"out's inode was {number} and is None")
    (begun / "kept.npy").rename(begun / "out.npy")
    with computed(framework) as starts:
        tiled(framework, begun)
    assert len(starts) == SLABS - 2


@both
def test_a_journal_whose_slabs_do_not_fit(framework: Framework, begun: Path) -> None:
    message = refused(framework, begun, memory=30_000)
    assert re.fullmatch(
        r"tiled: memory must hold the slabs that 'out\.npy\.journal' was begun with, which take \d{6,7} bytes; got "
        r"30000\. Allow that much, or delete the journal to start over",
        message,
    ), message
    (begun / "out.npy.journal").unlink()
    with computed(framework) as starts:
        tiled(framework, begun)
    assert len(starts) == SLABS


@both
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("half of it, {", "it is not JSON"),
        ("[]", "its keys are not those of version 1"),
        ('{"journal": 2, "call": {}, "slab": [], "done": 0}', "its keys are not those of version 1"),
    ],
)
def test_a_file_that_is_no_journal(framework: Framework, begun: Path, text: str, why: str) -> None:
    (begun / "out.npy.journal").write_text(text)
    message = f"tiled: 'out.npy.journal' is not a journal of this function ({why}); delete it to start over"
    assert refused(framework, begun) == message
