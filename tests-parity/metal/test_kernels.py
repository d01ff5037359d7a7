"""Single launches on random problems, against the float64 reference and the work that they have to do."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest

from .launch import SCHEDULES, kernels, schedules
from .pool import FUSED, KITS, LONG_KITS, Kit
from .verify import attention_of, check_launch, sample_of
from .work import work_of

pytestmark = pytest.mark.usefixtures("emulator")
# Random launches of all KITS in the default run, and with --all; LONG_KITS come on top, with fewer.
LAUNCHES, ALL_LAUNCHES = 1000, 20_000
SHARES = ALL_LAUNCHES // LAUNCHES
LONG_LAUNCHES = 24
# Kits for full attention: sequences of any head dims, without rpb or additional keys.
ATTENDING = [kit for kit in KITS if kit.rank == 1 and not kit.rpb and not kit.additional and "wide" not in kit.reads]


def shares() -> list[Any]:
    """Share 0 of every kit always runs, the others with --all."""
    found = []
    for share in range(SHARES):
        for kit in (*KITS, *LONG_KITS):
            marks = [pytest.mark.all] if share else []
            found.append(
                pytest.param(kit, share, id=f"{kit}-{share}", marks=[*marks, pytest.mark.xdist_group(str(kit))])
            )
    return found


def samples_of(kit: Kit) -> int:
    """Problems of one share; each of the kit's instances is launched on all of them."""
    launches = LONG_LAUNCHES if kit in LONG_KITS else math.ceil(LAUNCHES / len(KITS))
    return math.ceil(launches / len(kit.instances))


@pytest.mark.parametrize(("kit", "share"), shares())
def test_random_problems(kit: Kit, share: int, request: pytest.FixtureRequest) -> None:
    """No fault, results within bounds, exactly the work, every output written once; each template in three schedules.

    Schedules take turns; with --all, the problems of the default run are launched in each of them.
    """
    every = share == 0 and request.config.getoption("--all")
    built = kernels(kit.instances.values())
    rng = random.Random(f"{kit}/{share}")
    met = set()
    for number in range(samples_of(kit)):
        sample = sample_of(kit, rng, number)
        for turn, instance in enumerate(kit.instances.values()):
            state = rng.getstate()
            for schedule in schedules(number + turn, every):
                rng.setstate(state)
                check_launch(sample, instance, built[instance], rng, schedule)
                met.add((instance, schedule))
    assert met == set(itertools.product(kit.instances.values(), SCHEDULES))


@pytest.mark.parametrize("kit", [pytest.param(k, id=str(k), marks=pytest.mark.xdist_group(str(k))) for k in ATTENDING])
def test_full_attention(kit: Kit) -> None:
    """Windows longer than an axis, different numbers of queries and keys, keys that no query sees."""
    built = kernels(kit.instances.values())
    rng = random.Random(f"{kit}/attention")
    for number in range(12):
        sample = attention_of(kit, rng, number)
        for name, instance in kit.instances.items():
            if name in (*FUSED, "na_delta"):
                check_launch(sample, instance, built[instance], rng, *schedules(number))


def test_the_pool_is_wide() -> None:
    """At most 99 instances, and every option in more than one of them."""
    pool = [instance for kit in KITS for instance in kit.instances.values()]
    assert len(set(pool)) <= 99
    walks = [instance for instance in pool if instance.record.walks]
    for option in (
        {"rank": 1},
        {"rank": 2},
        {"rank": 3},
        {"dtype": "float32"},
        {"dtype": "float16"},
        {"dtype": "bfloat16"},
        {"stage": False},
        {"stage": True, "wide": False},
        {"wide": True},
        {"stage": False, "wide": True},
        {"heads": 2},
        {"heads": 4},
        {"heads": 8},
        {"rpb": True},
        {"masked": True},
        {"flat": True},
        {"team": 2},
        {"team": 2, "flat": True},
        {"team": 2, "masked": True},
        {"flat": True, "rank": 2},
        {"flat": True, "rank": 3, "masked": True},
        {"additional": True},
        {"of_additional": True},
        {"bricks": 1},
        {"bricks": 2},
        {"bricks": 3},
    ):
        having = [i for i in walks if all(getattr(i, name) == value for name, value in option.items())]
        assert len(having) >= 2, option
    for rank in (1, 2, 3):
        for dtype in ("float32", "float16", "bfloat16"):
            assert any((i.rank, i.dtype) == (rank, dtype) for i in walks)
        templates = {i.template for i in pool if i.rank == rank}
        assert templates >= {"na_fwd", "na_delta", "na_bwd_dq", "na_bwd_dkv"}
    assert {i.slots for i in pool if i.template == "na_rpb"} == {True, False}


def test_random_problems_are_of_every_kind() -> None:
    """They include rows that are staged in several pieces, idle simdgroups, and patches that are not full."""
    found = set()
    for kit in KITS:
        rng = random.Random(f"{kit}/0")
        for number in range(40):
            problem = kit.problem(str(number), rng).problem(kit.dtype)
            for instance in kit.instances.values():
                if not instance.record.walks or instance.of_additional:
                    continue
                work = work_of(problem, instance)
                x = work.axes[-1]
                found |= {"cut rows"} if instance.stage and x.staged.max() > x.staged.min() + 1 else set()
                found |= {"idle simdgroups"} if x.patches % instance.simdgroups else set()
                found |= {"ragged patches"} if any(axis.idle for axis in work.axes) else set()
                executed, full = work.bricks
                found |= {f"full bricks in rank {kit.rank}"} if full else set()
                found |= {"only full bricks"} if full == executed else set()
                found |= {"causal"} if any(problem.is_causal) else set()
    full_bricks = {f"full bricks in rank {rank}" for rank in (1, 2, 3)}
    assert found == full_bricks | {"cut rows", "idle simdgroups", "ragged patches", "only full bricks", "causal"}
