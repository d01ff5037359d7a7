"""Axes that wrap around: random problems against a reference that lists each query's keys with modular distances."""

from __future__ import annotations

import numpy as np
import pytest
from brute_force import problem
from cases import DTYPES
from frameworks import PATHS, Path
from random_problems import call

OPS = ("na", "qk", "av")
SOME = {"na": 8, "qk": 3, "av": 3}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_random_problems(path: Path, op: str, dtype: str) -> None:
    """Results and all gradients, of every dtype and backend."""
    for number in range(SOME[op]):
        call(path, problem(op, dtype, number, wraps=True))


@pytest.mark.all
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_many_random_problems(path: Path, op: str, dtype: str) -> None:
    for number in range(250):
        call(path, problem(op, dtype, 100 + number, wraps=True))


def test_problems_are_of_every_kind() -> None:
    drawn = [problem(op, "float32", number, wraps=True) for op in OPS for number in range(100, 160)]
    wrapping = [(each.window, axis) for each in drawn for axis in range(each.rank) if each.window.wrap[axis]]
    assert any(window.stride[axis] > 1 for window, axis in wrapping)
    assert any(window.dilation[axis] > 1 for window, axis in wrapping)
    assert any(window.stride[axis] > 1 and window.dilation[axis] > 1 for window, axis in wrapping)
    assert any(window.kernel_size[axis] % 2 == 0 for window, axis in wrapping)
    assert any(any(each.window.is_causal) for each in drawn) and any(not all(each.window.wrap) for each in drawn)
    assert any(all(each.window.wrap) and each.rank == 3 for each in drawn)
    fused = [set(each.arrays) for each in drawn if each.op == "na"]
    assert any("rpb" in names for names in fused) and any("additional_keys" in names for names in fused)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_rolling_tokens_rolls_the_result(path: Path) -> None:
    """An axis that wraps around has no ends: it makes no difference where it is cut."""
    framework = path.framework
    random = np.random.default_rng(5)
    arrays = [random.standard_normal((2, 12, 10, 2, 8)) for _ in range(3)]
    arguments = {"kernel_size": (5, 4), "stride": (2, 1), "dilation": (2, 1), "wrap": (True, True)}

    def out(shift: tuple[int, int]) -> np.ndarray:
        rolled = [framework.tensor(np.roll(array, shift, (1, 2)), "float32") for array in arrays]
        with framework.watch() as ran:
            found = framework.numpy(framework.package.na2d(*rolled, **arguments, backend=path.backend))
        assert ran == {path.backend}
        return found

    still = out((0, 0))
    # By whole stride groups of each dilation group.
    for shift in ((4, 0), (0, 3), (8, 7)):
        np.testing.assert_allclose(out(shift), np.roll(still, shift, (1, 2)), rtol=0, atol=1e-6)
