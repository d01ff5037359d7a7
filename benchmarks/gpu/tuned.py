"""Tunes an NVIDIA GPU as `tune` tunes a Mac, and compares what the tuned planner then chooses with every alternative.

    python benchmarks/gpu/tuned.py build KERNELS.zip             # clang 19; no GPU
    python benchmarks/gpu/tuned.py time KERNELS.zip TIMES.tsv    # torch with CUDA, ptxas
    python benchmarks/gpu/judge.py TIMES.tsv                     # scipy; fits, chooses and reports

Of the problems that no cost is fitted to, every tiling that the planner considers is timed.
"""

import argparse
import os
import random
import re
import statistics
import sys
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs import ROOT

from natten_metal.metal.counts import inputs_of
from natten_metal.metal.launches import Launch, fills_words
from natten_metal.metal.source import Instance, library
from natten_metal.problem.mask import pairs
from natten_metal.problem.problem import Problem
from natten_metal.tuning.design import FITTED, HALF, SINGLE, Trial, problem, trials

sys.path.insert(0, str(ROOT / "tests-parity"))

# (rank, head dim, dtype) of the problems held out, how many of each, the seed, and how many pairs of a query and a key
# they may have. The seed was chosen, and the problems drawn, before any of them was timed.
KINDS = {
    (2, 64, HALF): 8,
    (2, 32, SINGLE): 6,
    (2, 128, HALF): 6,
    (2, 32, HALF): 4,
    (2, 64, SINGLE): 4,
    (1, 64, HALF): 4,
    (1, 128, HALF): 4,
    (1, 32, SINGLE): 4,
    (3, 32, HALF): 6,
    (3, 64, HALF): 6,
}
SEED, PAIRS = 886755, (3e6, 1e8)
# Registers per thread that ptxas may use: one limit for all kernels, so that as many simdgroups of each are resident.
REGISTERS = 128
ROUNDS = 3
# Kernels of one translation: reading the headers takes as long as compiling two of them.
TOGETHER = 12
COLUMNS = ("set", "problem", "template", "candidate", "us", "apart", "registers", "spill_bytes")


