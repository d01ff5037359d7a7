"""Would the tests notice? Small changes of the kernels' text, and what finds each of them.

    cd tests-parity; python -m metal.mutate [--only PREFIX]

Mutants (:mod:`.mutants`) are compiled for a few instances and run on random problems
(:func:`.verify.launch`), which must find nothing in the text as it is. Found is what an assertion or the emulator
objects to. A mutant that ends in any other way, or that nothing finds, is a failure of this test, unless it is in
:data:`.mutants.HARMLESS` or :data:`.mutants.OTHERWISE` with the reason; and so is an entry there that is wrong.
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

from .far import differing, far_instance
from .launch import SCHEDULES
from .mpp_mutants import MPP_TRIED_ON
from .mutants import HARMLESS, OTHERWISE, Mutant, mutants, stripped, unchanged
from .pool import FUSED, KITS, LONG_KITS, MPP_KITS
from .verify import attention_of, check_launch, sample_of

# Problems on which a mutant is tried: compiled as in the other tests, and unoptimised.
PROBLEMS = {True: 14, False: 7}
LARGE = 4  # the problem with large logits
UNSEEN = 5  # the problem of rank 3 that has keys beyond all that its queries see, on two axes at once
# Rules that change nothing unless tensors are wider than 2^32 elements.
FAR = ("offsets of 32 bits",)
# Processor time that a mutant may take: a multiple of that of the unchanged text, and at least so many seconds; and the
# limit of the unchanged text.
TIMES, MIN_SECONDS, MAX_SECONDS = 10, 60, 1200
# No compiler or launch takes this long for a good reason.
WALL_SECONDS = 3 * MAX_SECONDS

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


# The instances that run the mutants: kit -> its templates.
COMMON = {
    "seq-staged": ("na_fwd", "na_bwd_dkv"),
    "img-staged-bias": ("na_fwd", "na_bwd_dkv"),
    "img-direct": ("na_fwd", "na_bwd_dkv"),
    "vol-direct-grouped": ("na_fwd",),
    "vol-staged": ("na_bwd_dkv",),
    "vol-masked": ("na_fwd",),
}
TRIED_ON: dict[str, dict[str, tuple[str, ...]]] = {
    "na_fwd.h": {
        "img-staged-bias": ("na_fwd",),
        "seq-staged": ("na_fwd",),
        "vol-wide": ("na_fwd",),
        "seq-small-chunk": ("na_fwd",),
        "img-masked-bias": ("na_fwd",),
        "img-flat": ("na_fwd",),
    },
    "na_delta.h": {"seq-staged": ("na_delta",), "vol-staged": ("na_delta",)},
    "team.h": {"img-team": ("na_bwd_dq", "na_bwd_dkv"), "vol-team-flat": ("na_bwd_dq", "na_bwd_dkv")},
    "na_bwd_dq.h": {
        "img-staged-bias": ("na_bwd_dq",),
        "seq-staged": ("na_bwd_dq",),
        "img-masked-bias": ("na_bwd_dq",),
        "img-flat": ("na_bwd_dq",),
        "img-team": ("na_bwd_dq",),
    },
    "na_bwd_dkv.h": {
        "img-team": ("na_bwd_dkv",),
        "seq-staged": ("na_bwd_dkv",),
        "img-96-192": ("na_bwd_dkv",),
        "img-staged-bias": ("na_bwd_dkv", "of_additional"),
        "vol-direct-grouped": ("na_bwd_dkv", "of_additional"),
        "seq-masked": ("na_bwd_dkv",),
        "img-flat": ("na_bwd_dkv",),
    },
    "na_split.h": {
        "img-direct": ("zero", "na_av", "na_av_t"),
        "seq-small-chunk": ("na_qk", "na_av_t"),
        "img-staged-bias": ("na_qk",),
        "seq-staged": ("na_qk", "na_av"),
        "vol-staged": ("na_av",),
        "img-96-192": ("na_av_t",),
        "img-flat": ("na_qk", "na_av", "na_av_t"),
    },
    "na_rpb.h": {
        "seq-direct-bias": ("na_rpb", "slots"),
        "img-staged-bias": ("na_rpb",),
        "seq-staged": ("na_sum",),
        "img-bias": ("na_rpb",),
        "img-masked-bias": ("na_rpb",),
        "img-flat-bias": ("na_rpb",),
    },
    "stage.h": COMMON
    | {
        "vol-direct-grouped": ("na_fwd", "na_bwd_dkv"),
        "seq-wide-grouped": ("na_fwd",),
        "seq-256": ("na_fwd",),
        "vol-flat": ("na_fwd",),
    },
    "walk.h": COMMON | {"seq-small-chunk": ("na_qk", "na_av_t"), "seq-direct-bias": ("na_fwd",)},
    "run.h": COMMON | {"seq-small-chunk": ("na_qk", "na_av_t"), "seq-direct-bias": ("na_fwd",)},
    "flat.h": {
        "img-flat-bias": ("na_fwd", "na_bwd_dkv", "slots"),
        "vol-flat": ("na_fwd", "na_av_t"),
        "vol-flat-masked": ("na_bwd_dq", "na_bwd_dkv"),
    },
    **MPP_TRIED_ON,
}
ALL_KITS = (*KITS, *LONG_KITS, *MPP_KITS)


def instances_for(file: str) -> dict[str, dict[str, Instance]]:
    """Kit -> name -> instance, for mutants of a header."""
    kits = {kit.name: kit for kit in ALL_KITS}
    return {
        kit: {name: kits[kit].instances[name] for name in names} for kit, names in TRIED_ON.get(file, COMMON).items()
    }


@dataclass(frozen=True)
class Outcome:
    """How a mutant ended: it was 'found', 'nothing' was found, the 'compiler' refused it, it 'hangs' or 'breaks'."""

    how: str
    words: str = ""


NOTHING = Outcome("nothing")


def outcome(mutant: Mutant) -> Outcome:
    """How a mutant ends. Compilers drop loads whose value is not used, so what passes is tried unoptimised too."""
    if mutant.rule in FAR:
        return tried_far(mutant)
    found = tried(mutant, optimised=True)
    return found if found != NOTHING else tried(mutant, optimised=False)


def tried_far(mutant: Mutant) -> Outcome:
    """How a mutant ends that only tensors wider than 2^32 elements show: their results must be those of packed ones."""
    instance = far_instance("img-flat", "na_bwd_dkv")
    text = library((instance,)).replace(stripped(mutant.file), mutant.text)
    kernel = compile_source(text, checked=False).kernel(instance.name)
    wrong = differing(instance, "img-flat", kernel, axis=1)
    return Outcome("found", f"far: {', '.join(wrong)}") if wrong else NOTHING


def tried(mutant: Mutant, optimised: bool) -> Outcome:
    """How one build of a mutant ends."""
    chosen = instances_for(mutant.file)
    source = library(tuple(dict.fromkeys(i for instances in chosen.values() for i in instances.values())))
    original = stripped(mutant.file)
    assert source.count(original) == 1
    try:
        built = compile_source(source.replace(original, mutant.text), optimised=optimised)
    except CompileError as error:
        return Outcome("compiler", next((line for line in str(error).splitlines() if "error:" in line), str(error)))
    for number, (name, instances) in itertools.product(range(PROBLEMS[optimised]), chosen.items()):
        found = _found(number, name, instances, built)
        if found:
            return Outcome("found", found if optimised else f"{found} (unoptimised)")
    return NOTHING


def _found(number: int, name: str, instances: dict[str, Instance], built: Library) -> str:
    """What is found in launches of a kit's instances on one of its problems; '' if nothing is."""
    kit, rng = next(kit for kit in ALL_KITS if kit.name == name), random.Random(f"{name}/{number}")
    attending = name == "seq-staged" and number % 2 and set(instances) <= {*FUSED, "na_delta"}
    # With large logits, the largest may belong to a column that a row does not see.
    changed: dict[str, Any] = {"scale": 60.0} if number == LARGE else {}
    if number == UNSEEN and kit.rank == 3:
        changed = case_of_unseen_keys()
    sample = attention_of(kit, rng, number) if attending else sample_of(kit, rng, number, **changed)
    for instance in instances.values():
        try:
            check_launch(sample, instance, built.kernel(instance.name), rng, SCHEDULES[number % 3])
        except EmulatorFault as fault:
            return "emulator: " + ", ".join(sorted(kind.value for kind in fault.report.kinds()))
        except AssertionError as wrong:
            return next((kind for words, kind in WORDS.items() if words in str(wrong)), "values")
    return ""


