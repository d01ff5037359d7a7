"""Caches and verdicts: bounded, shared by threads, and emptied on demand."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import BY_NAME
from frameworks import FRAMEWORKS, Framework, Path, run

from natten_mps._metal.caches import Cache, cached, caches, clear_all
from natten_mps._metal.metal.launches import Launch
from natten_mps._metal.metal.source import Instance
from natten_mps._metal.plan import verdicts
from natten_mps._metal.plan.backend import METAL, PURE
from natten_mps._metal.plan.planner import Planner


def test_the_oldest_value_is_evicted() -> None:
    cache = Cache("squares", 3)
    assert [cache.get_or_make(n, lambda n=n: n * n) for n in (1, 2, 3, 4)] == [1, 4, 9, 16]
    assert cache.values() == [4, 9, 16] and cache.get(1) is None
    assert cache.keep(2, 5) == 4, "the first value stays"
    cache.clear()
    assert not len(cache) and cache in caches()


def test_threads_make_a_value_once() -> None:
    cache, made = Cache("slow", 8), []

    def make() -> object:
        made.append(time.sleep(0.01))
        return object()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: cache.get_or_make_once("key", make), range(32)))
        new = list(pool.map(lambda _: cache.add("logged"), range(32)))
    assert len(made) == 1 and len(set(map(id, found))) == 1 and new.count(True) == 1


def test_what_is_learned_is_bounded_and_forgotten() -> None:
    def launch(rank: int, simdgroups: int = 4) -> Launch:
        return Launch(Instance("na_fwd", "float32", rank, 32, 32, simdgroups=simdgroups), (1, 1, 1), 128, (), (), ())

    planner = Planner("here", (METAL.name, PURE.name))
    before = planner.verdicts
    planner.learn(verdicts.Failure(launch(1), "compile", "no"), verdicts.ThreadLimit(launch(2), 2))
    known = planner.verdicts
    assert known is not before and not before.failures, "verdicts that were read earlier do not change"
    assert str(known.failure_of([launch(1, simdgroups=1)])) == f"{launch(1).instance.name} does not compile: no"
    assert known.failure_of([launch(2)]) is None
    assert known.room([launch(2), launch(3)]) == 2 and known.room([launch(3)]) is None
    planner.learn(*(verdicts.Failure(launch(rank), "run", "no") for rank in range(verdicts.MAX_VERDICTS + 5)))
    assert len(planner.verdicts.failures) == verdicts.MAX_VERDICTS
    planner.forget()
    assert not planner.verdicts.failures and not planner.verdicts.limits and not len(planner.plans)


def test_a_function_is_called_once_for_equal_arguments() -> None:
    calls = []

    @cached("sums", 2)
    def total(a: int, b: int = 1) -> int:
        calls.append((a, b))
        return a + b

    assert [total(1), total(1), total(1, b=2), total(1, b=2), total(2, 2)] == [2, 2, 3, 3, 4]
    assert calls == [(1, 1), (1, 2), (2, 2)]
    assert total(1) == 2 and len(calls) == 4, "the oldest value was evicted"
    clear_all()
    assert total(2, 2) == 4 and len(calls) == 5


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_results_are_the_same_after_all_caches_were_emptied(framework: Framework) -> None:
    module = framework.module("_metal.caches")
    case, path = BY_NAME["img-stride"], Path(framework, "pure")
    once, _ = run.__wrapped__(path, case, "float32")
    filled = {cache.name for cache in module.caches() if len(cache)}
    assert filled >= {"plans", "box sizes", "tables of walks", "devices"}
    module.clear_all()
    assert [cache.name for cache in module.caches() if len(cache)] == []
    again, _ = run.__wrapped__(path, case, "float32")
    assert once.keys() == again.keys()
    for name, found in again.items():
        np.testing.assert_array_equal(found, once[name], err_msg=name)
    assert {cache.name for cache in module.caches() if len(cache)} >= {"plans", "box sizes", "tables of walks"}
