"""The lifetime of natten-mlx's primitives and plans, which may be freed on MLX's threads, inside MLX's own calls, or
after the interpreter has ended.

Each situation runs in a process of its own with a time limit, because failures were deadlocks or aborts.
"""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "packages" / "natten-mlx" / "csrc"
SECONDS = 60

# `outputs(n)`: the results of n distinct problems; `gradients(n)`: their gradients. The caches are emptied, so that
# only the graph holds the plans.
OPENING = """
import gc, os, sys, threading
import mlx.core as mx
import natten_mlx as na
from natten_mlx._device import machine
mx.set_default_device(mx.cpu)
na.set_backend("nanobind")

def forget():
    for cache in (machine().nanobind.plans, machine().nanobind.remembered):
        cache.clear()

def problems(n):
    return [mx.random.normal((1, 20 + i, 2, 16)) for i in range(n)]

def outputs(n):
    found = [na.na1d(x, x, x, 7) for x in problems(n)]
    forget()
    return found

def gradients(n):
    found = [mx.grad(lambda q: na.na1d(q, q, q, 7).square().sum())(x) for x in problems(n)]
    forget()
    return found
"""

SITUATIONS = {
    # More plans than the caches hold, with public functions only.
    "saved": """
        items = [mx.random.normal((n, 2, 16)) for n in range(20, 1320)]
        mx.save(sys.argv[1], mx.concatenate(na.na1d_varlen(items, items, items, None, 7)))
    """,
    "saved with gradients": "mx.save(sys.argv[1], mx.concatenate(gradients(150), 1))",
    "cache cleared": """
        for made in (outputs, gradients):
            mx.async_eval(made(150))
            mx.clear_cache()
    """,
    "left running": "mx.async_eval(outputs(300), gradients(300))",
    "collected while it runs": """
        sys.setswitchinterval(1e-5)
        ended = threading.Event()

        def collect():
            while not ended.is_set():
                gc.collect()

        def work(seed):
            stream = mx.new_stream(mx.cpu)
            with mx.stream(stream):
                for _ in range(2):
                    made = outputs(20) + gradients(20)
                    mx.async_eval(made)
                    mx.clear_cache()
                    mx.eval(made)
                    del made

        collector, workers = threading.Thread(target=collect), [
            threading.Thread(target=work, args=(seed,)) for seed in range(3)
        ]
        for thread in (collector, *workers):
            thread.start()
        for thread in workers:
            thread.join()
        ended.set()
        collector.join()
        # MLX's own cleanup of a thread may abort the process if the interpreter ends at the same moment.
        print("end", flush=True)
        os._exit(0)
    """,
    "never computed": """
        lazy = outputs(20) + gradients(20)
        compiled = mx.compile(lambda q: na.na1d(q, q, q, 5))(mx.zeros((1, 30, 1, 4)))
    """,
    # An error of the kernels is raised by the call that waits for it, whatever thread ran it.
    "refused by the kernel": """
        from natten_mlx._metal.plan import limits
        limits.too_large = lambda problem: None
        wide, narrow = (mx.broadcast_to(mx.zeros((1,)), (1, 4, 1, n)) for n in (2**29 + 1, 1))
        for wait in (mx.eval, lambda lazy: mx.eval(mx.async_eval(lazy), lazy), lambda lazy: lazy.sum().item()):
            try:
                wait(na.na1d(wide, wide, narrow, 3))
            except RuntimeError as error:
                assert str(error) == "na1d forward: the CPU kernel refused the problem"
            else:
                raise AssertionError("no error")
            mx.eval(outputs(1))
    """,
    # The child has none of its parent's threads and computes nothing; it only has to exit. The parent computes nothing
    # meanwhile: a child that is made while a thread holds the mutex of MLX's allocator waits for it forever.
    "forked": """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads in a process that forks
        mx.eval(outputs(3), gradients(50))
        child = os.fork()
        if child == 0:
            forget()
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        mx.eval(gradients(3))
    """,
}


def ends_well(situation: str, folder: Path) -> None:
    """The process prints its last line and exits with 0, without any error output."""
    code = OPENING + textwrap.dedent(SITUATIONS[situation]) + '\nprint("end")\n'
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "out.npy")],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", ""), situation


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_process_ends_well(situation: str, tmp_path: Path) -> None:
    ends_well(situation, tmp_path)


@pytest.mark.all
@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_process_ends_well_many_times(situation: str, tmp_path: Path) -> None:
    for _ in range(20):
        ends_well(situation, tmp_path)


def test_what_mlx_destroys_does_not_use_python() -> None:
    """The headers of plans and primitives include nothing of Python's."""
    headers, seen = ["operation.h"], set()
    while headers:
        name = headers.pop()
        text = (CSRC / name).read_text()
        seen.add(name)
        assert not re.search(r"nanobind/|Python\.h|PyObject|\bnb::", text), name
        headers += [found for found in re.findall(r'#include "([^"]+)"', text) if found not in seen]
    assert {"operation.h", "plan.h", "cpu/natten_cpu.h"} <= seen


GROWTH = """
import ctypes, resource
query = mx.random.normal((1, 500, 1, 4))

def work(numbers):
    for n in numbers:
        x, window = query[:, : 40 + n % 400], 3 + n // 400
        mx.eval(na.na1d(x, x, x, window))
        if n % 4 == 0:
            mx.eval(mx.grad(lambda q: na.na1d(q, q, q, window).sum())(x))

def memory():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = open("/proc/self/statm").read().split()[1]
    return int(pages) * resource.getpagesize() / 2**20

work(range(4000))
before = memory()
work(range(4000, 14000))
print(before, memory())
"""


@pytest.mark.all
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and trims glibc's heap")
def test_memory_does_not_grow_with_the_number_of_problems() -> None:
    """Every cache is full after 4,000; 10,000 more distinct problems need no more memory, nor do their gradients."""
    done = subprocess.run(
        [sys.executable, "-c", OPENING + GROWTH], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    before, after = map(float, done.stdout.split())
    assert after - before < 3, (before, after)
