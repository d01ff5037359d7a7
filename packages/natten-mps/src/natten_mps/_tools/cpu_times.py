"""How long natten-mps's CPU kernels take, as this process's environment sets them: for `tune --cpu`."""

import torch

from .._metal.plan.backend import NATIVE
from .._metal.problem.problem import Problem
from .._metal.tuning.cpu import print_times
from .._metal.tuning.measure import Run
from ..functional import neighborhood_attention


def _attend(problem: Problem) -> Run:
    shape = (problem.batch, *problem.query_shape, problem.heads, problem.head_dim)
    query, key, value = (torch.randn(shape) for _ in range(3))

    def run(times: int) -> None:
        for _ in range(times):
            neighborhood_attention(query, key, value, problem.kernel_size, backend=NATIVE.name)

    return run


if __name__ == "__main__":
    print_times(_attend)
