"""What is asserted of a launch: no fault, results within bounds, and exactly the work that the definition requires."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import tolerances
from cases import Case, inputs, lse_dtype, rounded, slot_inputs
from metal_emulator import Kernel

from natten_mps._metal.metal.source import Instance
from natten_mps._metal.problem import reference
from natten_mps._metal.problem.mask import slot_keys
from natten_mps._metal.problem.problem import Problem

from .launch import Run, computes, launch_of, launch_of_sum, run
from .mpp_work import check_mpp_work
from .pool import Kit
from .work import AdditionalWork, work_of

Array = Any
# Templates that recompute the weights from lse.
RECOMPUTING = ("na_bwd_dq", "na_bwd_dkv", "na_rpb")
# Tensors whose rows a template reads.
ROWS = {
    "na_fwd": ("q",),
    "na_bwd_dq": ("q", "out_grad"),
    "na_bwd_dkv": ("k", "v"),
    "na_qk": ("q",),
    "na_rpb": ("q", "out_grad"),
}
# Tensors whose columns it reads, and in how many products of a brick each takes part.
COLUMNS = {
    "na_fwd": {"k": 1, "v": 1},
    "na_bwd_dq": {"k": 2, "v": 1},
    "na_bwd_dkv": {"q": 2, "out_grad": 2},
    "na_qk": {"k": 1},
    "na_av": {"v": 1},
    "na_av_t": {"x": 1},
    "na_rpb": {"k": 1, "v": 1},
}
# -kMasked of kernels/slice.h: lse, in base 2, of a query that sees no key.
NO_KEY = float(np.float32(1.7014117e38))
# The error allowed in full attention, relative to the largest value, in addition to the last rounding.
ATTENTION_ERROR = {"float32": 3e-6, "float16": 1e-3, "bfloat16": 8e-3}


class Sample:
    """A random problem: its tensors by name, and the correct results of every kernel.

    expected: gives truth and bounds of the results of an op ('fused', 'qk' or 'av'). gradients: the truth for kernels
    that start from the saved output, which is rounded.
    """

    def __init__(
        self,
        problem: Problem,
        arrays: dict[str, Array],
        slots: dict[str, Array],
        expected: Callable[[str], dict[str, tolerances.Expected]],
    ) -> None:
        self.problem, self.expected = problem, cache(expected)
        given = {name: a for name, a in arrays.items() if name not in ("d_out", "d_lse")}
        exact, lse = reference.forward(problem, **given)
        out = rounded(exact, problem.dtype)
        delta = (arrays["d_out"] * out).sum(-1)
        # Kernels of the backward start from what the forward's kernels would have saved.
        saved = {"out": out, "lse": rounded(lse, "float32"), "delta": rounded(delta - arrays["d_lse"], "float32")}
        saved["stats"] = stats_of(lse, saved["lse"], saved["delta"])
        self.exact_lse = lse
        self.delta = {True: delta - arrays["d_lse"], False: delta}
        # Rounding the output changes delta, which changes the gradients as a gradient of lse would.
        moved = arrays["d_lse"] + (arrays["d_out"] * exact).sum(-1) - delta
        self.gradients = cache(lambda: reference.backward(problem, arrays["d_out"], moved, **given))
        self.tensors = arrays | saved
        self.held = np.zeros(0, bool)
        if slots:
            _, held = slot_keys(problem)
            self.held = held.reshape(1, *problem.query_shape, 1, -1)
        # Values in slots without a key must have no effect.
        self.tensors |= {name: np.where(self.held, values, np.nan) for name, values in slots.items()}


def stats_of(exact: Array, lse: Array, delta: Array) -> Array:
    """What dQ's kernel saves for each query: lse in base 2, the factor that corrects the weights for its rounding,
    delta, 0. A query that sees no key has NO_KEY and the factor 0, so that its weights are 0.
    """
    empty = exact == -np.inf
    lse, exact = np.where(empty, 0, lse), np.where(empty, 0, exact)
    in_base_2 = np.where(empty, NO_KEY, rounded(lse * np.log2(np.e), "float32"))
    factor = np.where(empty, 0, rounded(np.exp2(np.where(empty, 0, in_base_2) - exact * np.log2(np.e)), "float32"))
    return np.stack([in_base_2, factor, delta, np.zeros_like(delta)], -1)


def sample_of(kit: Kit, rng: random.Random, number: int, **changed: Any) -> Sample:
    """A random case of a kit, with the bounds that the other suites use. changed: fields of the case to replace."""
    return sample_from(replace(kit.problem(f"{kit}/{number}/{rng.random()}", rng), **changed), kit.dtype)


def sample_from(case: Case, dtype: str) -> Sample:
    """A case, with the bounds that the other suites use."""

    def expected(kind: str) -> dict[str, tolerances.Expected]:
        function = {"fused": tolerances.fused, "qk": tolerances.split_qk, "av": tolerances.split_av}[kind]
        return function.__wrapped__(case, dtype)

    return Sample(case.problem(dtype), inputs(case, dtype), slot_inputs(case, dtype), expected)


def attention_of(kit: Kit, rng: random.Random, number: int) -> Sample:
    """Full attention of sequences, with equal or different numbers of queries and keys; not in the case table."""
    # Where queries end with a tile, the next tile may have keys that no query sees: no columns, from 0 to 0.
    queries = rng.choice((rng.randint(1, 70), 8 * kit.simdgroups * rng.randint(1, 2)))
    keys, kv_heads = rng.randint(1, 70), rng.randint(1, 2)
    heads, window, dims = kv_heads * kit.heads, max(queries, keys), [rng.randint(1, d) for d in kit.dims]
    problem = Problem(
        "attention",
        rng.randint(1, 2),
        (queries,),
        (keys,),
        heads,
        kv_heads,
        *dims,
        (window,),
        (1,),
        (1,),
        (rng.random() < 0.6,),
        dims[0] ** -0.5,
        kit.dtype,
    )
    shapes = {
        "query": (queries, heads, dims[0]),
        "key": (keys, kv_heads, dims[0]),
        "value": (keys, kv_heads, dims[1]),
        "d_out": (queries, heads, dims[1]),
        "d_lse": (queries, heads),
    }

    values = np.random.default_rng([number, queries, keys])
    arrays = {
        name: rounded(values.standard_normal((problem.batch, *shape)), kind_of(name, kit.dtype))
        for name, shape in shapes.items()
    }
    given = {name: arrays[name] for name in ("query", "key", "value")}
    out, lse = reference.forward(problem, **given)
    truth = {"out": out, "lse": lse, **reference.backward(problem, arrays["d_out"], arrays["d_lse"], **given)}
    bounds = {
        name: tolerances.Expected(wanted, ATTENTION_ERROR[kind_of(name, kit.dtype)], kind_of(name, kit.dtype), 1)
        for name, wanted in truth.items()
    }
    return Sample(problem, arrays, {}, {"fused": bounds}.__getitem__)


def kind_of(name: str, dtype: str) -> str:
    """The dtype of a tensor by its name."""
    return lse_dtype(dtype) if name in ("lse", "d_lse") else dtype


def problem_for(instance: Instance, problem: Problem) -> Problem:
    """The problem as the template sees it: av has no scale."""
    if instance.template in ("na_av", "na_av_t"):
        return replace(problem, scale=1.0)
    return problem


def check_values(sample: Sample, done: Run) -> None:
    """Assert that every output is within the bounds of :mod:`tolerances`."""
    instance, found = done.launch.instance, {name: laid.values for name, laid in done.outputs.items()}
    template = computes(instance)
    fused = sample.expected("fused") if not instance.slots and template not in ("na_qk", "na_av") else {}
    if template in RECOMPUTING and not instance.slots:
        fused = {name: with_saved_rows(fused[name], truth, sample) for name, truth in sample.gradients().items()}
    if template == "na_fwd":
        wanted = {"out": fused["out"], "lse": fused["lse"]}
    elif template == "na_bwd_dq":
        wanted = {"query_grad": fused["query"]}
        check_stats(sample, found.pop("stats"))
    elif template == "na_bwd_dkv":
        names = ("additional_keys", "additional_values") if instance.of_additional else ("key", "value")
        wanted = dict(zip(("key_grad", "value_grad"), (fused[name] for name in names), strict=True))
        found = {name: values.sum(0) for name, values in found.items()} if instance.of_additional else found
    elif template == "na_rpb":
        wanted = {"partial": sample.expected("qk")["rpb"] if instance.slots else fused["rpb"]}
        found = {"partial": found["partial"].sum(0).reshape(wanted["partial"].truth.shape)}
    elif template == "na_qk":
        wanted = {"logits": sample.expected("qk")["logits"]}
        if instance.empty_zero:
            assert (found["logits"][~np.broadcast_to(sample.held, found["logits"].shape)] == 0).all()
            found = {"logits": np.where(sample.held, found["logits"], -np.inf)}
    elif template == "na_av":
        wanted = {"out": sample.expected("av")["out"]}
    else:
        assert template == "na_av_t"
        wanted = {"out": sample.expected("av")["value"]}
    tolerances.assert_within(found, wanted, f"{instance.name}, {sample.problem}")


def with_saved_rows(expected: tolerances.Expected, truth: Array, sample: Sample) -> tolerances.Expected:
    """Truth and bound for kernels that start from the rounded output and recompute weights as exp(logit - lse).

    They compute the logits again, with an error that a dense softmax does not have, whose weights and their sum come
    from the same logits. It matters where windows are so small that the baseline has no error.
    """
    query, key = (longest(sample, name) for name in ("query", "key"))
    largest = abs(sample.problem.scale) * query * key
    return replace(expected, truth=truth, error=expected.error + np.finfo(np.float32).eps * largest)


def longest(sample: Sample, name: str) -> float:
    """The largest norm of a token; of keys, of those that may be seen."""
    norms = np.linalg.norm(sample.tensors[name], axis=-1)
    if name == "key" and "key_mask" in sample.tensors:
        norms = norms[sample.tensors["key_mask"]]
    return float(norms.max(initial=0.0))


def check_stats(sample: Sample, found: Array) -> None:
    """Assert that lse and the factor together give the exact lse, within the rounding of logits; delta is passed on."""
    in_base_2, factor, delta, rest = np.moveaxis(found, -1, 0)
    empty = sample.exact_lse == -np.inf
    assert (in_base_2[empty] == NO_KEY).all() and not factor[empty].any(), "stats of a query that sees no key"
    in_base_2, factor, exact = in_base_2[~empty], factor[~empty], sample.exact_lse[~empty]
    query, key = (longest(sample, name) for name in ("query", "key"))
    bias = np.abs(sample.tensors.get("rpb", np.zeros(1))).max()
    terms = 1 + abs(sample.problem.scale) * query * key + bias + np.abs(in_base_2).max(initial=0.0)
    apart = np.abs((in_base_2 - np.log2(factor)) / np.log2(np.e) - exact)
    assert (apart <= 4 * np.finfo(np.float32).eps * terms).all(), (
        f"{sample.problem}: stats are off by {apart.max():.3g}"
    )
    assert np.array_equal(delta, sample.tensors["delta"]) and not rest.any(), "stats are not what was given"


def check_delta(sample: Sample, done: Run) -> None:
    """Assert that delta is rowsum(dO * O) - dLSE, within a few roundings of its terms."""
    wanted = sample.delta[done.launch.instance.lse_grad]
    terms = np.abs(sample.tensors["d_out"] * sample.tensors["out"]).sum(-1) + np.abs(sample.tensors["d_lse"])
    apart = np.abs(done.outputs["delta"].values - wanted)
    assert (apart <= 8 * np.finfo(np.float32).eps * terms).all(), f"{sample.problem}: {(apart / terms).max()}"


def check_work(problem: Problem, done: Run, parts: int) -> None:
    """Assert that bricks, products, chunks and reads of columns are those of the definition, and rows are read once.

    The emulator counts the multiply-accumulates that are executed; how many a brick has is what the planner says.
    """
    instance = done.launch.instance
    products = done.bricks[0] * instance.products
    assert done.report.multiply_accumulates == products, f"{done.report.multiply_accumulates}, not {products} products"
    work = AdditionalWork(problem, instance, parts) if instance.of_additional else work_of(problem, instance)
    assert done.bricks == work.bricks, f"{instance.name}, {problem}: {done.bricks}, not {work.bricks}"
    if instance.record.walks:
        # Two for each chunk, and one for each group of bricks, whose products a team exchanges.
        wanted = 2 * work.chunks + (done.bricks[0] if instance.team > 1 else 0)
        assert instance.team == 1 or instance.bricks == 1, "groups of bricks are counted as bricks"
        barriers = done.report.barriers
        assert barriers == wanted, f"{instance.name}, {problem}: {barriers} barriers, not {wanted}"
    if instance.slots:
        return  # it reads window slots instead of rows and columns
    for argument in ROWS.get(instance.template, ()):
        own, _ = done.reads(argument)
        wanted = parts if instance.of_additional else 1
        if instance.masked and instance.record.transposed:  # rows are keys, and masked ones are not read
            wanted = visible_keys(done, problem)[..., None, None]
        assert (own == wanted).all(), f"{instance.name}: rows of {argument} are not read once"
    if instance.masked:
        own, _ = done.reads("key_mask")
        bits = np.broadcast_to(work_of(problem, instance).mask_reads, (problem.batch, *problem.key_shape))
        assert np.array_equal(own, in_words(bits)), f"{instance.name} reads key_mask otherwise than planned"
    for argument, count in COLUMNS[instance.template].items():
        check_reads(done, argument, work.read(count))
        if instance.additional:
            check_reads(done, f"additional_{argument}", work.read_additional(count))


def visible_keys(done: Run, problem: Problem) -> Array:
    """``[B, *shape]`` bool: the keys that may be seen, by the bits that the launch was given."""
    words = np.ascontiguousarray(done.inputs["key_mask"].view)
    bits = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")
    return bits[..., : problem.key_shape[-1]] != 0


def in_words(counts: Array) -> Array:
    """``[.., keys]`` summed over the keys of each word."""
    padded = np.pad(counts, [(0, 0)] * (counts.ndim - 1) + [(0, -counts.shape[-1] % 32)])
    return padded.reshape(*padded.shape[:-1], -1, 32).sum(-1)


def check_reads(done: Run, argument: str, tokens: Array) -> None:
    """Assert that each channel and head of ``[B, tokens.., H, D]`` was read as often as ``tokens`` says."""
    own, _ = done.reads(argument)
    wanted = np.broadcast_to(tokens[None, ..., None, None], own.shape)
    assert np.array_equal(own, wanted), f"{done.launch.instance.name} reads {argument} otherwise than planned"


def check_launch(sample: Sample, instance: Instance, kernel: Kernel, rng: random.Random, schedule: str) -> None:
    """One random launch of one instance, with everything that is asserted of it."""
    seed = rng.randrange(1 << 16)
    if instance.template == "na_sum":
        parts, count = rng.randint(1, 9), rng.randint(1, 900)
        values = rounded(np.random.default_rng(seed).standard_normal((parts, count)), "float32")
        launch = launch_of_sum(instance, sample.problem, parts, count)
        done = run(launch, kernel, {"partial": values}, schedule=schedule, seed=seed)
        done.assert_written_once()
        bound = 2 * tolerances.ulp(1.0, instance.dtype) * np.abs(values).sum(0)
        assert (np.abs(done.outputs["out"].values - values.sum(0)) <= bound).all()
        return
    parts = 1
    if instance.of_additional or instance.template == "na_rpb":
        parts = rng.randint(1, min(5, sample.problem.query_shape[0]) if instance.of_additional else 5)
    launch = launch_of(instance, problem_for(instance, sample.problem), parts)
    done = run(launch, kernel, sample.tensors, schedule=schedule, seed=seed, layouts=rng)
    done.assert_written_once()
    done.assert_reads_inside()
    if instance.template == "na_delta":
        check_delta(sample, done)
        return
    check_values(sample, done)
    if instance.record.mpp:
        check_mpp_work(sample.problem, done)
    elif instance.record.walks or instance.template == "na_rpb":
        check_work(sample.problem, done, parts)
