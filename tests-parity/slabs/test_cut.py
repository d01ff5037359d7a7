"""How problems are cut: each query is in one slab, the widest slab is found without visiting all, and slabs fit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from cases import CASES, Case
from frameworks import FRAMEWORKS, Framework

from natten_mps._metal.problem.problem import Axis
from natten_mps._metal.slabs import cut


def axes(longest: int) -> list[Axis]:
    """All axes of up to ``longest`` tokens with small strides and dilations."""
    return [
        Axis(n, n, w, s, d, causal)
        for n in range(1, longest + 1)
        for d in (1, 2, 3)
        for w in range(1, n // d + 1)
        for s in {1, min(2, w), min(3, w), w}
        for causal in (False, True)
    ]


def test_the_widest_slab_is_found() -> None:
    """It needs as many keys as any slab does."""
    seen = fewer = 0
    for axis in axes(18):
        for length in range(1, axis.full + 1):
            parts = cut.ranges(axis.full, length)
            low, high = cut.keys_of(axis, cut.widest(axis, length))
            assert high - low == max(last - first for first, last in (cut.keys_of(axis, part) for part in parts))
            seen += 1
            at_ends = axis.window * axis.dilation // length + 2
            fewer += len(parts) > 2 * at_ends + axis.stride * axis.dilation
    assert seen > 10_000 and fewer > 100, "no axis on which slabs are left out"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_slabs_hold_each_query_once(case: Case) -> None:
    problem = case.problem()
    for lengths in itertools.product((1, 2), *((1, size // 2 + 1, size) for size in case.shape)):
        counts = np.zeros((case.batch, *case.shape), int)
        slabs = list(cut.slabs(problem, lengths))
        assert len(slabs) == cut.number(problem, lengths)
        for slab in slabs:
            counts[tuple(slice(*pair) for pair in slab)] += 1
        assert (counts == 1).all()


def adapter_of(framework: Framework) -> Any:
    module = framework.module("_slab_adapter")
    if framework.name == "mps":
        import torch

        return module.on_device(torch.device("cpu"))
    import mlx.core as mx

    return module.on_stream(mx.default_stream(mx.cpu))


BUDGETS = (20_000, 100_000, 1_000_000, 30_000_000)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("backend", ["pure", "dense"])
def test_slabs_fit_and_longer_ones_do_not(framework: Framework, backend: str) -> None:
    """There are as few slabs as the budget allows."""
    own, problems = framework.module("_metal.slabs.cut"), framework.module("_metal.problem.problem")
    adapter, parted, refused = adapter_of(framework), 0, 0
    for shape, window, stride, dilation in (((5000,), 63, 2, 3), ((90, 70), 7, 3, 1), ((20, 30, 9), 3, 1, 2)):
        rank, size = len(shape), (3, *shape)
        per_axis = [(each,) * rank for each in (window, stride, dilation, False)]
        problem = problems.Problem("na", 3, shape, shape, 4, 2, 16, 8, *per_axis, 0.25, "float16", 5, False)
        for budget in BUDGETS:
            smallest = own.slab_bytes(problem, (1,) * len(size), backend, adapter)
            if smallest > budget:
                with pytest.raises(ValueError, match=f"that takes {smallest} bytes; got {budget}$"):
                    own.cut("tiled", problem, budget, backend, adapter)
                continue
            lengths = own.cut("tiled", problem, budget, backend, adapter)
            assert own.slab_bytes(problem, lengths, backend, adapter) <= budget
            parted += lengths != size
            for axis, length in enumerate(lengths):
                if length == size[axis]:
                    continue
                # An axis has as few parts of equal size as possible: with one part less they do not fit.
                longer = list(lengths)
                longer[axis] = -(-size[axis] // (-(-size[axis] // length) - 1))
                if longer[axis] <= 2 * length:
                    assert own.slab_bytes(problem, tuple(longer), backend, adapter) > budget, (lengths, budget)
                    refused += 1
    assert parted >= 4 and refused >= 4


@pytest.mark.parametrize(
    ("memory", "wanted"),
    [(1, 1), (np.int64(5000), 5000), ("300 MB", 300_000_000), ("2GiB", 1 << 31), ("1.5 kb", 1500), ("7", 7)],
)
def test_amounts_of_memory(memory: Any, wanted: int) -> None:
    from natten_mps._metal.problem.checks import slabs as rules

    assert rules.memory_bytes("tiled", memory) == wanted