def drawn(rng: random.Random, rank: int, dim: int, dtype: str) -> Problem:
    """A random problem."""
    low, high, widest = {1: (2048, 32768, 600), 2: (32, 144, 63), 3: (8, 28, 13)}[rank]
    while True:
        dilation = rng.choice((1, 1, 2, 4)) if rank < 3 else 1
        length = rng.randint(low, high) // 8 * 8
        cube = rng.random() < 0.5
        shape = (length,) * rank if cube else tuple(rng.randint(low, high) // 8 * 8 for _ in range(rank))
        if rank == 3:
            window: Any = tuple(min(rng.randint(3, widest), n) for n in shape)
        else:
            window = min(rng.randint(3, widest), min(shape) // dilation)
        options = rng.choice((1, 2)), rng.choice((2, 4, 8)), dilation, rank == 1 and rng.random() < 0.4
        one = problem(shape, window, dim, dtype, *options)
        if PAIRS[0] < pairs(one) * one.batch * one.heads < PAIRS[1]:
            return one


def held_out(seed: int = SEED) -> tuple[Problem, ...]:
    """The problems that no cost is fitted to."""
    rng = random.Random(seed)
    return tuple(drawn(rng, *kind) for kind, count in KINDS.items() for _ in range(count))


def wide(launch: Launch) -> Launch:
    """The launch with 16-byte staging copies, which fresh contiguous tensors with full head dims allow."""
    return replace(launch, instance=replace(launch.instance, wide=fills_words(launch)))


def chosen() -> list[tuple[str, Trial]]:
    """All trials, and whether they are 'fitted' or 'held out'."""
    found = [("fitted", trial) for trial in trials(FITTED)]
    return found + [("held out", trial) for trial in trials(held_out(), every=True)]


def instances(of: Iterable[Trial]) -> list[Instance]:
    """Every kernel, each once."""
    return list(dict.fromkeys(wide(trial.launch).instance for trial in of))


def translated(some: Sequence[Instance]) -> list[str]:
    """The PTX of some kernels, compiled together: a text for each."""
    from build import without_dead_shuffles
    from metal_emulator.to_ptx import entry_name, to_ptx

    head, *parts = re.split(r"(?=^\.(?:visible \.entry|func) )", to_ptx(library(tuple(some))), flags=re.MULTILINE)
    entries = {part.split("(")[0].split()[-1]: part for part in parts if part.startswith(".visible")}
    # A large kernel's body may stay a function of its own: a part that has its name.
    functions = [part for part in parts if part.startswith(".func")]
    texts = []
    for instance in some:
        own = [part for part in functions if re.search(rf"{instance.name}P", part.split("(")[0])]
        texts.append(head + "".join(map(without_dead_shuffles, [*own, entries[entry_name(instance.name)]])))
    return texts


def build(target: Path) -> None:
    """Compile every kernel to PTX."""
    todo = instances(trial for _, trial in chosen())
    parts = [todo[start : start + TOGETHER] for start in range(0, len(todo), TOGETHER)]
    with ThreadPoolExecutor(os.cpu_count()) as pool, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as kernels:
        for part, texts in zip(parts, pool.map(translated, parts), strict=True):
            for instance, text in zip(part, texts, strict=True):
                kernels.writestr(f"{instance.name}.ptx", text)
    print(len(todo), "kernels")


def measure(source: Path, target: Path) -> None:
    """Time every trial: the median of three rounds, each the median of replays; and compare results with the rule's."""
    import run as runner
    import torch
    from metal_emulator.to_ptx import assemble
    from run import DTYPES, Driver, buffers_of, seconds

    runner.REPLAY_SECONDS, runner.LAUNCH_SECONDS = 0.012, 0.002  # of each trial and round

    cores = torch.cuda.get_device_properties(0).multi_processor_count
    began, driver, kernels = time.time(), Driver(), zipfile.ZipFile(source)
    todo = instances(trial for _, trial in chosen())
    texts = {i.name: kernels.read(f"{i.name}.ptx").decode() for i in todo}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        cubins = list(pool.map(lambda i: assemble(texts[i.name], max_registers=REGISTERS), todo))
    figures = {i.name: cubin for i, cubin in zip(todo, cubins, strict=True)}
    for name, cubin in figures.items():
        driver.load(name, REGISTERS, cubin.code)
    print(f"{len(todo)} kernels assembled, {time.time() - began:.0f} s", flush=True)
    times: dict[int, list[float]] = {}
    apart: dict[int, float] = {}
    everything = chosen()
    for _ in range(ROUNDS):
        made: dict[tuple[Problem, str], dict[str, Any]] = {}
        for number, (_, trial) in enumerate(everything):
            launch, key = wide(trial.launch), (trial.problem, trial.template.name)
            first = key not in made
            if first:
                torch.manual_seed(0)
                given = inputs_of(trial.problem, launch)
                names = dict(launch.inputs)
                made = {
                    key: {names[a]: (0.3 * torch.randn(s, device="cuda")).to(DTYPES[d]) for a, (s, d) in given.items()}
                }
            known = dict(made[key])
            run = driver.launcher(launch, REGISTERS, buffers_of(launch, known))
            times.setdefault(number, []).append(seconds(run) * 1e6)
            found = {output.name: known[output.name] for output in launch.outputs}
            if first:
                made[key]["="] = found
            apart[number] = max(distance(found[name], made[key]["="][name]) for name in found)
        print(f"{time.time() - began:.0f} s", flush=True)
        machine = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}, {cores} cores"
        target.write_text(table(machine, everything, times, apart, figures))
    print(f"{len(everything)} trials, the largest difference of a result from the rule's: {max(apart.values()):.2g}")


def table(
    machine: str,
    everything: list[tuple[str, Trial]],
    times: Mapping[int, Sequence[float]],
    apart: Mapping[int, float],
    figures: Mapping[str, Any],
) -> str:
    """What was measured, as tab-separated values."""
    rows = [f"# {machine}", "\t".join(COLUMNS)]
    for number, (kind, trial) in enumerate(everything):
        cubin = figures[wide(trial.launch).instance.name]
        own = (kind, trial.words, trial.template.name, written(trial), f"{statistics.median(times[number]):.5g}")
        rows.append("\t".join((*own, f"{apart[number]:.2g}", str(cubin.registers), str(cubin.spill_bytes))))
    return "\n".join(rows) + "\n"


def distance(found: Any, wanted: Any) -> float:
    """Largest difference relative to the largest value."""
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


def written(trial: Trial) -> str:
    """The tiling in one word: patch, heads, simdgroups; staged, flat or direct; how many share a patch, if not one."""
    c = trial.candidate
    patch = "x".join(map(str, c.patch[3 - trial.problem.rank :]))
    return f"{patch}h{c.heads}g{c.simdgroups}{'s' if c.stage else 'f' if c.flat else 'd'}" + (
        f"t{c.team}" if c.team > 1 else ""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("build", "time"))
    parser.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    {"build": build, "time": measure}[options.what](*options.files)


if __name__ == "__main__":
    main()
