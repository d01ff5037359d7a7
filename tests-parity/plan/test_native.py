"""The CPU kernels behind natten-mps: what they read, where they run, and what happens if they are missing."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks import MPS

import natten_mps
from natten_mps._device import Machine, machine, on_machine
from natten_mps._launch.native import NativeHost
from natten_mps._metal.cpu import library as cpu_library
from natten_mps._metal.problem.ops import OPS
from natten_mps._metal.problem.problem import DTYPES, Problem


def tensors(*leading: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(*leading, 9, 8, 2, 16, dtype=dtype, requires_grad=True) for _ in range(3)]


def with_gradients(given: list[torch.Tensor], **arguments: Any) -> list[torch.Tensor]:
    out, lse = natten_mps.na2d(*given, kernel_size=(5, 4), return_lse=True, **arguments)
    return [out, lse, *torch.autograd.grad(out.sin().sum() + lse.cos().sum(), given)]


def test_it_is_the_default_on_the_cpu() -> None:
    with MPS.watch() as ran:
        with_gradients(tensors(1))
    assert ran == {"native"}
    families = ("fused", "additional_keys", "rpb", "key_mask", "attention", "split", "varlen", "modules")
    assert natten_mps.get_support_matrix()["native"] == {
        "available": True,
        "forward": True,
        "backward": True,
        "fusion": True,
        "varlen": True,
        "constraints": {"ranks": [1, 2, 3], "dtypes": list(DTYPES)},
        "limits": {},
        "reason": "",
        "ops": dict.fromkeys(families, ""),
    }
    assert "backend: native (" in natten_mps.explain("na2d", *tensors(1), kernel_size=5)


def test_instruction_set_and_threads_of_the_library() -> None:
    library = machine().native.library
    assert library.instruction_set in ("avx512", "avx2", "sse", "neon")
    assert 1 <= library.threads <= 4096


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_views_are_read_without_copies(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fused projection, heads first, every other token, strided channels, one item for the whole batch."""
    fused = torch.randn(2, 9, 8, 3, 2, 16, dtype=dtype)
    heads_first = torch.randn(2, 2, 9, 8, 16, dtype=dtype).movedim(1, 3)
    apart = torch.randn(2, 16, 9, 16, 2, dtype=dtype).permute(0, 2, 3, 4, 1)[:, :, ::2]
    views = [fused[:, :, :, 1], heads_first, apart, torch.randn(1, 9, 8, 2, 16, dtype=dtype).expand(2, -1, -1, -1, -1)]
    assert not any(view.is_contiguous() for view in views)
    seen = []
    call = cpu_library.CpuLibrary.call

    def watched(self: Any, function: str, problem: Any, given: dict[str, Any], threads: int) -> None:
        seen.append({name: address for name, (address, _) in given.items()})
        call(self, function, problem, given, threads)

    monkeypatch.setattr(cpu_library.CpuLibrary, "call", watched)
    for first in range(len(views)):
        given = [views[(first + i) % len(views)].detach().requires_grad_() for i in range(3)]
        found = with_gradients(given, backend="native")
        forward, backward = seen[-2:]
        for name, tensor in zip(("query", "key", "value"), given, strict=True):
            assert forward[name] == backward[name] == tensor.data_ptr()
        packed = [tensor.detach().contiguous().requires_grad_() for tensor in given]
        for a, b in zip(found, with_gradients(packed, backend="native"), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


THREADS = """
import json, sys, torch, natten_mps
torch.manual_seed(0)
q, k, v = (torch.randn(1, 33, 29, 4, 24, requires_grad=True) for _ in range(3))
xk, xv = (torch.randn(1, 7, 4, 24, requires_grad=True) for _ in range(2))
rpb = torch.randn(4, 9, 11, requires_grad=True)
leaves = [q, k, v, xk, xv, rpb]
out, lse = natten_mps.na2d(q, k, v, (5, 6), additional_keys=xk, additional_values=xv, rpb=rpb, return_lse=True,
                           backend="native")
found = [out, lse, *torch.autograd.grad(out.sin().sum() + lse.sum(), leaves)]
print(json.dumps([natten_mps._device.machine().native.library.threads,
                  [t.detach().numpy().tobytes().hex() for t in found]]))
"""


def in_a_process(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    """To the bit, sums over all queries included."""
    found = {count: json.loads(in_a_process(THREADS, NATTEN_NUM_THREADS=str(count))) for count in (1, 2, 5)}
    assert {count: threads for count, (threads, _) in found.items()} == {1: 1, 2: 2, 5: 5}
    assert found[1][1] == found[2][1] == found[5][1] and len(found[1][1]) == 8


def test_calls_from_several_threads() -> None:
    given = tensors(2)
    wanted = with_gradients(given, backend="native")
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: with_gradients(given, backend="native"), range(24)):
            for a, b in zip(found, wanted, strict=True):
                assert torch.equal(a, b)


def sums_of_kernels() -> list[float]:
    """Sums of what the kernels give, forward and backward; torch itself computes nothing that takes threads.

    Its OpenMP hangs in a forked process if the parent has used it.
    """
    given = tensors(2)
    outputs = natten_mps.na2d(*given, kernel_size=(5, 4), return_lse=True, backend="native")
    gradients = torch.autograd.grad(outputs, given, [torch.ones_like(output) for output in outputs])
    return [float(tensor.detach().numpy().sum()) for tensor in (*outputs, *gradients)]


def _forked(results: Any) -> None:
    results.put(sums_of_kernels())


def test_a_forked_process_computes() -> None:
    """Like a data loader's workers: the parent's threads do not exist there."""
    wanted = sums_of_kernels()
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=_forked, args=(results,))
    process.start()
    process.join(60)
    alive = process.is_alive()
    if alive:
        process.kill()
    assert not alive and process.exitcode == 0
    assert results.get() == wanted


