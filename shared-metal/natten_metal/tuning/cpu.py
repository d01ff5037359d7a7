"""``tune --cpu``: which instruction set, and how many threads, the CPU kernels are fastest with on this machine.

Both are read from the environment once in a process, so each setting is timed in processes of its own, one setting
after another and all of them again, so that a slow minute does not fall on one alone.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ..problem.problem import Problem
from .design import SINGLE, problem
from .measure import Run, seconds

INSTRUCTION_SETS = {"x86_64": ("avx512", "avx2", "sse"), "AMD64": ("avx512", "avx2", "sse")}
# Small and large windows, every rank, one small call; float32.
PROBLEMS = {
    "2-D 56x56 K7 D32": problem((56, 56), 7, 32, SINGLE, heads=2),
    "2-D 64x64 K13 D64": problem((64, 64), 13, 64, SINGLE, heads=2),
    "1-D 8192 K5 D32": problem((8192,), 5, 32, SINGLE),
    "1-D 4096 K255 D64": problem((4096,), 255, 64, SINGLE, heads=2),
    "3-D 12x16x16 K5 D64": problem((12, 16, 16), 5, 64, SINGLE, heads=2),
    "2-D 8x8 K3 D32": problem((8, 8), 3, 32, SINGLE, heads=2),
}
ROUNDS = 3
# A setting is worth a line in somebody's profile if it saves at least this much.
WORTH = 0.03


class Setting(NamedTuple):
    """Environment variables of a process; none is the default."""

    instruction_set: str = ""
    threads: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """The variables. A package that asks for as many threads as its framework has must have them to ask for."""
        found = {"NATTEN_CPU_ISA": self.instruction_set} if self.instruction_set else {}
        return found | (
            {n: str(self.threads) for n in ("NATTEN_NUM_THREADS", "OMP_NUM_THREADS")} if self.threads else {}
        )

    @property
    def words(self) -> str:
        """What a user would set."""
        shown = (f"{n}={v}" for n, v in self.environment.items() if n.startswith("NATTEN"))
        return " ".join(shown) or "default"


class CpuTuning(NamedTuple):
    """Milliseconds by setting and problem; settings that did not run here in some round, and why. A setting is in one
    of both. If the default is among those that failed, nothing else was timed after it.
    """

    times: Mapping[Setting, Mapping[str, float]]
    failed: Mapping[Setting, str]

    def against_default(self, setting: Setting) -> float:
        """The geometric mean of a setting's times over those of the default."""
        own, default = self.times[setting], self.times[Setting()]
        return statistics.geometric_mean(own[name] / default[name] for name in default)

    @property
    def best(self) -> Setting:
        """The fastest setting, or the default if no other is worth it."""
        fastest = min(self.times, key=self.against_default)
        return fastest if self.against_default(fastest) < 1 - WORTH else Setting()


def settings() -> list[Setting]:
    """The default, each instruction set of this kind of processor, and fewer threads than there are cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = sorted({count for count in (1, cores // 4, cores // 2, cores) if count > 0})
    sets = INSTRUCTION_SETS.get(platform.machine(), ())
    return [Setting(), *(Setting(name) for name in sets), *(Setting("", count) for count in counts)]


def tune_cpu(module: str, progress: Callable[[int, int, str], None], rounds: int = ROUNDS) -> CpuTuning:
    """Time every setting. module: of the package, 'natten_mps'."""
    wanted, times, failed = settings(), dict[Setting, dict[str, float]](), dict[Setting, str]()
    for turn in range(rounds):
        for number, setting in enumerate(wanted):
            progress(turn * len(wanted) + number, rounds * len(wanted), setting.words)
            if setting in failed:
                continue
            found = in_a_process(module, setting)
            if isinstance(found, str):
                failed[setting] = found
                times.pop(setting, None)
                if setting == Setting():  # there is nothing to compare others with
                    return CpuTuning(times, failed)
                continue
            best = times.setdefault(setting, found)
            times[setting] = {name: min(best[name], found[name]) for name in found}
    progress(rounds * len(wanted), rounds * len(wanted), "")
    return CpuTuning(times, failed)


def in_a_process(module: str, setting: Setting) -> dict[str, float] | str:
    """Milliseconds of each problem with a setting, or the last line of why it does not run."""
    kept = {n: v for n, v in os.environ.items() if n not in ("NATTEN_CPU_ISA", "NATTEN_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-m", f"{module}._tools.cpu_times"],
        env=kept | setting.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    found: dict[str, float] = json.loads(done.stdout)
    return found


def print_times(attend: Callable[[Problem], Run], names: Sequence[str] = tuple(PROBLEMS)) -> None:
    """What such a process does. attend(problem): a call of the package's CPU kernels, ready to run."""
    print(json.dumps({name: 1e3 * seconds(attend(PROBLEMS[name])) for name in names}))
