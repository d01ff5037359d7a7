"""The CPU kernels, compared with compiled flex_attention and with dense attention with a mask in one run.

    python benchmarks/cpu.py                      # every row; about 15 minutes on two cores
    python benchmarks/cpu.py --rows K13 --seconds 1

Builds the library with CMake into a temporary folder, unless --library names one. Each row is measured in a
process of its own, all contenders in turns, float32, batch 1; compiling is not timed. Outputs are compared with those
of dense attention first, gradients are not: the tests do that. Wall-clock medians in milliseconds go to
benchmarks/results/cpu-<instruction set>.tsv (--out):

    forward, backward      the library, called through ctypes on heads-last tensors into outputs made beforehand
    avx2, avx2 backward    the same, held to AVX2 (x86-64 only)
    flex, dense            torch's compiled flex_attention with a block mask; scaled_dot_product_attention with
                           the neighborhood as a boolean mask. Heads-first tensors, masks made beforehand
    floor                  reading query, key and value and writing out at the speed at which this machine copies large
                           tensors; those of a row may fit its caches, and so be faster
    GFLOP/s                useful work of the forward: two products per (query, key) pair
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from natten_mps._metal.cpu.library import FILE, CpuLibrary
from natten_mps._metal.plan.chip import chip_name
from natten_mps._metal.problem import mask
from natten_mps._metal.problem.problem import Problem
from natten_mps._tensors import TorchTables

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("forward", "backward", "avx2", "avx2 backward", "flex", "dense", "floor")
RATIOS = ("GFLOP/s", "backward/forward", "x flex", "x dense", "x flex avx2")


@dataclass(frozen=True)
class Row:
    """One problem; float32, batch 1."""

    shape: tuple[int, ...]
    kernel_size: tuple[int, ...]
    dim: int
    heads: int
    stride: int = 1
    dilation: int = 1
    causal: bool = False

    @property
    def name(self) -> str:
        parts = [f"{len(self.shape)}-D {'x'.join(map(str, self.shape))} K{'x'.join(map(str, self.kernel_size))}"]
        parts += [f"stride {self.stride}"] * (self.stride > 1) + [f"dilation {self.dilation}"] * (self.dilation > 1)
        return " ".join([*parts, *["causal"] * self.causal, f"D{self.dim} H{self.heads}"])

    @property
    def problem(self) -> Problem:
        rank, per_axis = len(self.shape), lambda value: (value,) * len(self.shape)
        assert rank == len(self.kernel_size)
        return Problem(
            "na",
            1,
            self.shape,
            self.shape,
            self.heads,
            self.heads,
            self.dim,
            self.dim,
            self.kernel_size,
            per_axis(self.stride),
            per_axis(self.dilation),
            per_axis(self.causal),
            self.dim**-0.5,
            "float32",
        )


ROWS = (
    Row((56, 56), (7, 7), 32, 2),
    Row((56, 56), (7, 7), 32, 2, dilation=4),
    Row((64, 64), (13, 13), 64, 2),
    Row((64, 64), (16, 16), 64, 2, stride=4),
    Row((4096,), (255,), 64, 2),
    Row((8192,), (5,), 32, 4),
    Row((4096,), (256,), 64, 2, causal=True),
    Row((12, 16, 16), (5, 5, 5), 64, 2),
    Row((8, 24, 24), (4, 12, 12), 128, 1, stride=4),
    Row((16, 16, 16), (3, 3, 3), 32, 4),
)


# --- contenders -----------------------------------------------------------------------------------------------


def loaded(path: Path, isa: str | None) -> CpuLibrary:
    """The library, held to an instruction set if one is given; it reads the variable once."""
    if isa:
        os.environ["NATTEN_CPU_ISA"] = isa
    library = CpuLibrary(path)
    found = library.instruction_set
    os.environ.pop("NATTEN_CPU_ISA", None)
    assert isa in (None, found), f"requested {isa}, got {found}"
    return library


def ours(library: CpuLibrary, row: Row) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Forward and backward on the heads-last tensors of :func:`tensors`."""
    problem, rows = row.problem, (1, *row.shape, row.heads)
    given = dict(zip(("query", "key", "value", "out_grad"), tensors(row), strict=True))
    made = {"out": torch.empty_like(given["query"]), "lse": torch.empty(rows)}
    grads = {f"{name}_grad": torch.empty_like(given[name]) for name in ("query", "key", "value")}

    def call(function: str, names: dict[str, Tensor]) -> None:
        library.call(function, problem, {name: (t.data_ptr(), t.stride()) for name, t in names.items()})

    def forward() -> Tensor:
        call("forward", {name: t for name, t in given.items() if name != "out_grad"} | made)
        return made["out"]

    def backward() -> Tensor:
        call("backward", given | made | grads)
        return grads["query_grad"]

    return forward, backward


def tensors(row: Row) -> list[Tensor]:
    """Query, key, value and the gradient of the output, ``[1, *shape, heads, dim]``."""
    torch.manual_seed(0)
    return [torch.randn(1, *row.shape, row.heads, row.dim) for _ in range(4)]


