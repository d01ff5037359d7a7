"""Would the tests notice? Small changes of the kernels' text, and what each of them is found by.

    cd tests-parity; python -m metal.mutate [--only SUBSTRING]

Mutants (:mod:`.mutants`) are compiled for a few instantiations and run on random problems
(:func:`.verify.launch`), which must find nothing in the text as it is. Found is what an assertion or the emulator
objects to. Whatever else ends a mutant is a failure of this test, and so is a mutant that nothing finds, unless
it is in :data:`.mutants.HARMLESS` or :data:`.mutants.OTHERWISE` with the reason; and so is an entry there that does
not hold.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import random
import resource
import signal
import sys
from dataclasses import dataclass
from typing import Any

from metal_emulator import CompileError, EmulatorFault, Library, compile_source

from natten_mps._metal.metal.source import Instance, library

from .launch import SCHEDULES
from .mutants import HARMLESS, OTHERWISE, Mutant, mutants, stripped, unchanged
from .pool import FUSED, KITS, LONG_KITS
from .verify import attention_of, launch, sample_of

# Problems on which a mutant is tried: compiled like the tests', and unoptimised.
PROBLEMS = {True: 14, False: 7}
LARGE = 4  # the problem whose logits are
# Processor time that a mutant may take: a multiple of that of the unchanged text, and at least this; and the latter's
# own limit.
TIMES, LEAST_SECONDS, MOST_SECONDS = 10, 60, 1200
# No compiler or launch takes this long for a good reason.
WALL_SECONDS = 3 * MOST_SECONDS

# Words of an assertion -> what it checks.
WORDS = {
    "is off by": "values",
    "reads beside": "reads outside",
    "otherwise than": "reads",
    "not read once": "reads",
    "written": "not written once",
    " products": "products",
    " barriers": "chunks",
    "not (": "bricks",
}


# Instantiations that run the mutants: kit -> its templates.
COMMON = {
    "seq-staged": ("na_fwd", "na_bwd_dkv"),
    "img-staged-bias": ("na_fwd", "na_bwd_dkv"),
    "img-direct": ("na_fwd", "na_bwd_dkv"),
    "vol-direct-grouped": ("na_fwd",),
    "vol-staged": ("na_bwd_dkv",),
    "vol-masked": ("na_fwd",),
}
JURIES: dict[str, dict[str, tuple[str, ...]]] = {
    "na_fwd.h": {
        "img-staged-bias": ("na_fwd",),
        "seq-staged": ("na_fwd",),
        "vol-wide": ("na_fwd",),
        "seq-small-chunk": ("na_fwd",),
        "img-masked-bias": ("na_fwd",),
    },
    "na_delta.h": {"seq-staged": ("na_delta",), "vol-staged": ("na_delta",)},
    "na_bwd_dq.h": {"img-staged-bias": ("na_bwd_dq",), "seq-staged": ("na_bwd_dq",), "img-masked-bias": ("na_bwd_dq",)},
    "na_bwd_dkv.h": {
        "seq-staged": ("na_bwd_dkv",),
        "img-96-192": ("na_bwd_dkv",),
        "img-staged-bias": ("na_bwd_dkv", "of_additional"),
        "vol-direct-grouped": ("na_bwd_dkv", "of_additional"),
        "seq-masked": ("na_bwd_dkv",),
    },
    "na_split.h": {
        "img-direct": ("zero", "na_av", "na_av_t"),
        "seq-small-chunk": ("na_qk", "na_av_t"),
        "img-staged-bias": ("na_qk",),
        "seq-staged": ("na_qk", "na_av"),
        "vol-staged": ("na_av",),
        "img-96-192": ("na_av_t",),
    },
    "na_rpb.h": {
        "seq-direct-bias": ("na_rpb", "slots"),
        "img-staged-bias": ("na_rpb",),
        "seq-staged": ("na_sum",),
        "img-bias": ("na_rpb",),
    },
    "walk.h": COMMON | {"seq-small-chunk": ("na_qk", "na_av_t"), "seq-direct-bias": ("na_fwd",)},
}


def jury(file: str) -> dict[str, dict[str, Instance]]:
    """Kit -> name -> instance, for mutants of a header."""
    kits = {kit.name: kit for kit in (*KITS, *LONG_KITS)}
    return {kit: {name: kits[kit].instances[name] for name in names} for kit, names in JURIES.get(file, COMMON).items()}


@dataclass(frozen=True)
class Verdict:
    """How a mutant ended: 'found', 'nothing' (was found), 'compiler', 'hangs' or 'breaks'; with details."""

    how: str
    words: str = ""


NOTHING = Verdict("nothing")


def verdict(mutant: Mutant) -> Verdict:
    """The verdict on a mutant. Compilers drop loads whose value is not used, so whatever passes is tried unoptimised
    too.
    """
    found = tried(mutant, optimised=True)
    return found if found != NOTHING else tried(mutant, optimised=False)


def tried(mutant: Mutant, optimised: bool) -> Verdict:
    """The verdict on one build of a mutant."""
    chosen = jury(mutant.file)
    source = library(tuple(dict.fromkeys(i for instances in chosen.values() for i in instances.values())))
    original = stripped(mutant.file)
    assert source.count(original) == 1
    try:
        built = compile_source(source.replace(original, mutant.text), optimised=optimised)
    except CompileError as error:
        return Verdict("compiler", next((line for line in str(error).splitlines() if "error:" in line), str(error)))
    for number, (name, instances) in itertools.product(range(PROBLEMS[optimised]), chosen.items()):
        found = _found(number, name, instances, built)
        if found:
            return Verdict("found", found if optimised else f"{found} (unoptimised)")
    return NOTHING


def _found(number: int, name: str, instances: dict[str, Instance], built: Library) -> str:
    """What is found in the launches of a kit's instances on one of its problems; '' if nothing."""
    kit, rng = next(kit for kit in (*KITS, *LONG_KITS) if kit.name == name), random.Random(f"{name}/{number}")
    attending = name == "seq-staged" and number % 2 and set(instances) <= {*FUSED, "na_delta"}
    # With large logits, the largest may belong to a column that a row does not see.
    large = {"scale": 60.0} if number == LARGE else {}
    sample = attention_of(kit, rng, number) if attending else sample_of(kit, rng, number, **large)
    for instance in instances.values():
        try:
            launch(sample, instance, built.kernel(instance.name), rng, SCHEDULES[number % 3])
        except EmulatorFault as fault:
            return "emulator: " + ", ".join(sorted(kind.value for kind in fault.report.kinds()))
        except AssertionError as wrong:
            return next((kind for words, kind in WORDS.items() if words in str(wrong)), "values")
    return ""


