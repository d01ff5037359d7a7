"""Whether the CPU kernels have become slower or faster: ./dev.sh bench --guard

    python benchmarks/guard.py                  # judge by results/guard.tsv; about three minutes
    python benchmarks/guard.py --write          # measure, and write the table's rows for these kernels anew

A time says nothing without its machine, so each is taken as a ratio to the time of a product of matrices with as many
operations, by the package's framework, in turns in the same run. Both run on one thread, and what counts is the time of
the processor that the process used: waiting for other programs on a busy machine is none of it. What is judged is the
median over several repeats of each one's median ratio, within a wide band (a factor of BAND either way) around the
committed one: other machines with the same instruction set have other ratios. The exit status is 1 if a ratio has left
the band, or if the table has no row for the kernels that run here.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import time
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from natten_mps._metal.bench import measure, results
from natten_mps._metal.bench.problems import BY_NAME, Named
from natten_mps._metal.bench.ways import Inputs, useful_flops, ways

# Of torch, of MLX's BLAS, and of the CPU kernels.
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NATTEN_NUM_THREADS")
TABLE = Path(__file__).parent / "results" / "guard.tsv"
COLUMNS = ("package", "kernels", "problem", "direction", "ratio")
# Quick forms of every rank: small and large windows, dilation, stride, grouped heads on a causal axis.
PROBLEMS = ("nat", "dinat", "flux", "hunyuan-strided", "ltx", "all-in-one", "mistral")
DIRECTIONS = (results.FORWARD, results.TRAINING)
BAND = 1.75
REPEATS, SECONDS = 5, 0.25
# A product of [rows, INNER] and [INNER, INNER]; of problems with more operations, so many are multiplied as in this.
INNER, MOST_OPERATIONS = 256, 4e8


class Key(NamedTuple):
    """A row of the table: what was measured. kernels: the backend and its instruction set."""

    package: str
    kernels: str
    problem: str
    direction: str


def measured(subject: Any, named: Named, direction: str) -> float:
    """The package's time over that of a product with as many operations: the median of the repeats' medians."""
    training = direction == results.TRAINING
    problem = named.problem("float32")
    inputs, own = Inputs(named, "float32", subject), ways(named, problem, subject, "auto")[0]
    operations = useful_flops(problem, direction)
    rows = max(1, round(min(operations, MOST_OPERATIONS) / (2 * INNER**2)))
    share = 2 * rows * INNER**2 / operations
    calls = {
        "own": inputs.call(own, own.make(inputs.of(own)), subject, training),
        "product": measure.product(subject, (rows, INNER, INNER), "float32"),
    }
    estimates = {
        name: min(measure.timed(call, subject.wait, time.process_time)[1] for _ in range(3))
        for name, call in calls.items()
    }
    found = []
    for _ in range(REPEATS):
        times = measure.interleaved(calls, subject.wait, SECONDS, estimates, time.process_time)
        found.append(statistics.median(times["own"]) / statistics.median(times["product"]) * share)
    return statistics.median(found)


def read(path: Path) -> dict[Key, float]:
    """The committed ratios."""
    with path.open(newline="") as file:
        lines = csv.DictReader((line for line in file if not line.startswith("#")), delimiter="\t")
        return {Key(*(row[name] for name in COLUMNS[:4])): float(row["ratio"]) for row in lines}


def table(ratios: Mapping[Key, float]) -> str:
    """The file's text."""
    head = "# Times over those of a matrix product with as many operations, float32: written by benchmarks/guard.py\n"
    lines = ["\t".join(COLUMNS), *("\t".join((*key, f"{ratios[key]:.3g}")) for key in sorted(ratios))]
    return head + "\n".join(lines) + "\n"


def verdict(found: float, committed: float | None) -> str:
    """Whether a ratio has left the band; '' if it is inside it, or if there is nothing to judge it by."""
    if committed is None:
        return ""
    if not found <= committed * BAND:
        return f"SLOWER: {found / committed:.2f} times the table's; the band ends at {BAND:g}"
    if found < committed / BAND:
        return f"FASTER: {committed / found:.2f} times as fast as in the table, which should say so (--write)"
    return ""


def judge(found: Mapping[Key, float], committed: Mapping[Key, float]) -> tuple[list[str], int]:
    """The lines to print, and the exit status."""
    lines, bad = [], 0
    for key, ratio in found.items():
        known = committed.get(key)
        said = verdict(ratio, known)
        bad += bool(said)
        numbers = f"{ratio:9.3g} {'-' if known is None else f'{known:.3g}':>9}"
        lines.append(
            f"{key.package:<11} {key.kernels:<18} {key.problem:<16} {key.direction:<9} {numbers}  {said}".rstrip()
        )
    missing = len(found.keys() - committed.keys())
    if missing:
        lines.append(f"{missing} of {len(found)} rows are not in the table")
    return lines, 1 if bad or missing else 0


def run(packages: Iterable[str]) -> dict[Key, float]:
    """All ratios of this machine's CPU."""
    ratios: dict[Key, float] = {}
    work = [(package, name, direction) for package in packages for name in PROBLEMS for direction in DIRECTIONS]
    for package, name, direction in tqdm(work, desc="guard", disable=None):
        subject = import_module(f"{package.replace('-', '_')}._tools.bench").subject(True)
        with subject.on_device():
            ratio = measured(subject, BY_NAME[name].form(True), direction)
        kernels = subject.instruction_set or sys.exit(f"{package} has no CPU kernels here")
        ratios[Key(package, kernels, name, direction)] = ratio
    return ratios


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", default=["natten-mps", "natten-mlx"], metavar="PACKAGE")
    parser.add_argument("--write", action="store_true", help="write the table's rows of these kernels anew")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the ratios that were found")
    arguments = parser.parse_args()
    if any(os.environ.get(name) != "1" for name in ONE_THREAD):  # libraries read them when they are loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | dict.fromkeys(ONE_THREAD, "1"))
    committed = read(TABLE) if TABLE.exists() else {}
    found = run(arguments.packages)
    lines, status = judge(found, committed)
    print("package     kernels            problem          direction     found     table", *lines, sep="\n")
    if arguments.out:
        arguments.out.write_text(table(found))
    if arguments.write:
        TABLE.write_text(table(committed | found))
        print(f"wrote {TABLE.name}")
        return 0
    return status


if __name__ == "__main__":
    sys.exit(main())