def case_of_unseen_keys() -> dict[str, Any]:
    """Fields of a case: a piece whose queries are the first of two axes. Tiles of other keys have boxes of no columns,
    whose ends are apart by less than nothing on both axes.
    """
    length, ones = 16, (1, 1, 1)
    window = {"kernel_size": (1, 1, 3), "stride": ones, "dilation": ones, "is_causal": (False,) * 3}
    piece = ((0, 1), (0, 1), (0, length)), ((0, 4), (0, 4), (0, length))
    return {"shape": (4, 4, length), "piece": piece} | window


def isolated(mutant: Mutant, seconds: int) -> tuple[Outcome, float]:
    """How a mutant ends in a separate process, which may crash or hang; and the processor time that it took.

    seconds: a limit on its processor time, which does not depend on how busy the machine is.
    """
    context = multiprocessing.get_context("fork")
    queue: Any = context.SimpleQueue()

    def try_it() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 10))
        found = outcome(mutant)
        queue.put((found, resource.getrusage(resource.RUSAGE_SELF).ru_utime))

    process = context.Process(target=try_it)
    process.start()
    process.join(WALL_SECONDS)
    if process.is_alive():
        process.kill()
        return Outcome("breaks", f"not done after {WALL_SECONDS} s"), WALL_SECONDS
    if process.exitcode == -signal.SIGXCPU:
        return Outcome("hangs", f"not done after {seconds} s of processor time"), seconds
    if process.exitcode != 0:
        return Outcome("breaks", f"exit status {process.exitcode}"), 0
    found: tuple[Outcome, float] = queue.get()
    return found


