"""Fused attention against the float64 reference: every case, dtype and backend, results and gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tolerances
from cases import BY_NAME, CASES, DTYPES, INPUTS, MASKED, Case, inputs, lse_dtype
from frameworks import MLX, MPS, PATHS, Path, run

from natten_mps._metal.problem import reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("case", (*CASES, *MASKED), ids=str)
def test_within_bounds(case: Case, path: Path, dtype: str) -> None:
    values, dtypes = run(path, case, dtype)
    assert dtypes == {name: lse_dtype(dtype) if name == "lse" else dtype for name in values}
    tolerances.assert_within(values, tolerances.fused(case, dtype), f"{path}, {case}, {dtype}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", (*CASES, *MASKED), ids=str)
def test_packages_agree(case: Case, dtype: str) -> None:
    for backend in ("pure", "dense"):
        (ours, _), (theirs, _) = (run(Path(framework, backend), case, dtype) for framework in (MPS, MLX))
        tolerances.assert_agree(ours, theirs, tolerances.fused(case, dtype), f"{case}, {dtype}, {backend}")


def test_the_table_is_wide() -> None:
    """At least 60 problems, and every feature in every rank that has it."""
    assert len(CASES) >= 60 and len({case.name for case in CASES}) == len(CASES)
    features = ("even", "odd", "whole", "stride", "dilation", "causal", "additional", "rpb", "batch0", "gqa")
    for rank in (1, 2, 3):
        of_rank = [case for case in CASES if case.rank == rank]
        for feature in features:
            assert any(feature in case.tags for case in of_rank), f"rank {rank} has no case with {feature}"
    everywhere = frozenset().union(*(case.tags for case in CASES))
    assert everywhere >= {"single", "stride-uneven", "dilation-uneven", "causal-mixed", "mqa", "values", "scale"}
    assert {1, 3, 8, 20, 33, 64, 128} <= {case.head_dim for case in CASES}


MISTAKES: dict[str, dict[str, Any]] = {
    "a window one key short": {"kernel_size": (4, 3)},
    "causal on the wrong axis": {"is_causal": (True, False)},
    "stride ignored": {"stride": (1, 1)},
    "dilation ignored": {"dilation": (1, 1)},
    "the wrong kv head": {"kv_heads": 1},
    "a scale that is off": {"scale": 0.3},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_bounds_see_mistakes(mistake: str, dtype: str) -> None:
    """The results of a slightly different problem exceed the bounds, in every dtype."""
    case = replace(BY_NAME["img-mixed"], stride=(2, 3))
    expected = tolerances.fused(case, dtype)
    wrong = replace(case, **MISTAKES[mistake])
    arrays = inputs(case, dtype)
    given = {name: arrays[name][..., : wrong.kv_heads, :] if name != "query" else arrays[name] for name in INPUTS[:3]}
    out, lse = reference.forward(wrong.problem(dtype), **given)
    gradients = reference.backward(wrong.problem(dtype), arrays["d_out"], arrays["d_lse"], **given)
    for name, found in ({"out": out, "lse": lse} | gradients).items():
        if found.shape == expected[name].truth.shape:
            apart = tolerances.deviation(found, expected[name].truth)
            assert apart > expected[name].bound, f"{name}: {apart:.3g} is within {expected[name].bound:.3g}"


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize(
    "name", ["seq-long-causal-dilated", "img-rpb-everything", "vol-rpb-everything", "img-large-rpb"]
)
def test_a_repeated_run_is_equal_to_the_bit(name: str, path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        first, _ = run(path, BY_NAME[name], dtype)
        again, _ = run.__wrapped__(path, BY_NAME[name], dtype)
        for tensor, values in first.items():
            assert np.array_equal(values, again[tensor]), f"{tensor} in {dtype}"


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_an_empty_batch(path: Path) -> None:
    """Outputs are empty, and so are gradients of tensors with a batch axis; the gradient of rpb is zero."""
    values, _ = run(path, BY_NAME["img-batch0"], "float32")
    assert values["out"].shape == (0, 5, 6, 4, 8) and values["lse"].shape == (0, 5, 6, 4)
    assert values["additional_keys"].shape == (0, 3, 2, 8)
    assert values["rpb"].shape == (4, 5, 5) and not values["rpb"].any()


def contiguous_run(path: Path, case: Case, tensors: dict[str, Any]) -> list[Any]:
    """Results and gradients of the case, on tensors with their given memory layout."""
    framework, arrays = path.framework, inputs(case, "float32")
    cotangents = [framework.tensor(arrays[name], "float32") for name in ("d_out", "d_lse")]
    names = tuple(tensors)

    def call(*given: Any) -> Any:
        return framework.face(case.face)(
            **dict(zip(names, given, strict=True)), **case.window, return_lse=True, backend=path.backend
        )

    with framework.watch() as ran:
        results, gradients = framework.vjp(call, [tensors[name] for name in names], cotangents)
    assert ran == {path.backend}
    return [framework.numpy(tensor) for tensor in (*results, *gradients)]


def layouts(path: Path, case: Case) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of equal tensors: as views of something larger, and contiguous."""
    tensor = path.framework.tensor
    arrays = {name: a for name, a in inputs(case, "float32").items() if name in INPUTS}
    heads_first = {name: np.moveaxis(a, -2, 1) for name, a in arrays.items()}
    fused = np.stack([arrays[name] for name in ("query", "key", "value")], axis=-3)
    one = {name: a[:1] for name, a in arrays.items()}
    transposed = {
        name: tensor(np.ascontiguousarray(np.swapaxes(a, 1, 2)), "float32").swapaxes(1, 2) for name, a in arrays.items()
    }
    qkv = tensor(fused, "float32")
    return {
        "views of fused qkv": (
            {name: qkv[..., i, :, :] for i, name in enumerate(("query", "key", "value"))},
            {name: tensor(arrays[name], "float32") for name in ("query", "key", "value")},
        ),
        "heads first in memory": (
            {name: _heads_last(path, np.ascontiguousarray(a)) for name, a in heads_first.items()},
            {name: tensor(a, "float32") for name, a in arrays.items()},
        ),
        "axes swapped in memory": (transposed, {name: tensor(a, "float32") for name, a in arrays.items()}),
        "one item broadcast over the batch": (
            {name: _broadcast(path, tensor(a, "float32"), case.batch) for name, a in one.items()},
            {name: tensor(np.repeat(a, case.batch, 0), "float32") for name, a in one.items()},
        ),
        "every other token": (
            {name: tensor(np.repeat(a, 2, axis=1), "float32")[:, ::2] for name, a in arrays.items()},
            {name: tensor(a, "float32") for name, a in arrays.items()},
        ),
    }


def _heads_last(path: Path, array: Any) -> Any:
    tensor = path.framework.tensor(array, "float32")
    return tensor.moveaxis(1, -2)


def _broadcast(path: Path, tensor: Any, batch: int) -> Any:
    if path.framework is MPS:
        return tensor.expand(batch, *tensor.shape[1:])
    import mlx.core as mx

    return mx.broadcast_to(tensor, (batch, *tensor.shape[1:]))


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("name", ["img-batch3"])
def test_memory_layout_does_not_matter(name: str, path: Path) -> None:
    """Our kernels, and the gathered rows of the pure backend, give the same bits. dense passes views to the framework's
    own product, which on some processors sums in another order for another layout: there, equal up to rounding.
    """
    case = BY_NAME[name]
    expected = tolerances.fused(case, "float32")
    for layout, (views, packed) in layouts(path, case).items():
        found, wanted = (contiguous_run(path, case, tensors) for tensors in (views, packed))
        for tensor, a, b in zip(("out", "lse", *packed), found, wanted, strict=True):
            allowed = expected[tensor].bound if path.backend == "dense" else 0.0
            assert tolerances.deviation(a, b) <= allowed, (layout, tensor)
