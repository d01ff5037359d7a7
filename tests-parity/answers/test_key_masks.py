"""Key masks: random problems against brute force, in which masked keys are NaN and their values infinite."""

from __future__ import annotations

import numpy as np
import pytest
from brute_force import masked
from cases import DTYPES
from frameworks import FRAMEWORKS, PATHS, Framework, Path, planned_backend
from random_problems import call

SHAPE, KEY_SHAPE = (2, 5, 6, 4, 8), (2, 5, 6, 2, 8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_random_problems(path: Path, dtype: str) -> None:
    """Results and all gradients: whole problems, pieces, and axes that wrap around."""
    for number in range(12):
        call(path, masked(dtype, number))


@pytest.mark.all
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_many_random_problems(path: Path, dtype: str) -> None:
    for number in range(100, 600):
        call(path, masked(dtype, number))


def test_problems_are_of_every_kind() -> None:
    drawn = [masked("float32", number) for number in range(12)]
    assert {each.rank for each in drawn} == {1, 2, 3}
    assert any(each.cut is not None for each in drawn) and any(any(each.window.wrap) for each in drawn)
    for name in ("stride", "dilation"):
        assert any(max(getattr(each.window, name)) > 1 for each in drawn)
    assert any(any(each.window.is_causal) for each in drawn)
    assert any("rpb" in each.arrays for each in drawn) and any("additional_keys" in each.arrays for each in drawn)
    assert any(each.arrays["query"].shape[-2] > each.arrays["key"].shape[-2] for each in drawn)
    # Queries without a key, within a batch item that has others, and whole items without keys.
    empty = [np.isinf(each.wanted()["lse"][0]) for each in drawn]
    assert any(item.any() and not item.all() for each in empty for item in each)
    assert any(item.all() for each in empty for item in each)
    masks = [each.arrays["key_mask"] for each in drawn]
    assert all(mask.dtype == bool for mask in masks) and any(mask.any() and not mask.all() for mask in masks)


def arrays() -> tuple[list[np.ndarray], np.ndarray]:
    random = np.random.default_rng(3)
    mask = random.random(KEY_SHAPE[:-2]) < 0.5
    return [random.standard_normal(shape) for shape in (SHAPE, KEY_SHAPE, KEY_SHAPE)], mask


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_a_mask_of_true_changes_nothing(path: Path) -> None:
    framework, (given, mask) = path.framework, arrays()
    tensors = [framework.tensor(array, "float32") for array in given]

    def out(**arguments: object) -> np.ndarray:
        return framework.numpy(framework.face("na2d")(*tensors, 3, backend=path.backend, **arguments))

    assert np.array_equal(out(key_mask=framework.tensor(np.ones_like(mask), "bool")), out())
    assert not np.array_equal(out(key_mask=framework.tensor(mask, "bool")), out())


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_queries_on_a_finer_grid(path: Path) -> None:
    """The mask is on the keys' grid: each query of a cell sees what a query at the key would see."""
    framework, (given, mask) = path.framework, arrays()
    fine = np.random.default_rng(4).standard_normal((2, 10, 18, 4, 8))
    key, value = (framework.tensor(np.where(mask[..., None, None], array, np.nan)) for array in given[1:])
    arguments = {"kernel_size": (3, 4), "key_mask": framework.tensor(mask, "bool"), "backend": path.backend}
    found = framework.numpy(framework.face("na2d")(framework.tensor(fine), key, value, **arguments))
    for i, j in np.ndindex(2, 3):
        own = framework.face("na2d")(framework.tensor(fine[:, i::2, j::3]), key, value, **arguments)
        np.testing.assert_allclose(found[:, i::2, j::3], framework.numpy(own), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_auto_takes_the_kernels(framework: Framework) -> None:
    given, mask = arrays()
    tensors, key_mask = [framework.tensor(array, "float32") for array in given], framework.tensor(mask, "bool")
    assert planned_backend(framework, "na2d", *tensors, kernel_size=3, key_mask=key_mask) == framework.compiled
    with framework.watch() as ran:
        framework.evaluate(framework.face("na2d")(*tensors, 3, key_mask=key_mask))
    assert ran == {framework.compiled}


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_masks_of_any_strides(path: Path) -> None:
    """Views with another memory layout give the same results."""
    framework, (given, mask) = path.framework, arrays()
    tensors = [framework.tensor(array, "float32") for array in given]
    turned = framework.tensor(np.ascontiguousarray(mask.swapaxes(1, 2)), "bool").swapaxes(1, 2)
    spread = framework.tensor(np.repeat(mask, 2, axis=2), "bool")[:, :, ::2]
    out = [
        framework.numpy(framework.face("na2d")(*tensors, 3, key_mask=view, backend=path.backend))
        for view in (framework.tensor(mask, "bool"), turned, spread)
    ]
    assert np.array_equal(out[0], out[1]) and np.array_equal(out[0], out[2])


@pytest.mark.parametrize("additional", [False, True])
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_a_query_that_is_nan_and_sees_no_key(path: Path, additional: bool) -> None:
    """Its out is 0, its lse -inf and its gradient 0; with an additional key, which it sees, its results are NaN."""
    framework, (given, _) = path.framework, arrays()
    given[0][0, 2, 3, 1, 4], mask = np.nan, np.ones(KEY_SHAPE[:-2], bool)
    mask[0] = False
    more = [framework.tensor(np.ones((2, 1, 2, 8)))] * 2 if additional else []
    arguments = {"key_mask": framework.tensor(mask, "bool"), "return_lse": True, "backend": path.backend}

    def call(*tensors: object) -> tuple[object, ...]:
        others = dict(zip(("additional_keys", "additional_values"), tensors[3:], strict=False))
        return tuple(framework.face("na2d")(*tensors[:3], 3, **arguments, **others))

    tensors = [framework.tensor(array) for array in given]
    cotangents = [framework.tensor(np.ones(SHAPE)), framework.tensor(np.ones(SHAPE[:-1]))]
    (out, lse), (of_query, *of_keys) = framework.vjp(call, [*tensors, *more], cotangents)
    out, lse, of_query = (framework.numpy(each) for each in (out, lse, of_query))
    spoilt = np.zeros(SHAPE[:-1], bool)
    spoilt[0, 2, 3, 1] = additional
    assert np.array_equal(np.isnan(out).all(-1), spoilt) and np.array_equal(np.isnan(lse), spoilt)
    assert all((framework.numpy(each)[0] == 0).all() for each in of_keys[:2])
    if not additional:
        assert (out[0] == 0).all() and (lse[0] == -np.inf).all() and (of_query[0] == 0).all()
    assert all(np.isfinite(each[1]).all() for each in (out, lse, of_query))


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_explain_names_it(framework: Framework) -> None:
    given, mask = arrays()
    tensors, key_mask = [framework.tensor(array, "float32") for array in given], framework.tensor(mask, "bool")
    for wrap in (False, True):
        text = framework.package.explain("na2d", *tensors, kernel_size=3, key_mask=key_mask, wrap=wrap)
        assert ", key mask, float32\n" in text
    assert "key mask" not in framework.package.explain("na2d", *tensors, kernel_size=3)
