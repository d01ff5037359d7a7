"""The tests notice small changes of the kernels: a handful always, all of them with --all (see mutate.py)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from natten_mps._metal.source import HEADERS, KERNELS

from .mutate import HARMLESS, RULES, Mutant, mutants, stripped, verdict

MUTANTS = list(mutants())
# header, rule, number of the match: and what must find it.
HANDFUL = {
    ("walk.h", "no threadgroup barrier", 1): "emulator: data race",
    ("walk.h", "mask: <= for <, high", 0): "",
    ("coord.h", "rows of a patch all exist", 0): "",
    ("coord.h", "common: ends swapped, low", 0): "",
    ("stage.h", "no zeros behind a chunk", 0): "",
    ("na_bias.h", "no simdgroup barrier", 0): "emulator: data race",
}

# A bound or a decision of the run time: min, max, a choice by what a row sees or by the head dim, an if. One whose
# condition begins with a constant of the config is followed from what comes after it.
GUARD = re.compile(
    r"\bm(?:in|ax)\(|\b(?:sees|first|second|dim) \?"
    r"|\bif \((?!(?:!?(?:C::)?[A-Z]+(?: [!=]= \d)?|a == X|sizeof\(T\) == 4|condition)\))"
    r"(?:[^()\n]|\((?:[^()\n]|\([^()\n]*\))*\))*\)"
)
# Guards that no rule looks at, and why.
UNRULED = {
    ("na_fwd.h", "if (!b.full[j])"): "uniform: spares masking what is seen whole",
    ("walk.h", "if (count == NB)"): "spares the comparisons of the other branch",
}


def mutant_of(key: tuple[str, str, int]) -> Mutant:
    return next(mutant for mutant in MUTANTS if mutant.key == key)


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("key", HANDFUL, ids=lambda key: f"{key[0]}, {key[1]}")
def test_a_handful_is_found(key: tuple[str, str, int]) -> None:
    found = verdict(mutant_of(key))
    assert found and found.startswith(HANDFUL[key])


@pytest.mark.usefixtures("emulator")
def test_the_kernels_themselves_are_not_found() -> None:
    """What finds mutants finds nothing in the text as it is."""
    for file in ("walk.h", "na_bias.h"):
        assert verdict(Mutant(file, "unchanged", 0, 0, stripped(file))) == ""


@pytest.mark.all
@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("file", sorted({mutant.file for mutant in MUTANTS}))
def test_every_mutant_is_found_or_harmless(file: str) -> None:
    command = [sys.executable, "-m", "metal.mutate", "--only", f"{file}:"]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    count = sum(mutant.file == file for mutant in MUTANTS)
    assert len(done.stdout.splitlines()) == count + 1


def test_every_rule_matches_something() -> None:
    """A rule whose text is gone proves nothing; an excuse whose mutant is gone neither."""
    assert {mutant.rule for mutant in MUTANTS} == set(RULES)
    keys = [mutant.key for mutant in MUTANTS]
    assert len(set(keys)) == len(keys) >= 90 and set(HARMLESS) <= set(keys) and set(HANDFUL) <= set(keys)
    for mutant in MUTANTS:
        assert mutant.text != stripped(mutant.file) and mutant.file in HEADERS


def test_every_barrier_has_a_mutant() -> None:
    for file in HEADERS:
        barriers = sum(line.count("_barrier(") for line in stripped(file).splitlines())
        assert barriers == sum(mutant.file == file and mutant.rule.endswith("barrier") for mutant in MUTANTS)
    assert (KERNELS / "walk.h").read_text(encoding="ascii").count("threadgroup_barrier(") == 2


def test_every_guard_has_a_mutant() -> None:
    """No bound is checked in the kernels without a rule that takes the check away, but for those that say why."""
    guards, unruled = 0, set()
    for file in HEADERS:
        text = stripped(file)
        spans = [m.span() for pattern, _, files in RULES.values() if file in files for m in re.finditer(pattern, text)]
        for guard in GUARD.finditer(text):
            # window.h is held to window.py position by position (test_text.py).
            if file != "window.h":
                guards += 1
                if not any(first < guard.end() and guard.start() < end for first, end in spans):
                    unruled.add((file, guard.group()))
    assert unruled == set(UNRULED) and guards >= 60
