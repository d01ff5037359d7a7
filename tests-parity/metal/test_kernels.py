"""Kernels launched directly: random problems, against the float64 reference and the work that they must do."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tolerances
from cases import Case, inputs, rounded, slot_inputs
from metal_emulator import Kernel

from natten_mps._metal import reference
from natten_mps._metal.mask import slot_keys
from natten_mps._metal.problem import Problem
from natten_mps._metal.source import TRANSPOSED, WALKING, Instance

from .launch import SCHEDULES, Run, kernels, run, step_of, sum_step
from .pool import KITS, Kit
from .work import every_bricks, work_of

pytestmark = pytest.mark.usefixtures("emulator")
Array = Any
# Random launches of all kits together in the default run, and with --all.
LAUNCHES, ALL_LAUNCHES = 1000, 20_000
SHARES = ALL_LAUNCHES // LAUNCHES
# Templates that make the weights anew, from lse.
RECOMPUTING = ("na_bwd_dq", "na_bwd_dkv", "na_bias")
# Tensors that a template holds a row of in each patch, and those whose columns it stages.
ROWS = {"na_fwd": ("q",), "na_bwd_dq": ("q", "out_grad"), "na_bwd_dkv": ("k", "v"), "na_qk": ("q",)}
COLUMNS = {
    "na_fwd": ("k", "v"), "na_bwd_dq": ("k", "v"), "na_bwd_dkv": ("q", "out_grad"), "na_qk": ("k",),
    "na_av": ("v",), "na_av_t": ("x",),
}  # fmt: skip


class Sample:
    """A random case: its tensors by name, and what every kernel must make of them."""

    def __init__(self, case: Case, dtype: str) -> None:
        self.case, self.dtype = case, dtype
        self.problem = case.problem(dtype)
        arrays = inputs(case, dtype)
        given = {name: a for name, a in arrays.items() if name not in ("d_out", "d_lse")}
        out, lse = reference.forward(self.problem, **given)
        out = rounded(out, dtype)
        delta = (arrays["d_out"] * out).sum(-1)
        # Kernels of the backward start from what the forward's kernels would have left.
        saved = {"out": out, "lse": rounded(lse, "float32"), "delta": rounded(delta - arrays["d_lse"], "float32")}
        self.delta = {True: delta - arrays["d_lse"], False: delta}
        self.tensors = arrays | saved | slot_inputs(case, dtype)
        _, self.held = slot_keys(self.problem)
        self.held = self.held.reshape(1, *case.shape, 1, -1)
        # What lies in slots without a key must go nowhere.
        for name in ("attn", "d_logits"):
            self.tensors[name] = np.where(self.held, self.tensors[name], np.nan)
        self._expected: dict[str, dict[str, tolerances.Expected]] = {}

    def expected(self, kind: str) -> dict[str, tolerances.Expected]:
        """The truth and bounds of fused attention or of a split op."""
        if kind not in self._expected:
            function = {"fused": tolerances.fused, "qk": tolerances.split_qk, "av": tolerances.split_av}[kind]
            self._expected[kind] = function.__wrapped__(self.case, self.dtype)
        return self._expected[kind]


def sample_of(kit: Kit, rng: random.Random, number: int) -> Sample:
    return Sample(kit.problem(f"{kit}/{number}/{rng.random()}", rng), kit.dtype)


def problem_for(instance: Instance, problem: Problem) -> Problem:
    """The problem as the template poses it: split ops scale by what their callers say."""
    if instance.template in ("na_av", "na_av_t"):
        return replace(problem, scale=1.0)
    return problem


def check_values(sample: Sample, done: Run) -> None:
    """Every output lies within the bounds of :mod:`tolerances`."""
    instance, found = done.step.instance, {name: laid.values for name, laid in done.outputs.items()}
    fused = sample.expected("fused") if not instance.slots and instance.template not in ("na_qk", "na_av") else {}
    if instance.template == "na_fwd":
        wanted = {"out": fused["out"], "lse": fused["lse"]}
    elif instance.template == "na_bwd_dq":
        wanted = {"query_grad": fused["query"]}
    elif instance.template == "na_bwd_dkv":
        names = ("additional_keys", "additional_values") if instance.every else ("key", "value")
        wanted = dict(zip(("key_grad", "value_grad"), (fused[name] for name in names), strict=True))
        found = {name: values.sum(0) for name, values in found.items()} if instance.every else found
    elif instance.template == "na_bias":
        wanted = {"partial": sample.expected("qk")["rpb"] if instance.slots else fused["rpb"]}
        found = {"partial": found["partial"].sum(0).reshape(wanted["partial"].truth.shape)}
    elif instance.template == "na_qk":
        wanted = {"logits": sample.expected("qk")["logits"]}
        if instance.empty_zero:
            assert (found["logits"][~np.broadcast_to(sample.held, found["logits"].shape)] == 0).all()
            found = {"logits": np.where(sample.held, found["logits"], -np.inf)}
    elif instance.template == "na_av":
        wanted = {"out": sample.expected("av")["out"]}
    else:
        assert instance.template == "na_av_t"
        wanted = {"out": sample.expected("av")["value"]}
    if instance.template in RECOMPUTING and not instance.slots:
        wanted = {name: with_lse_rounding(expected, sample) for name, expected in wanted.items()}
    tolerances.assert_within(found, wanted, f"{instance.name}, {sample.problem}")


def with_lse_rounding(expected: tolerances.Expected, sample: Sample) -> tolerances.Expected:
    """The bound of what is recomputed as exp(logit - lse): lse was rounded, which a dense softmax does not do.

    It matters where windows are so small that the baseline makes no error at all.
    """
    rounding = np.finfo(np.float32).eps * np.abs(sample.tensors["lse"]).max(initial=0.0)
    return replace(expected, error=expected.error + rounding)


def check_delta(sample: Sample, done: Run) -> None:
    """rowsum(dO * O) - dLSE to within a few roundings of its terms."""
    wanted = sample.delta[done.step.instance.lse_grad]
    terms = np.abs(sample.tensors["d_out"] * sample.tensors["out"]).sum(-1) + np.abs(sample.tensors["d_lse"])
    apart = np.abs(done.outputs["delta"].values - wanted)
    assert (apart <= 8 * np.finfo(np.float32).eps * terms).all(), f"{sample.problem}: {(apart / terms).max()}"


def check_work(problem: Problem, done: Run, parts: int) -> None:
    """Bricks, rows held and columns staged are exactly those of the definition."""
    instance = done.step.instance
    if instance.every:
        assert done.bricks == every_bricks(problem, parts)
        return
    work = work_of(problem, instance)
    assert done.bricks == work.bricks, f"{instance.name}, {problem}: {done.bricks}, not {work.bricks}"
    for argument in ROWS.get(instance.template, ()):
        check_reads(done, argument, work.outer("held"))
    if instance.stage:
        # Threadgroups of different rows of heads each copy the columns of their key/value head.
        times = 1 if instance.template in TRANSPOSED else problem.group_heads // instance.heads
        for argument in COLUMNS[instance.template]:
            check_reads(done, argument, work.outer("read") * times)
        for argument in ("extra_k", "extra_v") if instance.extra else ():
            check_reads(done, argument, work.extra_reads)


def check_reads(done: Run, argument: str, tokens: Array) -> None:
    """Each channel and head of ``[B, tokens.., H, D]`` was read as often as ``tokens`` says, and no gap ever."""
    name = done.step.instance.name
    own, beside = done.reads(argument)
    wanted = np.broadcast_to(tokens[None, ..., None, None], own.shape)
    assert np.array_equal(own, wanted), f"{name} reads {argument} otherwise than planned"
    assert not beside.any(), f"{name} reads beside {argument}"


def launch(sample: Sample, instance: Instance, kernel: Kernel, rng: random.Random, schedule: str) -> None:
    """One random launch of one instance, and all that is asserted of it."""
    seed = rng.randrange(1 << 16)
    if instance.template == "na_sum":
        parts, count = rng.randint(1, 9), rng.randint(1, 900)
        values = rounded(np.random.default_rng(seed).standard_normal((parts, count)), "float32")
        step = sum_step(instance, sample.problem, parts, count)
        done = run(step, kernel, {"partial": values}, schedule=schedule, seed=seed)
        done.assert_written_once()
        bound = 2 * tolerances.ulp(1.0, instance.dtype) * np.abs(values).sum(0)
        assert (np.abs(done.outputs["out"].values - values.sum(0)) <= bound).all()
        return
    parts = 1
    if instance.every or instance.template == "na_bias":
        parts = rng.randint(1, min(5, sample.problem.query_shape[0]) if instance.every else 5)
    step = step_of(instance, problem_for(instance, sample.problem), parts)
    done = run(step, kernel, sample.tensors, schedule=schedule, seed=seed, layouts=rng)
    done.assert_written_once()
    if instance.template == "na_delta":
        check_delta(sample, done)
        return
    check_values(sample, done)
    if instance.template in WALKING:
        check_work(sample.problem, done, parts)


def shares() -> list[Any]:
    """Share 0 of every kit runs always, the others with --all."""
    found = []
    for share in range(SHARES):
        for kit in KITS:
            marks = [pytest.mark.all] if share else []
            found.append(pytest.param(kit, share, id=f"{kit}-{share}", marks=[*marks, pytest.mark.xdist_group(str(kit))]))
    return found


@pytest.mark.parametrize(("kit", "share"), shares())
def test_random_problems(kit: Kit, share: int) -> None:
    """No fault, results within bounds, exact work, every output written once; in three schedules by turns."""
    built = kernels(kit.instances.values())
    rng = random.Random(f"{kit}/{share}")
    launches = 0
    while launches < math.ceil(LAUNCHES / len(KITS)):
        sample = sample_of(kit, rng, launches)
        for instance in kit.instances.values():
            launch(sample, instance, built[instance], rng, SCHEDULES[launches % 3])
            launches += 1


def test_the_pool_is_wide() -> None:
    """At most 60 instantiations, and every option in more than one of them."""
    pool = [instance for kit in KITS for instance in kit.instances.values()]
    assert len(set(pool)) <= 60
    walks = [instance for instance in pool if instance.template in WALKING]
    for option in ({"rank": 1}, {"rank": 2}, {"rank": 3}, {"dtype": "float32"}, {"dtype": "float16"},
                   {"dtype": "bfloat16"}, {"stage": False}, {"stage": True, "wide": False}, {"wide": True},
                   {"stage": False, "wide": True}, {"heads": 2}, {"heads": 4}, {"heads": 8}, {"bias": True}, {"extra": True}, {"every": True},
                   {"bricks": 1}, {"bricks": 3}):  # fmt: skip
        having = [i for i in walks if all(getattr(i, name) == value for name, value in option.items())]
        assert len(having) >= 2, option
    for rank in (1, 2, 3):
        for dtype in ("float32", "float16", "bfloat16"):
            assert any((i.rank, i.dtype) == (rank, dtype) for i in walks)
        templates = {i.template for i in pool if i.rank == rank}
        assert templates >= {"na_fwd", "na_delta", "na_bwd_dq", "na_bwd_dkv"}
    assert {i.slots for i in pool if i.template == "na_bias"} == {True, False}


def test_random_problems_are_random() -> None:
    """The problems that are drawn cut rows into pieces, leave simdgroups idle, and have ragged ends."""
    found = set()
    for kit in KITS:
        rng = random.Random(f"{kit}/0")
        for number in range(40):
            problem = kit.problem(str(number), rng).problem(kit.dtype)
            for instance in kit.instances.values():
                if instance.template not in WALKING or instance.every:
                    continue
                work = work_of(problem, instance)
                x = work.axes[-1]
                found |= {"cut rows"} if instance.stage and x.read.max() > x.read.min() + 1 else set()
                found |= {"idle simdgroups"} if x.patches % instance.simdgroups else set()
                found |= {"ragged patches"} if work.outer("held").max() > 1 else set()
                executed, full = work.bricks
                found |= {"full bricks"} if full else set()
                found |= {"only full bricks"} if full == executed else set()
                found |= {"causal"} if any(problem.is_causal) else set()
    assert found == {"cut rows", "idle simdgroups", "ragged patches", "full bricks", "only full bricks", "causal"}
