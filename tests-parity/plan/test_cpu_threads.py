"""How many threads the CPU kernels use, in which process, and the values of their environment variables."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks import MLX, MPS, Framework
from processes import in_a_process

import natten_mps
from natten_mps._device import Machine
from natten_mps._metal.cpu.library import FILE, FOLDER, CpuLibrary


def lines_of(code: str, **environment: str) -> list[Any]:
    done = in_a_process(code, **environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


# --- natten-mps follows torch ------------------------------------------------------------------------


@pytest.fixture
def requested(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of threads that the library is called with."""
    found: list[int] = []
    call = CpuLibrary.call

    def watched(self: Any, function: str, problem: Any, tensors: Any, threads: int = 0) -> None:
        found.append(threads)
        call(self, function, problem, tensors, threads)

    monkeypatch.setattr(CpuLibrary, "call", watched)
    return found


def test_every_call_requests_torch_s_number_of_threads(requested: list[int]) -> None:
    before = torch.get_num_threads()
    x = torch.randn(1, 40, 2, 8, requires_grad=True)
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            natten_mps.na1d(x, x, x, 5, backend="native").sum().backward()
            weights = natten_mps.na1d_qk(x, x, 5, backend="native")
            natten_mps.na1d_av(weights, x, 5, backend="native").sum().backward()
    finally:
        torch.set_num_threads(before)
    assert requested == [1] * 6 + [3] * 6


# Counts the threads that a call starts in this process. The problem is large enough to use all threads it may have.
STARTED = """
import json, os, torch, natten_mps
from torch.utils.data import DataLoader, Dataset
x = torch.randn(1, 64, 64, 4, 16)
torch.get_num_threads()

def started():
    before = len(os.listdir("/proc/self/task"))
    natten_mps.na2d(x, x, x, 7, backend="native")
    return len(os.listdir("/proc/self/task")) - before

class Items(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, item):
        return torch.get_num_threads(), started()
"""
LINUX = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
GROW = """
for n in (1, 2, 5):
    torch.set_num_threads(n)
    print(started())
"""
LOAD = """
for seen, more in DataLoader(Items(), batch_size=1, num_workers=2, multiprocessing_context="fork"):
    print(json.dumps([int(seen), int(more)]))
"""


@LINUX
def test_threads_are_started_as_torch_would() -> None:
    """As many as torch has, the calling thread included. Workers of a data loader are forked from a process whose
    threads have run: torch gives a worker one thread, and so do the kernels.
    """
    assert lines_of(STARTED + GROW + LOAD) == [0, 1, 3, [1, 0], [1, 0]]


@LINUX
def test_the_variable_is_an_upper_limit() -> None:
    code = STARTED + "print(started())" + GROW
    assert lines_of(code, OMP_NUM_THREADS="1", NATTEN_NUM_THREADS="3") == [0, 0, 1, 1]


# --- torch's own threads -----------------------------------------------------------------------------


@pytest.fixture
def library() -> CpuLibrary:
    """What natten-mps calls."""
    return Machine().native.library


def test_torch_s_threads_are_used_where_they_can_be(library: CpuLibrary) -> None:
    """The builds of torch that the tests run on compute with GNU OpenMP on Linux, and with another one on macOS."""
    assert (library.region is not None) == (sys.platform == "linux")


@LINUX
def test_no_thread_is_started_beside_torch_s() -> None:
    """With the variable, calls have threads of their own."""
    code = STARTED + "torch.set_num_threads(3)\ntorch.ones(1 << 22).exp_()\nprint(started())"
    assert lines_of(code) == [0]
    assert lines_of(code, NATTEN_NUM_THREADS="3") == [2]


REGION_TYPE = ctypes.CFUNCTYPE(None, ctypes.CFUNCTYPE(None, ctypes.c_void_p), ctypes.c_void_p, *[ctypes.c_uint] * 2)


@pytest.mark.parametrize("bodies", [1, 3])
def test_the_region_computes_the_same(library: CpuLibrary, bodies: int) -> None:
    """Forward and backward on a region that is called from here, on which ``bodies`` threads take part in turns."""
    asked = []

    def region(body: Any, data: int, threads: int, flags: int) -> None:
        asked.append((threads, flags))
        for _ in range(bodies):
            body(data)

    x = torch.randn(2, 40, 40, 2, 8, requires_grad=True)

    def results() -> tuple[torch.Tensor, ...]:
        out = natten_mps.na2d(x, x, x, 7, backend="native")
        return out, *torch.autograd.grad(out.sum(), x)

    called, before, threads = REGION_TYPE(region), library.region, torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        library.use_region(None)
        wanted = results()
        library.use_region(ctypes.cast(called, ctypes.c_void_p).value)
        found = results()
    finally:
        library.use_region(before)
        torch.set_num_threads(threads)
    assert asked == [(0, 0)] * len(asked) and len(asked) > 2
    assert all(map(torch.equal, found, wanted))


FORKED = """
import os, signal, torch, natten_mps
x = torch.randn(1, 48, 48, 4, 16)
torch.set_num_threads(3)
wanted = natten_mps.na2d(x, x, x, 7, backend="native").numpy()

def same():  # torch's own operations would wait for threads that a child does not have
    return (natten_mps.na2d(x, x, x, 7, backend="native").numpy() == wanted).all()

for round in range(20):
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        torch.set_num_threads(2)
        os._exit(0 if same() else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
assert same()
print(1)
"""