def as_expected(mutant: Mutant, found: Outcome) -> tuple[bool, str]:
    """Whether a mutant ended as it should, with details."""
    wanted, reason = OTHERWISE.get(mutant.key, ("found", ""))
    if mutant.key in HARMLESS:
        wanted, reason = NOTHING.how, HARMLESS[mutant.key]
    details = ": ".join(filter(None, (found.how, found.words)))
    if found.how != wanted:
        return False, f"FAILS: {details}" + (f", but is listed: {wanted}: {reason}" if reason else "")
    return True, f"{details} ({reason})" if reason else details


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only mutants whose name (HEADER:LINE RULE) begins with this")
    wanted = parser.parse_args().only
    failures = 0
    chosen = (mutant for mutant in mutants() if str(mutant).startswith(wanted))
    for file, own in itertools.groupby(chosen, key=lambda mutant: mutant.file):
        found, took = isolated(unchanged(file), MAX_SECONDS)
        if found != NOTHING:
            print(f"{file} unchanged\tFAILS: {found.how}: {found.words}; outcomes of mutants would mean nothing")
            return 1
        print(f"{file} unchanged\tnothing, in {took:.0f} s", flush=True)
        for mutant in own:
            passed, words = as_expected(mutant, isolated(mutant, max(MIN_SECONDS, round(TIMES * took)))[0])
            failures += not passed
            print(f"{mutant}#{mutant.number}\t{words}", flush=True)
    print(f"{failures} mutants fail")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