def isolated(mutant: Mutant, seconds: int) -> tuple[Verdict, float]:
    """The verdict from a separate process, which may crash or hang; and the processor time that it took.

    seconds: its limit of processor time; on a busy machine, too, this is enough for anything that ends at all.
    """
    context = multiprocessing.get_context("fork")
    queue: Any = context.SimpleQueue()

    def judge() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 10))
        found = verdict(mutant)
        queue.put((found, resource.getrusage(resource.RUSAGE_SELF).ru_utime))

    process = context.Process(target=judge)
    process.start()
    process.join(WALL_SECONDS)
    if process.is_alive():
        process.kill()
        return Verdict("breaks", f"not done after {WALL_SECONDS} s"), WALL_SECONDS
    if process.exitcode == -signal.SIGXCPU:
        return Verdict("hangs", f"not done after {seconds} s of processor time"), seconds
    if process.exitcode != 0:
        return Verdict("breaks", f"exit status {process.exitcode}"), 0
    found: tuple[Verdict, float] = queue.get()
    return found


def judged(mutant: Mutant, found: Verdict) -> tuple[bool, str]:
    """Whether a mutant ended as it should, with details."""
    wanted, reason = OTHERWISE.get(mutant.key, ("found", ""))
    if mutant.key in HARMLESS:
        wanted, reason = NOTHING.how, HARMLESS[mutant.key]
    said = ": ".join(filter(None, (found.how, found.words)))
    if found.how != wanted:
        return False, f"FAILS: {said}" + (f", but is listed: {wanted}: {reason}" if reason else "")
    return True, f"{said} ({reason})" if reason else said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutants whose name has this in it")
    wanted = parser.parse_args().only
    failures = 0
    chosen = (mutant for mutant in mutants() if wanted in str(mutant))
    for file, own in itertools.groupby(chosen, key=lambda mutant: mutant.file):
        found, took = isolated(unchanged(file), MOST_SECONDS)
        if found != NOTHING:
            print(f"{file} unchanged\tFAILS: {found.how}: {found.words}; what its mutants end by would say nothing")
            return 1
        print(f"{file} unchanged\tnothing, in {took:.0f} s", flush=True)
        for mutant in own:
            passed, words = judged(mutant, isolated(mutant, max(LEAST_SECONDS, round(TIMES * took)))[0])
            failures += not passed
            print(f"{mutant}#{mutant.number}\t{words}", flush=True)
    print(f"{failures} mutants fail")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