def test_an_empty_batch() -> None:
    given = [*tensors(0)]
    rpb = torch.zeros(2, 9, 7, requires_grad=True)
    out = natten_mps.na2d(*given, kernel_size=(5, 4), rpb=rpb, backend="native")
    gradients = torch.autograd.grad(out.sum(), [*given, rpb])
    assert out.shape == (0, 9, 8, 2, 16) and gradients[0].shape == given[0].shape
    assert not gradients[3].any() and gradients[3].shape == rpb.shape


# --- without the library --------------------------------------------------------------------------------


@pytest.fixture
def without_library() -> Iterator[Machine]:
    """A machine whose install has no library."""
    with on_machine(Machine(native=NativeHost(file="no_such_library.so"))) as other:
        yield other


def test_without_the_library(without_library: Machine) -> None:
    """The pure backend runs, the plan gives the reason, and requesting the kernels is an error with that reason."""
    reason = "this install of natten-mps has no compiled CPU kernel for "
    with MPS.watch() as ran:
        with_gradients(tensors(1))
    assert ran == {"pure"}
    assert f"; native: {reason}" in natten_mps.explain("na2d", *tensors(1), kernel_size=5)
    assert natten_mps.get_support_matrix()["native"]["reason"].startswith(reason)
    with pytest.raises(NotImplementedError, match=f"^na2d: backend='native' cannot take this problem: {reason}"):
        with_gradients(tensors(1), backend="native")
    with pytest.raises(RuntimeError, match=f"^{reason}"):
        without_library.native.library  # noqa: B018 - raises


@pytest.mark.usefixtures("without_library")
def test_the_slow_backend_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Only where a call under 'auto' falls back to it, and not where it was requested."""
    natten_mps._metal.plan.backends.logged.clear()
    with_gradients(tensors(1), backend="pure")
    with_gradients(tensors(1), backend="dense")
    assert not caplog.records
    for _ in range(2):
        with_gradients(tensors(1))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message.startswith(
        "na2d: the pure backend runs on this CPU, many times slower than the C++ kernels: this install of natten-mps "
        "has no compiled CPU kernel for "
    )
    assert "--no-cache-dir --no-binary natten-mps natten-mps` builds them again; " in record.message


def test_a_library_that_does_not_load(tmp_path: Path) -> None:
    folder = tmp_path / cpu_library.FOLDER
    folder.mkdir()
    (folder / cpu_library.FILE).write_bytes(b"not a library")
    found = NativeHost(folders=[str(tmp_path)]).missing(torch.device("cpu"))
    assert found is not None and found.startswith("the compiled CPU kernel does not load (")


def test_a_library_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    present = cpu_library.ABI
    monkeypatch.setattr(cpu_library, "ABI", 77)
    found = NativeHost().missing(torch.device("cpu"))
    assert found is not None and found.endswith(f"has interface {present}, this package uses 77)")


def test_other_devices_are_not_for_the_cpu_kernel() -> None:
    assert NativeHost().missing(torch.device("mps")) == ("the CPU kernel runs on cpu tensors; these are on mps")


def test_the_library_and_the_ops_agree() -> None:
    """The interface that the library reports is made from the header's tables; the ops have their own records."""
    header = (Path(__file__).parents[2] / "shared-metal" / "cpu" / "natten_cpu.h").read_text()
    assert f"#define NATTEN_CPU_ABI {cpu_library.ABI}\n" in header
    interface = machine().native.library.interface
    assert interface.dtypes == DTYPES
    assert set(interface.functions) == {name for op in OPS.values() for name in (op.forward, op.backward)}
    assert all(f"int natten_{name}(" in header for name in interface.functions)
    operands = {operand for op in OPS.values() for operand in op.inputs + op.outputs}
    flat = {operand for operand in operands if not operand.batched or not operand.differentiable}  # a mask has no heads
    layouts = {o.name: "FLAT" if o in flat else "CHANNELS" if o.channels else "ROWS" for o in operands}
    assert interface.layouts == layouts | {f"{name}_grad": layout for name, layout in layouts.items()}
    assert all(hasattr(Problem, name) for name in interface.fields.keys() - {"dtype", "threads"})
