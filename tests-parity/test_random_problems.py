"""Random problems against a brute-force reference that shares nothing with the packages.

Every op, dtype and path, with logits of up to 1e5; every result and gradient, element by element, as near to the truth
as the roundings of its dtype explain (:mod:`rounding`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from brute_force import ITEMS, Random, problem
from cases import DTYPES
from frameworks import PATHS, Path
from rounding import accumulator, assert_explained

OPS = ("na", "qk", "av", "varlen")
RESULTS = {"na": ("out", "lse"), "varlen": ("out", "lse"), "qk": ("logits",), "av": ("out",)}
SOME = {"na": 12, "qk": 4, "av": 4, "varlen": 4}
# 2,000 for each op and path: 500 of each dtype. In parts that workers can share.
MANY, PARTS = 500, 4


def call(path: Path, given: Random) -> None:
    """Results and gradients of a problem lie where they must."""
    framework, dtype = path.framework, given.dtype
    names = [name for name in given.arrays if not name.startswith("d_")]
    arguments: dict[str, Any] = given.window.arguments
    face = f"na{given.rank}d" + ("" if given.op == "na" else f"_{given.op}")
    arrays = dict(given.arrays)
    if given.op in ("na", "varlen"):
        arguments["return_lse"] = True
    if given.op == "varlen":
        arguments["seq_lens" if given.rank == 1 else "spatial_sizes"] = (
            [size[0] for size in given.sizes] if given.rank == 1 else list(given.sizes)
        )
        # What lies in the padding is not read.
        for name, array in arrays.items():
            held = np.zeros(array.shape, bool)
            for item, size in enumerate(given.sizes):
                held[(item, *map(slice, size))] = True
            arrays[name] = np.where(held, array, np.nan)
    cotangents = ["d_" + name for name in RESULTS[given.op]]

    def apply(*tensors: Any) -> Any:
        found = framework.face(face)(**dict(zip(names, tensors, strict=True)), **arguments, backend=path.backend)
        return found if isinstance(found, tuple) else (found,)

    with framework.watch() as ran:
        results, gradients = framework.vjp(
            apply,
            [framework.tensor(arrays[n], dtype) for n in names],
            [framework.tensor(arrays[n], accumulator(dtype) if n == "d_lse" else dtype) for n in cotangents],
        )
    assert ran == {path.backend}
    tensors = zip([*RESULTS[given.op], *names], [*results, *gradients], strict=True)
    found = {name: framework.numpy(tensor) for name, tensor in tensors}
    assert_explained(found, given.wanted(path.backend in ("metal", "fast_metal")), dtype, f"{path}: {given}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_some_random_problems(path: Path, op: str, dtype: str) -> None:
    for number in range(SOME[op]):
        call(path, problem(op, dtype, number))


@pytest.mark.all
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_many_random_problems(path: Path, op: str, dtype: str, part: int) -> None:
    for number in range(part, MANY, PARTS):
        call(path, problem(op, dtype, 100 + number))


def test_problems_are_of_every_kind() -> None:
    """What the suite says of features is said of some problems."""
    drawn = [problem(op, "float32", number) for op in OPS for number in range(100, 160)]
    for op in OPS:
        own = [each for each in drawn if each.op == op]
        assert {each.rank for each in own} == {1, 2, 3}
        assert any(max(each.window.stride) > 1 for each in own) and any(max(each.window.dilation) > 1 for each in own)
        assert any(any(each.window.is_causal) for each in own)
    fused = [set(each.arrays) for each in drawn if each.op == "na"]
    assert any("rpb" in names for names in fused) and any("additional_keys" in names for names in fused)
    assert any("rpb" in each.arrays for each in drawn if each.op == "qk")
    varlen = [each.sizes for each in drawn if each.op == "varlen"]
    assert all(len(sizes) == ITEMS for sizes in varlen) and any(len(set(sizes)) > 1 for sizes in varlen)
    tops = [abs(each.wanted()["lse"][0]).max() for each in drawn if each.op == "na"]
    assert max(tops) > 3e4 and min(tops) < 30
