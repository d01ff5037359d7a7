"""Random problems against a brute-force reference that shares no code with the packages.

Every op, dtype and backend, with logits of up to 1e5. Every element of every result and gradient must be as close to
the truth as the roundings of its dtype explain (:mod:`rounding`).
"""

from __future__ import annotations

import pytest
from brute_force import ITEMS, problem
from cases import DTYPES
from frameworks import PATHS, Path
from random_problems import OPS, call

SOME = {"na": 12, "qk": 4, "av": 4, "varlen": 4}
# 2,000 for each op and backend, 500 of each dtype, in parts that test workers can share.
MANY, PARTS = 500, 4


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
    """Each feature that the suite claims to cover occurs in some problem."""
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
