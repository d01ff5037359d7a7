"""Queries on a grid that is finer than the keys': each sees the window of the key cell that it lies in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from brute_force import Window
from cases import DTYPES
from frameworks import FRAMEWORKS, PATHS, Framework, Path
from rounding import Dense, accumulator, assert_explained

Array = Any
NAMES = ("query", "key", "value", "additional_keys", "additional_values", "rpb")

# window, the keys' grid, queries per key along each axis, heads, kv heads, additional keys
PROBLEMS = (
    (Window((3,), (1,), (1,), (False,)), (7,), (4,), 2, 1, 0),
    (Window((4,), (2,), (2,), (False,)), (11,), (3,), 2, 2, 3),
    (Window((3, 5), (1, 1), (1, 1), (False, False)), (5, 6), (2, 2), 2, 2, 0),
    (Window((3, 2), (2, 1), (1, 3), (False, True)), (4, 7), (1, 3), 4, 2, 2),
    (Window((2, 3, 2), (1, 2, 1), (2, 1, 1), (True, False, False)), (4, 3, 3), (2, 1, 2), 2, 1, 0),
)


def _arrays(number: int, biased: bool, dtype: str) -> dict[str, Array]:
    from brute_force import rounded

    window, grid, ratio, heads, kv, additional = PROBLEMS[number]
    random = np.random.default_rng([7, number])
    fine = tuple(length * r for length, r in zip(grid, ratio, strict=True))
    shapes = {"query": (*fine, heads, 8), "key": (*grid, kv, 8), "value": (*grid, kv, 6)}
    if additional:
        shapes |= {"additional_keys": (additional, kv, 8), "additional_values": (additional, kv, 6)}
    arrays = {name: random.standard_normal((2, *shape)) for name, shape in shapes.items()}
    if biased:
        arrays["rpb"] = random.standard_normal((heads, *(2 * w - 1 for w in window.kernel_size)))
    arrays |= {
        "d_out": random.standard_normal((2, *fine, heads, 6)),
        "d_lse": random.standard_normal((2, *fine, heads)),
    }
    return {name: rounded(a, accumulator(dtype) if name == "d_lse" else dtype) for name, a in arrays.items()}


def _truth(number: int, arrays: dict[str, Array], dtype: str, rounded_weights: bool) -> Any:
    """From the tables of the keys' grid: a query takes the row of the cell that it lies in."""
    window, grid, ratio, *_ = PROBLEMS[number]
    mask, offsets, _ = window.tables(grid)
    fine = arrays["query"].shape[1:-2]
    cells = [
        int(np.ravel_multi_index([token // r for token, r in zip(tokens, ratio, strict=True)], grid))
        for tokens in np.ndindex(*fine)
    ]
    return Dense(arrays, mask[cells], offsets[cells], 8**-0.5, dtype, rounded_weights=rounded_weights).fused()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", range(len(PROBLEMS)))
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_results_and_gradients(path: Path, number: int, dtype: str) -> None:
    framework, window = path.framework, PROBLEMS[number][0]
    arrays = _arrays(number, max(window.stride) == 1, dtype)
    names = [name for name in NAMES if name in arrays]

    def apply(*tensors: Any) -> Any:
        given = dict(zip(names, tensors, strict=True)) | window.arguments
        return framework.package.neighborhood_attention(**given, return_lse=True, backend=path.backend)

    cotangents = [framework.tensor(arrays["d_out"], dtype), framework.tensor(arrays["d_lse"], accumulator(dtype))]
    with framework.watch() as ran:
        results, gradients = framework.vjp(apply, [framework.tensor(arrays[n], dtype) for n in names], cotangents)
    assert ran == {path.backend}
    pairs = zip(["out", "lse", *names], [*results, *gradients], strict=True)
    found = {name: framework.numpy(tensor) for name, tensor in pairs}
    assert_explained(found, _truth(number, arrays, dtype, False), dtype, f"{path}: {PROBLEMS[number]}")


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_grids_that_do_not_fit(framework: Framework) -> None:
    """The error says what would work."""
    query, key = (framework.tensor(np.ones((1, *shape, 2, 4)), "float32") for shape in ((8, 9), (4, 6)))
    with pytest.raises(ValueError) as caught:
        framework.package.na2d(query, key, key, 3)
    assert str(caught.value) == (
        "na2d: query, key and value must share one shape; got (8, 9), (4, 6) and (4, 6). Queries may lie on a finer "
        "grid, an integer multiple of the keys' on each axis, and a piece of a larger problem needs full_shape"
    )
