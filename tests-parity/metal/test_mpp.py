"""The kernels on matrix units (Metal 4's matmul2d), executed: in drawn layouts, in three schedules."""

from __future__ import annotations

import itertools
import math
import random
from functools import cache
from typing import Any

import numpy as np
import pytest
import tolerances
from cases import CASES, Case
from metal_emulator.lint import lint
from metal_emulator.strict import check

from natten_mps._metal.metal import op_launches, tiling
from natten_mps._metal.metal.mpp import DTYPES, SIDE, lie_in_rows, why_not
from natten_mps._metal.metal.op_launches import Launch
from natten_mps._metal.metal.source import (
    CHECK_HEADER,
    HEADERS,
    KERNELS,
    MPP_HEADERS,
    THREADGROUP_BYTES,
    Instance,
    entry_point,
    library,
)
from natten_mps._metal.metal.templates import MPP_TEMPLATES
from natten_mps._metal.metal.tiles import padded_dim
from natten_mps._metal.plan import matrix_units
from natten_mps._metal.problem.problem import Problem
from natten_mps._metal.tuning.design import Trial

from .launch import SCHEDULES, compiled, kernels, launch_of, run, run_all
from .pool import KITS, MPP, MPP_KITS, Kit
from .test_variants import VARIANTS
from .verify import Sample, check_launch, sample_from, sample_of

Array = Any
pytestmark = pytest.mark.usefixtures("emulator")
# Random problems of each kit in the default run, and with --all. Each launch draws a layout (tensor_layout.cpp).
PROBLEMS, ALL_PROBLEMS = 6, 120
# Launches of one problem that differ in nothing but the layout: two of each kind.
LAYOUTS = 8
MANY_LAYOUTS = ("img-mpp", "seq-mpp-gathered")
# The case table by default: one dtype for each rank, the smallest head dim, one head in a row.
DTYPE_OF_RANK = {1: "float16", 2: "bfloat16", 3: "float16"}
PATCH = {1: (1, 1, 16), 2: (1, 4, 4), 3: (2, 2, 4)}


def kit_named(name: str) -> Kit:
    return next(kit for kit in MPP_KITS if kit.name == name)


