"""How long natten-mlx's CPU kernels take, as this process's environment sets them: for `tune --cpu`."""

import mlx.core as mx

from .._metal.plan.backend import NANOBIND
from .._metal.problem.problem import Problem
from .._metal.tuning.cpu import print_times
from .._metal.tuning.measure import Run
from ..functional import neighborhood_attention


def _attend(problem: Problem) -> Run:
    mx.set_default_device(mx.cpu)
    shape = (problem.batch, *problem.query_shape, problem.heads, problem.head_dim)
    query, key, value = (mx.random.normal(shape) for _ in range(3))
    mx.eval(query, key, value)

    def run(times: int) -> None:
        for _ in range(times):
            mx.eval(neighborhood_attention(query, key, value, problem.kernel_size, backend=NANOBIND.name))

    return run


if __name__ == "__main__":
    print_times(_attend)
