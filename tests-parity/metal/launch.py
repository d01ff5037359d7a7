"""Launches on numpy arrays: what a host does with a :class:`Launch`, without a framework.

Planned launches run unchanged; :func:`launch_of` makes the launch of any instance, planned or not.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import metal_emulator
import numpy as np
from metal_emulator import Kernel, Report

from natten_mps._metal.metal.op_launches import STATS, Launch, Output, parameters, with_strides
from natten_mps._metal.metal.source import Instance, library
from natten_mps._metal.problem.problem import Problem
from natten_mps._metal.problem.window import group_length

from .arrays import Laid, packed, scattered

SCHEDULES = ("forward", "random", "greedy")
# Tensors that a host packs before a launch: lse and delta share one stride block, the others have none.
PARTS = ("additional_keys_parts", "additional_values_parts", "rpb_parts", "partial")
FLOAT = ("lse", "delta", "stats", "lse_grad", "d_lse", "rpb", *PARTS)
PACKED = (*FLOAT, "out")


def schedules(turn: int, every: bool = False) -> tuple[str, ...]:
    """All schedules, or the one whose turn it is."""
    return SCHEDULES if every else (SCHEDULES[turn % len(SCHEDULES)],)


@cache
def compiled(source: str, **options: Any) -> metal_emulator.Library:
    """The library of a source, compiled once in a process, and stored for others on this machine."""
    return metal_emulator.compile_source(source, **options)


def kernels(instances: Iterable[Instance], **options: Any) -> dict[Instance, Kernel]:
    """The compiled kernels of some instances, from one source."""
    instances = tuple(dict.fromkeys(instances))
    built = compiled(library(instances), **options)
    return {instance: built.kernel(instance.name) for instance in instances}


@dataclass(frozen=True)
class Run:
    """One launch and its tensors by name."""

    launch: Launch
    report: Report
    inputs: dict[str, Laid]
    outputs: dict[str, Laid]

    @property
    def bricks(self) -> tuple[int, int]:
        """Executed bricks, and those of them without a mask."""
        full, partial = (self.report.thread_events(f"{kind}_brick") for kind in ("full", "partial"))
        # Every member of a team takes each brick.
        team = self.launch.instance.team
        assert full % team == partial % team == 0
        return (full + partial) // team, full // team

    def index(self, argument: str) -> int:
        return [a.name for a in self.launch.instance.arguments].index(argument)

    def reads(self, argument: str) -> tuple[Any, Any]:
        """How often each element of an input was read, and each element around it."""
        assert self.report.read_counts is not None
        laid = self.inputs[dict(self.launch.inputs)[argument]]
        return laid.counts(self.report.read_counts[self.index(argument)])

    def assert_reads_inside(self) -> None:
        """Assert that nothing around the inputs was read: no gap between tokens, nothing before or after."""
        for argument, name in self.launch.inputs:
            _, beside = self.reads(argument)
            assert not beside.any(), f"{self.launch.instance.name} reads beside {name}"

    def assert_written_once(self) -> None:
        """Assert that every element of every output was written once, and nothing around them."""
        assert self.report.write_counts is not None
        for output in self.launch.outputs:
            counts = self.report.write_counts[self.index(output.argument)]
            own, beside = self.outputs[output.name].counts(counts)
            assert (own == 1).all(), f"{self.launch.instance.name}: {output.name} is written {np.unique(own)} times"
            assert not beside.any(), f"{self.launch.instance.name} writes beside {output.name}"


def words_of(key_mask: Any) -> Any:
    """``[B, *shape]`` bool as the kernels read it: a bit for each key, lines padded to whole words."""
    padded = np.pad(key_mask, [(0, 0)] * (key_mask.ndim - 1) + [(0, -key_mask.shape[-1] % 32)])
    return np.packbits(padded, axis=-1, bitorder="little").view("<i4")


def laid_out(name: str, values: Any, dtype: str, wide: bool, rng: random.Random | None) -> Laid:
    """An input in memory, as a host may have it: with any layout, unless hosts pack it."""
    if name == "key_mask":
        return packed(words_of(values), "int32")
    if rng is None or name in PACKED:
        return packed(values, "float32" if name in FLOAT else dtype)
    return scattered(values, dtype, wide, rng)


def run(
    launch: Launch,
    kernel: Kernel,
    tensors: dict[str, Any],
    *,
    schedule: str = "forward",
    seed: int = 0,
    layouts: random.Random | None = None,
    laid: dict[str, Laid] | None = None,
) -> Run:
    """Run a launch on float64 ``tensors`` by name, whose values are exact in its dtype.

    layouts: random numbers for memory layouts; None for row-major ones. laid: inputs that have a layout already.
    """
    instance = launch.instance
    inputs = {name: laid_out(name, tensors[name], instance.dtype, instance.wide, layouts) for _, name in launch.inputs}
    inputs |= laid or {}
    outputs = {}
    for out in launch.outputs:
        # Only attention's own results may have any layout; partial sums, lse and delta are packed.
        free = layouts is not None and out.argument not in FLOAT and not instance.of_additional
        free = free and instance.template != "na_sum"
        empty = np.zeros(out.shape)
        outputs[out.name] = scattered(empty, out.dtype, False, layouts) if free else packed(empty, out.dtype)
    bound = {argument: inputs[name] for argument, name in launch.inputs}
    bound |= {out.argument: outputs[out.name] for out in launch.outputs}
    params = np.array(with_strides(launch, {argument: laid.strides for argument, laid in bound.items()}), np.int64)
    written = {out.argument for out in launch.outputs}
    buffers = [params if a.name == "prm" else bound[a.name].bound(output=a.name in written) for a in instance.arguments]
    threads = (launch.grid[0] * launch.threads, launch.grid[1], launch.grid[2])
    report = kernel.launch(buffers, threads, (launch.threads, 1, 1), schedule=schedule, seed=seed)
    return Run(launch, report, inputs, outputs)


def run_all(
    launches: tuple[Launch, ...], tensors: dict[str, Any], schedule: str = "forward", **options: Any
) -> dict[str, Run]:
    """Run planned launches in order; later ones read the results of earlier ones. The runs, by their first output."""
    built = kernels((launch.instance for launch in launches), **options)
    known, runs = dict(tensors), {}
    for launch in launches:
        done = run(launch, built[launch.instance], known, schedule=schedule)
        known |= {name: laid.values for name, laid in done.outputs.items()}
        runs[launch.outputs[0].name] = done
    return runs


# --- launches that the planner did not choose --------------------------------------------------------


def tiles_of(problem: Problem, instance: Instance) -> tuple[int, ...]:
    """Tiles per axis, of the longest dilation group."""
    transposed = instance.record.transposed
    tiles = []
    for number, axis in enumerate(problem.axes):
        extent = instance.patch[3 - problem.rank + number]
        extent *= instance.simdgroups if number == problem.rank - 1 else 1
        rows = group_length(axis.keys if transposed else axis.queries, 0, axis.dilation)
        tiles.append(-(-rows // extent))
    return tuple(tiles)


# The tensors of each template: argument -> name among the arrays of a case.
TENSORS = {
    "q": "query",
    "k": "key",
    "v": "value",
    "additional_k": "additional_keys",
    "additional_v": "additional_values",
    "rpb": "rpb",
    "key_mask": "key_mask",
    "out_grad": "d_out",
    "out": "out",
    "lse": "lse",
    "delta": "delta",
    "stats": "stats",
    "lse_grad": "d_lse",
    "attn": "attn",
    "x": "d_out",
    "logits_grad": "d_logits",
    "partial": "partial",
}


def computes(instance: Instance) -> str:
    """The template that computes the same without matrix units."""
    return instance.template.removesuffix("_mpp")


def launch_of(instance: Instance, problem: Problem, parts: int = 1) -> Launch:
    """The launch of ``instance`` on ``problem``, in ``parts`` parts where results are summed afterwards."""
    p, i, template = problem, instance, computes(instance)
    rows = (p.batch, *p.query_shape, p.heads)
    tiles = tiles_of(p, i)
    groups = math.prod(p.dilation)
    grid = (p.heads // i.heads, math.prod(tiles), p.batch * groups)
    changed: dict[str, Any] = {"kTiles": tiles, "kParts": parts}
    keys = (p.batch, *p.key_shape, p.kv_heads)
    outputs: tuple[tuple[str, tuple[int, ...], str], ...]
    if template == "na_delta":
        grid, outputs = (-(-math.prod(rows) // 16), 1, 1), (("delta", rows, "float32"),)
    elif template == "na_fwd":
        outputs = (("out", (*rows, p.head_dim_v), i.dtype), ("lse", rows, "float32"))
    elif template == "na_bwd_dq":
        outputs = (("query_grad", (*rows, p.head_dim), i.dtype), ("stats", (*rows, STATS), "float32"))
    elif template == "na_bwd_dkv" and not i.of_additional:
        grid = (p.kv_heads, *grid[1:])
        outputs = (("key_grad", (*keys, p.head_dim), i.dtype), ("value_grad", (*keys, p.head_dim_v), i.dtype))
    elif template == "na_bwd_dkv":
        shapes = [(parts, p.batch, p.additional, p.kv_heads, d) for d in (p.head_dim, p.head_dim_v)]
        changed |= {"kKeyGradPart": math.prod(shapes[0][1:]), "kValueGradPart": math.prod(shapes[1][1:])}
        grid = (p.kv_heads, -(-p.additional // (8 * i.simdgroups)) * parts, p.batch)
        outputs = (("key_grad", shapes[0], "float32"), ("value_grad", shapes[1], "float32"))
    elif template == "na_qk":
        outputs = (("logits", (*rows, p.slots), i.dtype),)
    elif template == "na_av":
        outputs = (("out", (*rows, p.head_dim_v), i.dtype),)
    elif template == "na_av_t":
        grid, outputs = (p.kv_heads, *grid[1:]), (("out", (*keys, p.head_dim_v), i.dtype),)
    else:
        assert template == "na_rpb"
        entries = math.prod(2 * w - 1 for w in p.kernel_size)
        grid, outputs = (p.heads, parts, 1), (("partial", (parts, p.heads, entries), "float32"),)
    names = {a.name: TENSORS[a.name] for a in i.arguments if a.name != "prm" and not a.output}
    if i.of_additional:
        names |= {"k": "additional_keys", "v": "additional_values"}
    threads = 128 if template == "na_delta" else i.threads
    made = tuple(Output(argument, argument, shape, dtype) for argument, shape, dtype in outputs)
    return Launch(i, grid, threads, parameters(p, changed), tuple(names.items()), made)


def launch_of_sum(instance: Instance, problem: Problem, parts: int, count: int) -> Launch:
    """The launch of na_sum over ``parts`` parts of ``count`` elements."""
    params = parameters(problem, {"kParts": parts, "kRowCount": count})
    out = (Output("out", "out", (count,), instance.dtype),)
    return Launch(instance, (-(-count // 256), 1, 1), 256, params, (("partial", "partial"),), out)