def shares() -> list[Any]:
    """Share 0 of every kit always runs, the others with --all."""
    found = []
    for kit, share in itertools.product(MPP_KITS, range(ALL_PROBLEMS // PROBLEMS)):
        marks = [pytest.mark.xdist_group(str(kit)), *([pytest.mark.all] if share else [])]
        found.append(pytest.param(kit, share, id=f"{kit}-{share}", marks=marks))
    return found


@pytest.mark.parametrize(("kit", "share"), shares())
def test_random_problems(kit: Kit, share: int) -> None:
    """No fault, results within bounds, exactly the work, every output written once; three schedules each."""
    built, rng, met = kernels(kit.instances.values()), random.Random(f"{kit}/{share}"), set()
    for number in range(PROBLEMS):
        sample = sample_of(kit, rng, number)
        for turn, instance in enumerate(kit.instances.values()):
            schedule = SCHEDULES[(number + turn) % 3]
            check_launch(sample, instance, built[instance], rng, schedule)
            met.add((instance, schedule))
    assert met == set(itertools.product(kit.instances.values(), SCHEDULES))


# --- the case table ----------------------------------------------------------------------------------


def reason(case: Case, dtype: str) -> str | None:
    return why_not(case.problem(dtype))


def instances_of(case: Case, dtype: str, flat: bool) -> list[Instance]:
    """The three kernels for a case. In the backward both head dims are padded to the same size."""
    problem = case.problem(dtype)
    dim = padded_dim(max(problem.head_dim, problem.head_dim_v))
    heads = 2 if problem.group_heads % 2 == 0 else 1
    z, y, x = PATCH[case.rank]
    found = []
    for template, record in MPP_TEMPLATES.items():
        own = 1 if record.transposed else heads
        found.append(
            Instance(
                template,
                dtype,
                case.rank,
                dim,
                dim,
                (z, y, x // own),
                own,
                simdgroups=2,
                bricks=1,
                stage=False,
                additional=problem.additional > 0 and not record.transposed,
                flat=flat,
            )
        )
    return found


def table() -> list[Any]:
    """Every case that the kernels take, gathered, and where it lies if it can."""
    found = []
    for case, dtype, flat in itertools.product(CASES, DTYPES, (True, False)):
        problem = case.problem(dtype)
        if not case.batch or reason(case, dtype):
            continue
        if not flat and not all(lie_in_rows(problem, transposed) for transposed in (False, True)):
            continue
        grouped = problem.group_heads % 2 == 0
        small = padded_dim(max(problem.head_dim, problem.head_dim_v)) == SIDE
        always = dtype == DTYPE_OF_RANK[case.rank] and small and not grouped
        marks = [pytest.mark.xdist_group(f"mpp-{case.rank}-{dtype}"), *([] if always else [pytest.mark.all])]
        found.append(pytest.param(case, dtype, flat, id=f"{case}-{dtype}-{'flat' if flat else 'run'}", marks=marks))
    return found


@pytest.mark.parametrize(("case", "dtype", "flat"), table())
def test_case(case: Case, dtype: str, flat: bool, request: pytest.FixtureRequest) -> None:
    """Forward and gradients in one schedule and one layout; with --all in three schedules and eight layouts each."""
    instances, sample = instances_of(case, dtype, flat), sample_from(case, dtype)
    built, rng = kernels(instances), random.Random(f"{case}/{dtype}")
    every = request.config.getoption("--all")
    for turn, instance in enumerate(instances):
        for number in range(8 * len(SCHEDULES) if every else 1):
            check_launch(sample, instance, built[instance], rng, SCHEDULES[(number + turn + len(str(case))) % 3])


def test_the_table_is_covered() -> None:
    """What the kernels do not take has a reason; nearly all of the table they take, some of it where it lies."""
    reasons = [reason(case, "float16") for case in CASES if case.batch]
    assert {why for why in reasons if why} == {"the kernels on matrix units take no rpb"}
    assert sum(why is None for why in reasons) >= 50
    always = [entry for entry in table() if not any(mark.name == "all" for mark in entry.marks)]
    assert len(always) >= 50 and {entry.values[2] for entry in always} == {True, False}
    assert {entry.values[0].rank for entry in always} == {1, 2, 3}


# --- layouts, orders, other builds -------------------------------------------------------------------


def bits(sample: Sample, instance: Instance, kernel: Any, schedule: str, seed: int) -> bytes:
    done = run(launch_of(instance, sample.problem), kernel, sample.tensors, schedule=schedule, seed=seed)
    return b"".join(np.ascontiguousarray(laid.view).tobytes() for laid in done.outputs.values())


@pytest.mark.parametrize("name", MANY_LAYOUTS)
def test_layouts(name: str) -> None:
    """In each of many layouts within the bounds, and with the same bits whenever one is drawn again."""
    kit, rng = kit_named(name), random.Random(f"{name}/layouts")
    built, sample = kernels(kit.instances.values()), sample_of(kit, rng, 1)
    for instance, seed in itertools.product(kit.instances.values(), range(LAYOUTS)):
        kernel = built[instance]
        check_launch(sample, instance, kernel, Seeded(seed), SCHEDULES[seed % 3])
        if seed < 3:  # layouts of three kinds
            found = {bits(sample, instance, kernel, schedule, seed) for schedule in ("forward", "random")}
            assert len(found) == 1, f"{instance.name}, layout {seed}"


class Seeded(random.Random):
    """Random numbers for memory layouts, the first of which, a launch's seed, is given."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.given = [seed]

    def randrange(self, *args: Any) -> int:
        return self.given.pop() if self.given else super().randrange(*args)


def variants() -> list[Any]:
    """One kit always, but unoptimised only with --all, as are the others."""
    found = []
    for kit, variant in itertools.product(MPP_KITS, VARIANTS):
        always = kit.name == "img-mpp-grouped" and variant != "unoptimised"
        marks = [] if always else [pytest.mark.all]
        found.append(pytest.param(kit, variant, id=f"{kit}-{variant}", marks=marks))
    return found


@pytest.mark.parametrize(("kit", "variant"), variants())
def test_compiled_differently(kit: Kit, variant: str) -> None:
    """Fast math, sanitizers, unoptimised: the same bounds, the same work, no finding."""
    built, rng = kernels(kit.instances.values(), **VARIANTS[variant]), random.Random(f"{kit}/{variant}")
    for number in range(3):
        sample = sample_of(kit, rng, number)
        for turn, instance in enumerate(kit.instances.values()):
            check_launch(sample, instance, built[instance], rng, SCHEDULES[(number + turn) % 3])


# --- the text ----------------------------------------------------------------------------------------


@cache
def everything() -> tuple[Instance, ...]:
    return tuple(instance for kit in MPP_KITS for instance in kit.instances.values())


def test_strict_check_and_lint_are_clean() -> None:
    """Address spaces of tensors included, as far as the front end's tensors are Metal's."""
    checks = tuple(matrix_units.program(dtype).launches[0].instance for dtype in DTYPES)
    source = library((*everything(), *checks))
    assert check(source) == [] and lint(source) == []


def test_the_strict_check_can_fail() -> None:
    """Columns that a product takes from the wrong address space."""
    source = library(everything()[:1])
    wrong = source.replace("return far_view(side.box + side.at,", "return far_view(columns,")
    assert wrong != source and {f.rule for f in check(wrong)} <= {"address-space", "conversion"} and check(wrong)


def test_one_header_names_mpp_and_the_others_need_nothing_of_it() -> None:
    naming = [path.name for path in KERNELS.glob("*.h") if "mpp::" in path.read_text(encoding="ascii")]
    assert naming == ["mpp.h"]
    assert sorted(path.name for path in KERNELS.glob("*.h")) == sorted((*HEADERS, *MPP_HEADERS, CHECK_HEADER))
    plain = library(tuple(instance for kit in KITS for instance in kit.instances.values()))
    assert "mpp" not in plain and "metal_tensor" not in plain
    for name in (*MPP_HEADERS, CHECK_HEADER):
        text = (KERNELS / name).read_text(encoding="ascii")
        assert "threadgroup_barrier" not in text and "simdgroup_matrix" not in text
        assert text.startswith("// ") and len(text.splitlines()) <= 400


def test_threadgroup_memory_is_as_declared() -> None:
    for instance in everything():
        assert f"threadgroup uint4 shared[{instance.threadgroup_bytes // 16}];" in entry_point(instance)
        assert instance.shared_bytes % 16 == 0 and instance.threadgroup_bytes <= THREADGROUP_BYTES


def test_the_pool_is_wide() -> None:
    """Every option of the templates, each rank and dtype, in several instances."""
    for option in (
        {"rank": 1},
        {"rank": 2},
        {"rank": 3},
        {"dtype": "float16"},
        {"dtype": "bfloat16"},
        {"flat": True},
        {"flat": False, "wide": True},
        {"flat": False, "wide": False},
        {"flat": True, "wide": True},
        {"flat": True, "wide": False},
        {"heads": 2},
        {"heads": 4},
        {"additional": True, "flat": True},
        {"additional": True, "flat": False},
    ):
        having = [i for i in everything() if all(getattr(i, name) == value for name, value in option.items())]
        assert len(having) >= 2, option
    assert {i.template for i in everything()} == set(MPP)
    assert {i.dim for i in everything()} == {16, 32, 64, 128}
    assert all(math.prod(i.patch) * i.heads == SIDE for i in everything())


# --- whole programs ----------------------------------------------------------------------------------


def on_matrix_units(problem: Problem, launches: tuple[Launch, ...], flat: bool) -> tuple[Launch, ...]:
    """The planned launches, their walks on matrix units. Gradients of additional keys stay as they are."""
    found = []
    for launch in launches:
        i = launch.instance
        if not i.record.walks or i.of_additional:
            found.append(launch)
            continue
        (chosen,) = (c for c in tiling.on_matrix_units(problem, i.record, i.dim, i.dim_v, 4, False) if c.flat == flat)
        found.append(Trial(problem, i.record, chosen).launch)
    return tuple(found)


@pytest.mark.parametrize("flat", [False, True], ids=["run", "flat"])
def test_a_program(flat: bool) -> None:
    """Forward and gradients of an image with grouped heads and additional keys: each launch starts from the last."""
    case = Case("program", (9, 21), (4, 7), (1, 2), (1, 1), (False, True), 1, 4, 2, 24, 16, additional=17)
    problem, sample = case.problem("float16"), sample_from(case, "float16")
    forward = on_matrix_units(problem, op_launches.forward(problem), flat)
    backward = on_matrix_units(problem, op_launches.backward(problem, True), flat)
    known = sample.tensors | {"out_grad": sample.tensors["d_out"], "lse_grad": sample.tensors["d_lse"]}
    runs = run_all(forward, known, "random")
    known |= {name: laid.values for done in runs.values() for name, laid in done.outputs.items()}
    runs |= run_all(backward, known, "greedy")
    assert {done.launch.instance.template for done in runs.values()} >= set(MPP)
    for done in runs.values():
        if done.launch.instance.record.mpp:
            assert done.bricks == (done.launch.bricks, done.launch.full)
            assert done.report.tensor_products == done.launch.products
        done.assert_written_once()
    made = {name: laid.values for done in runs.values() for name, laid in done.outputs.items()}
    expected = sample.expected("fused")
    found = {name: made[name if name in ("out", "lse") else f"{name}_grad"] for name in expected}
    tolerances.assert_within(found, expected, "program")


# --- numbers -----------------------------------------------------------------------------------------


def forward_of(sample: Sample, text: str = "") -> Array:
    """Out of the forward of the first kit, compiled from ``text`` if given."""
    instance = kit_named("seq-mpp").instances["na_fwd_mpp"]
    source = text or library((instance,))
    kernel = compiled(source).kernel(instance.name)
    return run(launch_of(instance, sample.problem), kernel, sample.tensors, seed=2).outputs["out"].values


def test_weights_are_rounded_to_nearest() -> None:
    """Values of 1 give 1: the unit cuts bits off, and weights that it cut would be too small on average."""
    case = Case("ones", (80,), (49,), (1,), (1,), (False,), 1, 1, 1, 32, 32)
    sample = sample_from(case, "float16")
    sample.tensors["value"] = np.ones_like(sample.tensors["value"])
    assert (forward_of(sample) == 1).all()
    source, rounding = library((kit_named("seq-mpp").instances["na_fwd_mpp"],)), "bits + 0xfffu + (bits >> 13 & 1u)"
    assert source.count(rounding) == 1
    assert (forward_of(sample, source.replace(rounding, "bits")) < 1).any()


def test_not_a_number_stays_what_it_is() -> None:
    """Any NaN of a query makes its row NaN, and only that row."""
    case = Case("nan", (40,), (9,), (1,), (1,), (False,), 1, 1, 1, 32, 32)
    sample = sample_from(case, "float16")
    sample.tensors["query"] = sample.tensors["query"].copy()
    sample.tensors["query"][0, 7, 0, 3] = np.nan
    out = forward_of(sample)
    assert np.isnan(out[0, 7]).all() and np.isfinite(np.delete(out, 7, 1)).all()


@pytest.mark.parametrize("scale", [0.0, -3.0, 60.0])
def test_scales(scale: float) -> None:
    """Zero, negative, and so large that one key has all the weight."""
    case = Case("scale", (40,), (9,), (1,), (1,), (True,), 1, 2, 1, 32, 32, scale=scale)
    instances = kit_named("seq-mpp").instances
    sample, built = sample_from(case, "float16"), kernels(instances.values())
    for seed, instance in enumerate(instances.values()):
        check_launch(sample, instance, built[instance], Seeded(seed), "forward")