def torchs(row: Row) -> dict[str, Callable[[], Tensor]]:
    """Compiled flex_attention and dense attention, heads first."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    heads_first = [t.flatten(1, -3).transpose(1, 2).contiguous() for t in tensors(row)[:3]]
    seen, tokens = mask.neighborhood_mask(row.problem, TorchTables(torch.device("cpu"))), math.prod(row.shape)
    # Looked-up tables favour flex_attention: with arithmetic on the indices it takes a third longer.
    block_mask = create_block_mask(lambda b, h, q, k: seen[q, k], None, None, tokens, tokens, device="cpu")
    flex = torch.compile(flex_attention, dynamic=False)

    def compiled() -> Tensor:
        with torch.no_grad():
            return flex(*heads_first, block_mask=block_mask)

    def dense() -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=seen)

    return {"flex": compiled, "dense": dense}


# --- measuring ------------------------------------------------------------------------------------------------


def medians(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median milliseconds of each call, taken in turns for ``seconds`` per contender (at least 5 rounds).

    In its turn each is called twice and timed once: after a call, OpenMP threads spin for some milliseconds and would
    slow the next contender down.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    while len(times["forward"]) < 5 or time.perf_counter() - began < seconds * len(calls):
        for name, call in calls.items():
            call()
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(taken) for name, taken in times.items()}


def copy_bandwidth(seconds: float = 0.5) -> float:
    """Bytes per second, reads and writes together, of copies too large for any cache; the best of several."""
    source = torch.ones(2**25)
    target, best, began = torch.empty_like(source), math.inf, time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


def measure(row: Row, path: Path, threads: int, seconds: float) -> dict[str, float]:
    """Milliseconds by column, and the figures derived from them."""
    torch.set_num_threads(threads)
    library = loaded(path, None)
    forward, backward = ours(library, row)
    calls: dict[str, Callable[[], Any]] = {"forward": forward, "backward": backward}
    if platform.machine() in ("x86_64", "AMD64"):
        # A library reads its variable when it is first loaded; a copy of the file counts as another library.
        copy = path.with_name(f"avx2-{os.getpid()}-{FILE}")
        shutil.copy(path, copy)
        calls["avx2"], calls["avx2 backward"] = ours(loaded(copy, "avx2"), row)
        copy.unlink()
    calls |= torchs(row)
    wanted = calls["dense"]().transpose(1, 2).reshape(1, *row.shape, row.heads, row.dim)
    for name in ("forward", "avx2", "flex"):
        if name in calls:
            found = calls[name]() if name != "flex" else calls[name]().transpose(1, 2).reshape(wanted.shape)
            error = (found - wanted).abs().max().item()
            assert error < 1e-4, f"{row.name}: {name} is {error} away from dense attention"
    found = medians(calls, seconds)
    found["floor"] = 1e3 * 4 * tensors(row)[0].nbytes / copy_bandwidth()
    found["GFLOP/s"] = mask.flops(row.problem) / found["forward"] / 1e6
    found["backward/forward"] = found["backward"] / found["forward"]
    found["x flex"], found["x dense"] = found["flex"] / found["forward"], found["dense"] / found["forward"]
    if "avx2" in found:
        found["x flex avx2"] = found["flex"] / found["avx2"]
    return found


def build(folder: Path) -> Path:
    """The library, compiled into ``folder``."""
    source = ROOT / "shared-metal" / "cpu"
    subprocess.run(["cmake", "-S", source, "-B", folder], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", folder, "--parallel", "2"], check=True, stdout=subprocess.DEVNULL)
    return folder / FILE


def table(found: dict[str, dict[str, float]], notes: list[str]) -> str:
    """Tab-separated text; geometric means of the multi-dimensional rows at the end."""
    lines = [f"# {note}" for note in notes] + ["\t".join(("problem", *COLUMNS, *RATIOS))]
    for name, row in found.items():
        lines.append("\t".join([name, *(f"{row[c]:.4g}" if c in row else "" for c in (*COLUMNS, *RATIOS))]))
    several = [row for name, row in found.items() if not name.startswith("1-D")]
    if several:
        means = {c: math.exp(statistics.fmean(math.log(row[c]) for row in several)) for c in ("x flex", "x dense")}
        lines.append(
            f"# geometric means of the 2-D and 3-D rows: {means['x flex']:.3g}x flex, {means['x dense']:.3g}x dense"
        )
    ratios = [row["backward/forward"] for row in found.values()]
    lines.append(f"# median backward/forward: {statistics.median(ratios):.3g}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="only the rows whose name contains this")
    parser.add_argument("--threads", type=int, default=2, help="threads of the library and of torch (default 2)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time per contender and row (default 2)")
    parser.add_argument("--library", type=Path, help="a built library; default: build it")
    parser.add_argument(
        "--out", type=Path, help="the table (default benchmarks/results/cpu-<instruction set>.tsv; with --rows: none)"
    )
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not any(arguments.rows in row.name for row in ROWS):
        parser.error(f"no row has '{arguments.rows}' in its name; rows: {', '.join(row.name for row in ROWS)}")
    if arguments.row is not None:
        print(json.dumps(measure(ROWS[arguments.row], arguments.library, arguments.threads, arguments.seconds)))
        return
    os.environ["NATTEN_NUM_THREADS"] = str(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.library or build(Path(folder))
        isa, found = loaded(path, None).instruction_set, {}
        loads = [os.getloadavg()[0]]
        for number, row in enumerate(tqdm(ROWS, desc="rows", disable=None)):
            if arguments.rows in row.name:
                own = ["--row", str(number), "--library", path, "--threads", arguments.threads]
                command = [sys.executable, __file__, *own, "--seconds", arguments.seconds]
                done = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True)
                found[row.name] = json.loads(done.stdout.splitlines()[-1])
                loads.append(os.getloadavg()[0])
    notes = [
        f"{chip_name()}, {isa}, {arguments.threads} threads, torch {torch.__version__}",
        f"float32, batch 1, wall-clock medians in ms; load average during the run {min(loads):.1f} to {max(loads):.1f}",
    ]
    text = table(found, notes)
    out = arguments.out or (None if arguments.rows else ROOT / "benchmarks" / "results" / f"cpu-{isa}.tsv")
    if out:
        out.parent.mkdir(exist_ok=True)
        out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
