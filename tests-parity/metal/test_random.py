"""Random problems against brute force through both packages on an emulated Apple GPU, forward and gradients.

Compiling the kernels takes most of the time, so the default run leaves these to the case table.
"""

from __future__ import annotations

import pytest
from brute_force import problem
from frameworks import MLX, MPS, Path
from random_problems import OPS, call

from .host import EmulatedHost
from .mlx_host import EmulatedMlxHost

DTYPES = ("float32", "float16", "bfloat16")
# One head dim, because kernels are compiled for it.
WIDTH = 8
MANY = 200


def check(path: Path, op: str, dtype: str) -> None:
    for number in range(MANY):
        call(path, problem(op, dtype, number, WIDTH))


@pytest.mark.all
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_many_on_metal(op: str, dtype: str, metal: EmulatedHost) -> None:
    check(Path(MPS, "metal"), op, dtype)


@pytest.mark.all
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_many_on_fast_metal(op: str, dtype: str, mlx_metal: EmulatedMlxHost) -> None:
    check(Path(MLX, "fast_metal"), op, dtype)