def test_many_forks() -> None:
    """Child processes use several threads of their own, wherever the parent's were from, and give the same bits."""
    assert lines_of(FORKED) == [1]


# --- variables ---------------------------------------------------------------------------------------


@pytest.fixture
def copies(tmp_path: Path) -> Iterator[Callable[[], CpuLibrary]]:
    """Reloads the library: it reads its variables once, and a copy of the file counts as another library."""
    (file,) = [f for folder in natten_mps.__path__ if (f := Path(folder) / FOLDER / FILE).exists()]
    numbers = count()

    def load() -> CpuLibrary:
        return CpuLibrary(Path(shutil.copy(file, tmp_path / f"{next(numbers)}-{FILE}")))

    yield load


@pytest.mark.parametrize("value", ["0", "-1", "abc", "2.5", "3 ", "1e99", "99999999999999999999"])
def test_an_invalid_number_of_threads(
    copies: Callable[[], CpuLibrary], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("NATTEN_NUM_THREADS", value)
    with pytest.raises(ValueError, match="NATTEN_NUM_THREADS") as caught:
        copies()
    words = f"the environment variable NATTEN_NUM_THREADS is '{value}'; it takes a number of threads, 1 or more"
    assert str(caught.value) == words


@pytest.mark.parametrize(("value", "threads"), [("1", 1), ("3", 3), ("100000", 256)])
def test_valid_numbers_of_threads(
    copies: Callable[[], CpuLibrary], monkeypatch: pytest.MonkeyPatch, value: str, threads: int
) -> None:
    monkeypatch.setenv("NATTEN_NUM_THREADS", value)
    assert copies().threads == threads


def test_instruction_sets(copies: Callable[[], CpuLibrary], monkeypatch: pytest.MonkeyPatch) -> None:
    """The values that the error names are accepted."""
    monkeypatch.setenv("NATTEN_CPU_ISA", "avx1024")
    words = "the environment variable NATTEN_CPU_ISA is 'avx1024'; this machine runs "
    with pytest.raises(ValueError, match=f"^{words}") as caught:
        copies()
    named = [name.strip("', ") for name in str(caught.value).removeprefix(words).split()]
    assert named in (["avx512", "avx2", "sse"], ["avx2", "sse"], ["sse"], ["neon"])
    for name in named:
        monkeypatch.setenv("NATTEN_CPU_ISA", name)
        assert copies().instruction_set == name


AVX2 = {"avx2", "fma", "f16c"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}


@pytest.mark.skipif(sys.platform != "linux", reason="Linux lists what the processor has in a file")
def test_the_best_instruction_set_is_chosen(copies: Callable[[], CpuLibrary], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both packages: compilers answer the question for the processor's features, and some wrongly."""
    monkeypatch.delenv("NATTEN_CPU_ISA", raising=False)
    features = set(Path("/proc/cpuinfo").read_text().split())
    best = "avx512" if features >= AVX512 else "avx2" if features >= AVX2 else "sse"
    if platform.machine() in ("arm64", "aarch64"):
        best = "neon"
    assert copies().instruction_set == best
    code = CALLS["mlx"] + "call()\nprint(json.dumps(natten_mlx._device.machine().nanobind.found.instruction_set()))"
    assert lines_of(code, NATTEN_CPU_ISA="") == [best]


def test_empty_variables_are_not_set(copies: Callable[[], CpuLibrary], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NATTEN_NUM_THREADS", "NATTEN_CPU_ISA"):
        monkeypatch.setenv(name, "")
    library = copies()
    for name in ("NATTEN_NUM_THREADS", "NATTEN_CPU_ISA"):
        monkeypatch.delenv(name)
    assert (library.threads, library.instruction_set) == (copies().threads, copies().instruction_set)


CALLS = {
    "mps": """
import json, torch, natten_mps
x = torch.randn(1, 9, 2, 8)
call = lambda: natten_mps.na1d(x, x, x, 3)
""",
    "mlx": """
import json, mlx.core as mx, natten_mlx
mx.set_default_device(mx.cpu)
x = mx.random.normal((1, 9, 2, 8))
call = lambda: mx.eval(natten_mlx.na1d(x, x, x, 3))
""",
}
REFUSED = """
for _ in range(2):
    try:
        call()
    except ValueError as error:
        print(json.dumps(str(error)))
"""


@pytest.mark.parametrize(
    ("framework", "name"),
    [(MPS, "NATTEN_NUM_THREADS"), (MLX, "NATTEN_NUM_THREADS"), (MLX, "NATTEN_CPU_ISA")],
    ids=str,
)
def test_an_invalid_value_is_an_error_of_every_call(framework: Framework, name: str) -> None:
    """Not at import, never an abort, and nothing is computed as if the value were valid."""
    first, second = lines_of(CALLS[framework.name] + REFUSED, **{name: "many"})
    assert first == second and first.startswith(f"the environment variable {name} is 'many'; ")


def test_valid_variables_reach_natten_mlx() -> None:
    code = CALLS["mlx"] + "call()\nfound = natten_mlx._device.machine().nanobind.found\n"
    code += "print(json.dumps([found.threads(), found.instruction_set(), found.complaint()]))"
    isa = "neon" if platform.machine() in ("arm64", "aarch64") else "sse"
    assert lines_of(code, NATTEN_NUM_THREADS="3", NATTEN_CPU_ISA=isa) == [[3, isa, None]]
