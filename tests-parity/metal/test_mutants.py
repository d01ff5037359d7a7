"""The tests notice small changes of the kernels: a handful always, all of them with --all (see mutate.py)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from natten_mps._metal.metal.source import HEADERS, KERNELS, MPP_HEADERS

from . import mutate
from .mpp_mutants import MPP_UNRULED
from .mutants import HARMLESS, OTHERWISE, RULES, Mutant, mutants, stripped, unchanged
from .mutate import NOTHING, Outcome, as_expected, isolated, tried

MUTANTS = list(mutants())
# (header, rule, number of the match) -> the check that must find it.
HANDFUL = {
    ("walk.h", "no threadgroup barrier", 1): "emulator: data race",
    ("run.h", "mask: <= for <, high", 0): "",
    ("flat.h", "nothing is carried", 0): "",
    ("coord.h", "rows of a patch all exist", 0): "",
    ("coord.h", "common: ends swapped, low", 0): "",
    ("stage.h", "no zeros behind a chunk", 0): "",
    ("na_rpb.h", "no simdgroup barrier", 0): "emulator: data race",
    ("mpp.h", "wide: the layout of M5 is assumed", 0): "",
}

# A bound or a decision at run time: min, max, a choice by what a row sees or by the head dim, an if, the bound of a
# loop. Ifs whose condition is a constant of the config are left out: the code after them is covered. So are unrolled
# loops: they run over registers, up to constants of the config, so no problem can exceed their bounds.
GUARD = re.compile(
    r"\bm(?:in|ax)\(|\b(?:sees|first|second|dim|store|exists|length) \?"
    r"|\bif \((?!(?:!?(?:C::)?[A-Z_]+(?: [!=]= \d)?|a == X|a != 0|axis == C::RANK - 1|sizeof\(T\) == 4|condition)"
    r"\))"
    r"(?:[^()\n]|\((?:[^()\n]|\([^()\n]*\))*\))*\)"
    r"|(?<!NA_UNROLL )\bfor \([^;]*;(?P<bound>[^;]*);"
)
# Guards that no mutant changes, and why.
UNRULED = {
    **{
        (file, "if (parts.end(count))"): "where parts end shows in rounding errors only (test_extremes.py)"
        for file in ("na_fwd.h", "na_bwd_dq.h", "na_bwd_dkv.h", "na_split.h")
    },
    ("sums.h", "if (PART == 0 || bricks < PART)"): "the same",
    ("na_split.h", "if (whole)"): "saves the search for slots without a key where there are none",
    ("coord.h", "if (b == 1)"): "saves a division",
    ("walk.h", "if (count == NB)"): "saves the comparisons of the other branch",
    **MPP_UNRULED,
}


def mutant_of(key: tuple[str, str, int]) -> Mutant:
    return next(mutant for mutant in MUTANTS if mutant.key == key)


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("key", HANDFUL, ids=lambda key: f"{key[0]}, {key[1]}")
def test_a_handful_is_found(key: tuple[str, str, int]) -> None:
    found = tried(mutant_of(key), optimised=True)
    assert found.how == "found" and found.words.startswith(HANDFUL[key])


@pytest.mark.usefixtures("emulator")
def test_nothing_is_found_in_the_kernels_themselves() -> None:
    """The checks that find mutants find nothing in the original text."""
    assert tried(unchanged("walk.h"), optimised=True) == NOTHING


def endless(mutant: Mutant) -> Outcome:
    while True:
        pass


def wrong(mutant: Mutant) -> Outcome:
    raise ValueError(mutant)


def killed(mutant: Mutant) -> Outcome:
    os.kill(os.getpid(), signal.SIGKILL)
    return NOTHING


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize(("trial", "how"), [(endless, "hangs"), (wrong, "breaks"), (killed, "breaks")])
def test_ends_of_a_mutant_are_distinguished(
    trial: Callable[[Mutant], Outcome], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutate, "outcome", trial)
    found, _ = isolated(MUTANTS[0], seconds=1)
    assert found.how == how


@pytest.mark.usefixtures("emulator")
def test_a_text_that_does_not_compile_is_not_found() -> None:
    found = tried(replace(unchanged("na_delta.h"), text=f"{stripped('na_delta.h')}\n#error planted"), optimised=True)
    assert found.how == "compiler" and "planted" in found.words


def test_only_findings_count() -> None:
    """A mutant must be found; one that is listed must end as listed."""
    outcomes = {how: Outcome(how, "words") for how in ("found", "compiler", "hangs", "breaks")} | {"nothing": NOTHING}
    listed = dict.fromkeys(HARMLESS, "nothing") | {key: how for key, (how, _) in OTHERWISE.items()}
    assert len(listed) == len(HARMLESS) + len(OTHERWISE)
    for mutant in MUTANTS:
        passed = [how for how, found in outcomes.items() if as_expected(mutant, found)[0]]
        assert passed == [listed.get(mutant.key, "found")]


@pytest.mark.all
@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("file", sorted({mutant.file for mutant in MUTANTS}))
def test_every_mutant_ends_as_it_should(file: str) -> None:
    command = [sys.executable, "-m", "metal.mutate", "--only", f"{file}:"]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    count = sum(mutant.file == file for mutant in MUTANTS)
    assert len(done.stdout.splitlines()) == count + 2


def test_every_rule_matches_something() -> None:
    """A rule that matches no text proves nothing, and neither does an exception without a mutant."""
    assert {mutant.rule for mutant in MUTANTS} == set(RULES)
    keys = [mutant.key for mutant in MUTANTS]
    assert len(set(keys)) == len(keys) >= 90 and {*HARMLESS, *OTHERWISE, *HANDFUL} <= set(keys)
    for mutant in MUTANTS:
        assert mutant.text != stripped(mutant.file) and mutant.file in (*HEADERS, *MPP_HEADERS)


def test_every_barrier_has_a_mutant() -> None:
    for file in (*HEADERS, *MPP_HEADERS):
        barriers = sum(line.count("_barrier(") for line in stripped(file).splitlines())
        assert barriers == sum(mutant.file == file and mutant.rule.endswith("barrier") for mutant in MUTANTS)
    assert (KERNELS / "walk.h").read_text(encoding="ascii").count("threadgroup_barrier(") == 2


def common_prefix(one: str, other: str) -> int:
    """Number of characters in the common prefix."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def changed(mutant: Mutant) -> tuple[int, int]:
    """The range ``[first, end)`` of the header's text that the mutant changes."""
    before, after = stripped(mutant.file), mutant.text
    first = common_prefix(before, after)
    return first, len(before) - common_prefix(before[first:][::-1], after[first:][::-1])


def touches(start: int, stop: int, first: int, end: int) -> bool:
    """Whether a change removes part of [start, stop), or inserts something into it."""
    return start < end and first < stop if first < end else start < first < stop


def test_every_guard_has_a_mutant() -> None:
    """Every bound check in the kernels is changed by a mutant, or is listed with the reason why not."""
    guards, unruled = 0, set()
    for file in (*HEADERS, *MPP_HEADERS):
        changes = [changed(mutant) for mutant in MUTANTS if mutant.file == file]
        for guard in GUARD.finditer(stripped(file)):
            # test_text.py compares window.h with window.py position by position.
            if file != "window.h":
                guards += 1
                start, stop = guard.span("bound") if guard["bound"] else guard.span()
                if not any(touches(start, stop, *change) for change in changes):
                    unruled.add((file, guard.group()))
    assert unruled == set(UNRULED) and guards >= 80
