"""Both packages side by side, one table for each problem and direction: `./dev.sh bench`.

A call is timed until its result is computed. The `plan` in the saved data (--benchmark-json FILE) says which backend
ran, and how. Arguments of pytest-benchmark apply.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from problems import CPU_TABLE, Timed

import natten_mlx
import natten_mps

Prepared = tuple[Callable[[], object], str]  # what to time, and its plan in words


def arrays(problem: Timed) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """Query, key, value and the gradient of the output, seeded: ``[batch, *shape, heads, dim]`` each."""
    size = (4, problem.batch, *problem.shape, problem.heads, problem.dim)
    return list(np.random.default_rng(0).standard_normal(size, dtype=np.float32))


def options(problem: Timed) -> dict[str, Any]:
    return {"kernel_size": problem.window, "dilation": problem.dilation, "is_causal": problem.causal}


def in_torch(problem: Timed, backward: bool) -> Prepared:
    device = "mps" if torch.backends.mps.is_available() else "cpu"
    *inputs, flow = (torch.from_numpy(array).to(device) for array in arrays(problem))
    for tensor in inputs:
        tensor.requires_grad_(backward)

    def call() -> None:
        out = natten_mps.neighborhood_attention(*inputs, **options(problem))
        if backward:
            torch.autograd.grad(out, inputs, flow)
        if device == "mps":
            torch.mps.synchronize()

    return call, natten_mps.explain("neighborhood_attention", *inputs, **options(problem))


def in_mlx(problem: Timed, backward: bool) -> Prepared:
    *inputs, flow = (mx.array(array) for array in arrays(problem))

    def attend(*tensors: mx.array) -> mx.array:
        return natten_mlx.neighborhood_attention(*tensors, **options(problem))

    def call() -> None:
        mx.eval(*(mx.vjp(attend, inputs, [flow])[1] if backward else [attend(*inputs)]))

    return call, natten_mlx.explain("neighborhood_attention", *inputs, **options(problem))


@pytest.mark.parametrize("prepare", [in_torch, in_mlx], ids=["natten-mps", "natten-mlx"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("problem", CPU_TABLE, ids=lambda problem: problem.name)
def test_time(benchmark: Any, problem: Timed, backward: bool, prepare: Callable[..., Prepared]) -> None:
    call, plan = prepare(problem, backward)
    benchmark.group = f"{problem.name}, {'forward and backward' if backward else 'forward'}"
    benchmark.extra_info["plan"] = plan
    benchmark.pedantic(call, rounds=5, warmup_rounds=1)
