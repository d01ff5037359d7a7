"""Pieces of the case table through both packages on an emulated Apple GPU: slabs make the whole, gradients included.

The default run cuts a few cases, because each compiles kernels; single launches of pieces are in test_kernels.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from cases import BY_NAME, CASES, MASKED
from frameworks import MLX, MPS, Path
from joined_slabs import RUNS, check_slabs, ways
from pieces import slabs

from .host import EmulatedHost
from .launch import SCHEDULES
from .mlx_host import EmulatedMlxHost

# MLX passes smaller tensors to a kernel as constants.
SMALLEST = 8

# package -> case, op, and how it is cut.
ALWAYS = {
    MPS: (("seq-causal-dilated-stride", "na", (0, 3)), ("img-mixed", "av", (0, 2))),
    MLX: (("seq-causal-dilated-stride", "na", (0, 2)),),
}


def parameters(package: Any) -> list[Any]:
    """A few cases, each cut in one way; with --all, all cases except empty batches, in every way."""
    found = [pytest.param(name, op, [way], id=f"{name}-{op}-{way}") for name, op, way in ALWAYS[package]]
    for case in (*CASES, *MASKED):
        for op in RUNS:
            if case.batch and ways(case) and (op == "na" or not case.masked):
                every = ways(case)
                found.append(pytest.param(case.name, op, every, id=f"{case}-{op}-every-way", marks=pytest.mark.all))
    return found


def check(host: Any, path: Path, name: str, op: str, cuts: list[tuple[int, int]]) -> None:
    """Check the ways of cutting a case, in each of three schedules."""
    for schedule in SCHEDULES:
        host.schedule = schedule
        for way in cuts:
            check_slabs(path, BY_NAME[name], "float32", op, way)


def smallest_part(name: str, op: str, way: tuple[int, int]) -> int:
    """Elements of the smallest tensor of any slab of a case, apart from its lse, which the launcher pads."""
    whole = {of: each.truth for of, each in RUNS[op][1](BY_NAME[name], "float32").items() if of != "lse"}
    every = slabs(BY_NAME[name], *way)
    return min(array[cut.at(of.removeprefix("d_"))].size for cut in every for of, array in whole.items())


@pytest.mark.parametrize(("name", "op", "cuts"), parameters(MPS))
def test_slabs_make_the_whole_on_metal(name: str, op: str, cuts: list[tuple[int, int]], metal: EmulatedHost) -> None:
    check(metal, Path(MPS, "metal"), name, op, cuts)
    assert metal.launches


@pytest.mark.parametrize(("name", "op", "cuts"), parameters(MLX))
def test_slabs_make_the_whole_on_fast_metal(
    name: str, op: str, cuts: list[tuple[int, int]], mlx_metal: EmulatedMlxHost
) -> None:
    """Where a slab has a tensor that MLX would pass to a kernel as constants, it is refused."""
    path, refused = Path(MLX, "fast_metal"), [way for way in cuts if smallest_part(name, op, way) < SMALLEST]
    taken = [way for way in cuts if way not in refused]
    check(mlx_metal, path, name, op, taken)
    assert bool(mlx_metal.ran) == bool(taken)
    for way in refused:
        with pytest.raises(NotImplementedError, match="fewer than 8 elements as constants"):
            check(mlx_metal, path, name, op, [way])
