"""What ``plan`` says of a GPU that is not here: kernels, exact counts, times, and what could run instead."""

from __future__ import annotations

from typing import Any

import pytest
from frameworks import FRAMEWORKS, Framework
from plan_calls import CALLS, M4, plan_of, planned

from natten_mps._metal.plan import costs
from natten_mps._metal.tools import forecast


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_a_gpu_that_is_not_here(framework: Framework, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exact counts of every launch, the model's time, and dense attention's beside it."""
    options = CALLS[name][0].split()
    found = planned(framework, [*options, "--device", M4, "--compare"], capsys)
    assert found["device"] == {"name": M4, "kind": "gpu"}
    assert found["costs"] == {"device": M4, "measured": False, "error": costs.table()["error"]}
    own, prices = framework.module("_metal.plan.costs"), framework.module("_metal.plan.costs").predicted(M4)
    problem, plan = plan_of(framework, options)
    assert found["backend"] == plan.backend == framework.module("_backends").ORDER[0]
    flops, micros = framework.module("_metal.problem.mask").flops, framework.module("_metal.metal.costs").microseconds
    for direction, program in (("forward", plan.forward), ("backward", plan.backward_without_lse)):
        launches, counts = found[direction]["launches"], own.launch_counts(program)
        assert [each["kernel"] for each in launches] == [launch.instance.name for launch in program.launches] != []
        for each, launch, exact in zip(launches, program.launches, counts, strict=True):
            assert (each["threadgroups"], each["threads"]) == (list(launch.grid), launch.threads)
            assert each["counts"] == {field: getattr(exact, field) for field in forecast.COUNTS}
            assert each["counts"]["bricks"] == launch.bricks and each["counts"]["full"] == launch.full
            assert each["predicted_us"] == micros(launch.instance, exact, prices) > 0
        total = sum(each["predicted_us"] for each in launches)
        assert found[direction]["predicted_us"] == pytest.approx(total) == own.predict(program, prices)
        executed = 1024 * sum(launch.bricks * launch.instance.products for launch in program.launches)
        useful = flops(problem, direction == "backward")
        assert found[direction]["executed_over_useful"] == pytest.approx(executed / useful) and executed > useful
    _check_all_keys(framework, options, problem, found["all_keys"])
    _check_alternatives(framework, plan, found)


def _check_all_keys(framework: Framework, options: list[str], problem: Any, found: Any) -> None:
    """The times are those of attention of as many tokens to all keys; a split op has none."""
    if problem.op in ("qk", "av"):
        assert found is None
        return
    costs = framework.module("_metal.plan.costs")
    chosen = ("--heads", "--kv-heads", "--head-dim", "--head-dim-v", "--dtype", "--batch")
    same = [word for at, word in enumerate(options) if word in chosen or options[at - 1] in chosen]
    lengths = ["--shape", str(problem.queries), "--key-shape", str(problem.keys + problem.additional)]
    _, plan = plan_of(framework, ["--op", "attention", *same, *lengths])
    times = [costs.predict(program, costs.predicted(M4)) for program in (plan.forward, plan.backward_without_lse)]
    assert [found["forward_us"], found["backward_us"]] == pytest.approx(times)


def _check_alternatives(framework: Framework, plan: Any, found: dict[str, Any]) -> None:
    backends = {each["backend"]: each for each in found["backends"]}
    assert list(backends) == list(framework.module("_backends").ORDER)
    assert [name for name, each in backends.items() if each["chosen"]] == [found["backend"]]
    for direction in ("forward", "backward"):
        assert backends[found["backend"]][f"{direction}_us"] == found[direction]["predicted_us"]
        # Kernels of Metal have a model, and nothing else has.
        metal = {name for name, each in backends.items() if each["computes_with"] == "the Metal kernels"}
        assert {name for name, each in backends.items() if each[f"{direction}_us"]} == {
            name for name in metal if backends[name]["reason"] is None
        }
    programs = (("forward", plan.forward), ("backward", plan.backward_without_lse))
    walks = [
        (direction, launch, printed)
        for direction, program in programs
        for launch, printed in zip(program.launches, found[direction]["launches"], strict=True)
        if launch.instance.record.walks and not launch.instance.of_additional
    ]
    assert len(found["tilings"]) == len(walks) > 0
    for listed, (direction, launch, printed) in zip(found["tilings"], walks, strict=True):
        assert (listed["direction"], listed["template"]) == (direction, launch.instance.template)
        (chosen,) = [each for each in listed["candidates"] if each["chosen"]]
        assert printed["tiling"] == {name: chosen[name] for name in printed["tiling"]}
        for name in ("bricks", "full", "staged_bytes"):
            assert printed["counts"][name] == chosen[name]
        assert printed["predicted_us"] == pytest.approx(chosen["predicted_us"])
        times = [each["predicted_us"] for each in listed["candidates"]]
        assert times == sorted(times) and len(times) > 1


# Kernels by their full names: f at the end for flat bricks, s for columns that are staged.
NAMES = {
    "--shape 20 20 --kernel-size 3": [
        "na_fwd_r2_float16_d64_v64_p124h1_g3_c104_n1_a0_t0_f",
        "na_delta_r2_float16_d0_v0_p118h1_g4_c32_n2_a0_t0_",
        "na_bwd_dq_r2_float16_d64_v64_p124h1_g3_c104_n1_a0_t0_f",
        "na_bwd_dkv_r2_float16_d64_v64_p124h1_g3_c104_n1_a0_t0_f",
    ],
    "--shape 64 64 --kernel-size 24 --dtype float32 --head-dim 30": [
        "na_fwd_r2_float32_d32_v32_p181h1_g8_c104_n1_a0_t0_s",
        "na_delta_r2_float32_d0_v0_p118h1_g4_c32_n2_a0_t0_",
        "na_bwd_dq_r2_float32_d32_v32_p181h1_g8_c104_n1_a0_t0_s",
        "na_bwd_dkv_r2_float32_d32_v32_p124h1_g4_c104_n1_a0_t0_",
    ],
}


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("options", NAMES)
def test_a_kernels_full_name_is_told(framework: Framework, options: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(framework, [*options.split(), "--device", M4], capsys)
    launches = found["forward"]["launches"] + found["backward"]["launches"]
    assert [each["kernel"] for each in launches] == NAMES[options]
    for each in launches:
        if each["tiling"] is not None:
            assert (each["tiling"]["flat"], each["tiling"]["stage"]) == (
                "_f" in each["kernel"][-2:],
                "_s" in each["kernel"][-2:],
            )
    assert f"kernel {launches[0]['kernel']}: " in found["explain"]


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_every_launch_is_counted_once(
    framework: Framework, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts, asked = framework.module("_metal.metal.counts"), []
    counts_of = counts.counts_of

    def counted(problem: Any, launch: Any) -> Any:
        if problem.op == "na":
            asked.append(launch.instance.name)
        return counts_of(problem, launch)

    monkeypatch.setattr(counts, "counts_of", counted)
    found = planned(framework, ["--shape", "12", "14", "--kernel-size", "5", "--device", M4], capsys)
    launches = found["forward"]["launches"] + found["backward"]["launches"]
    assert asked == [each["kernel"] for each in launches] and len(asked) == 4


def test_only_tilings_that_the_planner_may_choose_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Of wide heads MLX's host launches few simdgroups, and a kernel of torch's may allow fewer than there are."""
    options = ["--shape", "40", "40", "--kernel-size", "7", "--head-dim", "128", "--device", M4, "--compare"]
    mps, mlx = FRAMEWORKS
    assert (mps.name, mlx.name) == ("mps", "mlx")

    def most(framework: Framework, *more: str) -> dict[str, int]:
        found = planned(framework, [*options, *more], capsys)["tilings"]
        # a team of simdgroups shares a patch
        return {walk["template"]: max(c["simdgroups"] * c["team"] for c in walk["candidates"]) for walk in found}

    assert set(most(mps).values()) == {8} and set(most(mlx, "--backend", "fast_metal").values()) == {4}
    machine, verdicts = mps.module("_device").machine(), mps.module("_metal.plan.verdicts")
    _, plan = plan_of(mps, options[:-3])
    try:
        machine.learn(verdicts.ThreadLimit(plan.backward.launches[1], 2))
        assert most(mps) == {"na_fwd": 8, "na_bwd_dq": 2, "na_bwd_dkv": 2}
    finally:
        machine.forget()
