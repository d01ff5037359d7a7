"""The same kernels compiled differently: fast math, sanitizers, unoptimised; and the same bits in every order."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cases import rounded
from metal_emulator import Kernel

from natten_mps._metal.metal.source import Instance

from .launch import SCHEDULES, kernels, launch_of, launch_of_sum, run, schedules
from .pool import KITS, LONG_KITS, Kit
from .verify import check_launch, problem_for, sample_of

pytestmark = pytest.mark.usefixtures("emulator")
VARIANTS: dict[str, dict[str, Any]] = {
    "fast_math": {"fast_math": True},
    # Both find: bounds of private arrays, overflow, shifts, alignment, conversions out of range.
    "address": {"sanitizer": "address"},
    "undefined": {"sanitizer": "undefined"},
    # This keeps loads that clang drops because their value is not selected; other compilers may keep them.
    "unoptimised": {"optimised": False},
}
# Together: float32 and float16, staged and direct, every template, rpb, additional keys, parts.
ALWAYS = ("img-staged-bias", "img-direct")
LAUNCHES = 24
# Parts and elements of the sums.
PARTIAL = (7, 600)


def parameters() -> list[Any]:
    """Two kits always, but only the one with the most selections unoptimised; the others with --all."""
    found = []
    for kit, variant in itertools.product((*KITS, *LONG_KITS), VARIANTS):
        always = kit.name in ALWAYS and (kit.rpb or variant != "unoptimised")
        marks = [pytest.mark.xdist_group(f"{kit}-{variant}"), *([] if always else [pytest.mark.all])]
        found.append(pytest.param(kit, variant, id=f"{kit}-{variant}", marks=marks))
    return found


@pytest.mark.parametrize(("kit", "variant"), parameters())
def test_compiled_differently(kit: Kit, variant: str) -> None:
    """The same bounds, the same work, and no finding of a sanitizer; each template in three schedules."""
    built = kernels(kit.instances.values(), **VARIANTS[variant])
    rng, met = random.Random(f"{kit}/{variant}"), set()
    for number in range(math.ceil(LAUNCHES / len(kit.instances))):
        sample = sample_of(kit, rng, number)
        for turn, instance in enumerate(kit.instances.values()):
            (schedule,) = schedules(number + turn)
            check_launch(sample, instance, built[instance], rng, schedule)
            met.add((instance, schedule))
    assert met == set(itertools.product(kit.instances.values(), SCHEDULES))


def bits(sample: Any, instance: Instance, kernel: Kernel, schedule: str, seed: int) -> list[bytes]:
    """The outputs of one launch, as raw memory."""
    tensors = sample.tensors
    if instance.template == "na_sum":
        launch = launch_of_sum(instance, sample.problem, *PARTIAL)
        tensors = {"partial": rounded(np.random.default_rng(0).standard_normal(PARTIAL), "float32")}
    else:
        parts = 2 if instance.template == "na_rpb" else 1
        launch = launch_of(instance, problem_for(instance, sample.problem), parts)
    done = run(launch, kernel, tensors, schedule=schedule, seed=seed)
    return [np.ascontiguousarray(laid.view).tobytes() for laid in done.outputs.values()]


@pytest.mark.parametrize(
    "kit", [pytest.param(kit, id=str(kit), marks=pytest.mark.xdist_group(str(kit))) for kit in (*KITS, *LONG_KITS)]
)
def test_equal_to_the_bit(kit: Kit) -> None:
    """Repeated, and in any order of threads, simdgroups and threadgroups."""
    built, rng = kernels(kit.instances.values()), random.Random(f"{kit}/bits")
    orders = [("forward", 0), ("forward", 0), ("reverse", 0), ("random", 1), ("random", 2), ("greedy", 0)]
    for number in range(2):
        sample = sample_of(kit, rng, number)
        for instance in kit.instances.values():
            found = [bits(sample, instance, built[instance], *order) for order in orders]
            assert all(other == found[0] for other in found[1:]), instance.name


@pytest.mark.parametrize("kit", [kit for kit in KITS if kit.team > 1], ids=str)
def test_teams_compute_the_same_bits(kit: Kit) -> None:
    """Two simdgroups that share a patch add the same terms in the same order as one that has it for itself."""
    alone = {instance: replace(instance, team=1) for instance in kit.instances.values()}
    built, rng = kernels((*alone, *alone.values())), random.Random(f"{kit}/alone")
    for number in range(3):
        sample = sample_of(kit, rng, number)
        for team, one in alone.items():
            both = [bits(sample, instance, built[instance], "random", number) for instance in (team, one)]
            assert both[0] == both[1], team.name
