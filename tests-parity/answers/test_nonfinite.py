"""NaN and infinity spread no further than the window, or the box of keys that a block of queries visits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import BY_NAME, CASES, INPUTS, Case, inputs
from frameworks import PATHS, Path

from natten_mps._metal.plan import blocks
from natten_mps._metal.plan.backend import BACKENDS, Work
from natten_mps._metal.plan.device import Device
from natten_mps._metal.plan.plan import plan
from natten_mps._metal.problem import mask, window
from natten_mps._metal.problem.problem import Problem

Array = Any
POISONED = tuple(case for case in CASES if case.batch and "everything" in case.name) + tuple(
    BY_NAME[name]
    for name in (
        "seq-long",
        "seq-stride",
        "seq-dilated-uneven",
        "seq-long-causal-dilated",
        "img-mixed",
        "img-large",
        "vol-large",
    )
)
# The most rows that a piece of a CPU kernel's patch may have: one for each lane of the widest vector.
LANES = 16


def touched(case: Case, backend: str, key: int) -> Array:
    """``[queries]`` bool: the queries that a NaN in ``key`` may reach, those of the blocks that visit the key.

    On the dense backend, which has no blocks, the queries that attend to it.
    """
    problem = case.problem("float32")
    if backend == "dense":
        found: Array = mask.neighborhood_mask(problem)[:, key]
        return found
    if BACKENDS[backend].cpu is Work.CPU_KERNELS:
        return touched_in_patches(problem, key)
    walk = plan(problem, Device("cpu", "cpu"), "pure", ("pure",)).forward.queries
    assert walk is not None
    reached = np.zeros(problem.queries, dtype=bool)
    for chunk in blocks.Tables(walk, mask.NumpyTables()).chunks():
        visits = (chunk.columns == key).any(-1)
        reached[chunk.rows[visits].ravel()] = True
    return reached


def touched_in_patches(problem: Problem, key: int) -> Array:
    """The same for the CPU kernels, as an upper bound: which patch they use depends on the machine's vectors, but along
    each axis it lies within :data:`LANES` positions of a dilation group that begin at a multiple of LANES.
    """
    reached = np.ones(problem.query_shape, dtype=bool)
    for number, (axis, at) in enumerate(zip(problem.axes, np.unravel_index(key, problem.key_shape), strict=True)):
        own = np.zeros(axis.queries, dtype=bool)
        group, position = int(at) % axis.dilation, int(at) // axis.dilation
        n = window.group_length(axis.queries, group, axis.dilation)
        for first in range(0, n, LANES):
            last = min(first + LANES, n) - 1
            low, high = (window.window(p, n, axis.window, axis.stride, axis.causal) for p in (first, last))
            if low[0] <= position < high[1]:
                own[group + axis.dilation * first : group + axis.dilation * last + 1 : axis.dilation] = True
        shape = [1] * problem.rank
        shape[number] = -1
        reached &= own.reshape(shape)
    return reached.ravel()


def attend(path: Path, case: Case, arrays: dict[str, Array]) -> tuple[Array, Array]:
    """Output and lse as ``[B, queries, H, ...]``."""
    framework = path.framework
    given = {name: framework.tensor(a, "float32") for name, a in arrays.items() if name in INPUTS}
    with framework.watch() as ran:
        found = framework.face(case.face)(**given, **case.window, return_lse=True, backend=path.backend)
        framework.evaluate(*found)
    assert ran == {path.backend}
    out, lse = map(framework.numpy, found)
    return out.reshape(case.batch, -1, *out.shape[-2:]), lse.reshape(case.batch, -1, lse.shape[-1])


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("case", POISONED, ids=str)
def test_a_bad_key_stays_in_its_boxes(case: Case, path: Path, poison: float) -> None:
    """One poisoned key (and value) of one item and head: other items and heads, and queries whose block does not visit
    it, keep their results to the bit; every query that attends to a NaN has NaN.
    """
    arrays = inputs(case, "float32")
    clean = attend(path, case, arrays)
    key = case.problem().keys // 3
    for name in ("key", "value"):
        arrays[name] = arrays[name].copy()
        arrays[name].reshape(case.batch, -1, case.kv_heads, arrays[name].shape[-1])[0, key, 0] = poison
    dirty = attend(path, case, arrays)
    reach = touched(case, path.backend, key)
    assert path.backend != "pure" or not reach.all() or case.problem().queries < 400
    groups = case.heads // case.kv_heads
    for before, after in zip(clean, dirty, strict=True):
        assert np.array_equal(before[1:], after[1:])
        assert np.array_equal(before[0, :, groups:], after[0, :, groups:])
        assert np.array_equal(before[0, ~reach, :groups], after[0, ~reach, :groups])
    sees = mask.neighborhood_mask(case.problem())[:, key]
    assert sees.any()
    if np.isnan(poison):
        assert np.isnan(dirty[0][0, sees, :groups]).all() and np.isnan(dirty[1][0, sees, :groups]).all()


@pytest.mark.parametrize("backend", ["native", "pure"])
@pytest.mark.parametrize("name", ["seq-long", "seq-long-causal-dilated"])
def test_boxes_leave_queries_out(name: str, backend: str) -> None:
    """In some cases of the test above, some queries lie outside the blocks that visit the key."""
    case = BY_NAME[name]
    assert case in POISONED
    assert not touched(case, backend, case.problem().keys // 3).all()


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("case", POISONED, ids=str)
def test_a_bad_query_affects_only_its_own_row(case: Case, path: Path) -> None:
    arrays = inputs(case, "float32")
    clean = attend(path, case, arrays)
    query = case.problem().queries // 2
    arrays["query"] = arrays["query"].copy()
    arrays["query"].reshape(case.batch, -1, case.heads, case.head_dim)[0, query, 0] = np.nan
    dirty = attend(path, case, arrays)
    for before, after in zip(clean, dirty, strict=True):
        assert np.isnan(after[0, query, 0]).all()
        after[0, query, 0] = before[0, query, 0]
        assert np.array_equal(before, after)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("name", ["seq-additional-everything", "img-additional-everything"])
def test_gradients_of_what_is_out_of_reach_stay_clean(name: str, path: Path) -> None:
    """A NaN in the gradient of one query's output reaches only the keys that it sees, in its own head and item."""
    case, framework = BY_NAME[name], path.framework
    arrays = inputs(case, "float32")
    names = [n for n in INPUTS if n in arrays]
    given = [framework.tensor(arrays[n], "float32") for n in names]
    query, problem = case.problem().queries // 2, case.problem()
    gradients = []
    for poison in (1.0, np.nan):
        d_out = arrays["d_out"].copy()
        d_out.reshape(case.batch, -1, case.heads, case.head_dim_v)[0, query, 0] = poison
        call = framework.face(case.face)
        _, found = framework.vjp(
            lambda *t: (call(**dict(zip(names, t, strict=True)), **case.window, backend=path.backend),),  # noqa: B023
            given,
            [framework.tensor(d_out, "float32")],
        )
        gradients.append({n: framework.numpy(g) for n, g in zip(names, found, strict=True)})
    clean, dirty = gradients
    for n in ("query", "key", "value", "additional_keys", "additional_values"):
        assert np.array_equal(clean[n][1:], dirty[n][1:]), n
        assert np.array_equal(clean[n][0, ..., 1:, :], dirty[n][0, ..., 1:, :]), n
    seen = mask.neighborhood_mask(problem)[query]
    value_grad = dirty["value"].reshape(case.batch, -1, case.kv_heads, case.head_dim_v)
    assert np.isnan(value_grad[0, seen, 0]).all()
    query_grad = dirty["query"].reshape(case.batch, -1, case.heads, case.head_dim)
    others = np.arange(problem.queries) != query
    assert np.isnan(query_grad[0, query, 0]).all() and np.isfinite(query_grad[0, others]).all()


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_infinite_logits_of_finite_inputs(path: Path) -> None:
    """float32 logits that overflow give NaN where they are seen, never a wrong number."""
    framework = path.framework
    huge = np.full((1, 9, 1, 1), 1e30)
    huge[0, 6:] = 1.0
    tensor = framework.tensor(huge, "float32")
    out = framework.numpy(framework.face("na1d")(tensor, tensor, tensor, 3, backend=path.backend)).ravel()
    assert np.isnan(out[:6]).all() and np.allclose(out[7:], 1.0)


# --- varlen and merging ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_padding_is_never_read(path: Path) -> None:
    """Padding full of NaN gives the results of zero padding; out of padding is 0, its lse -inf, its gradients 0."""
    framework, random = path.framework, np.random.default_rng(5)
    sizes = [[4, 6], [0, 3], [3, 3], [5, 4]]
    inside = np.zeros((4, 5, 6, 1, 1), dtype=bool)
    for item, (x, y) in enumerate(sizes):
        inside[item, :x, :y] = True
    arrays = [random.standard_normal((4, 5, 6, 2, 3)) for _ in range(3)]
    cotangents = [random.standard_normal((4, 5, 6, 2, 3)), random.standard_normal((4, 5, 6, 2))]

    def call(*given: Any) -> Any:
        return framework.face("na2d_varlen")(*given, sizes, 3, return_lse=True, backend=path.backend)

    runs = []
    for padding in (0.0, np.nan):
        given = [framework.tensor(np.where(inside, a, padding), "float32") for a in arrays]
        flowing = [np.where(inside if c.ndim == 5 else inside[..., 0], c, padding) for c in cotangents]
        with framework.watch() as ran:
            found = framework.vjp(call, given, [framework.tensor(c, "float32") for c in flowing])
        assert ran == {path.backend}
        runs.append([framework.numpy(tensor) for part in found for tensor in part])
    for zeros, nans in zip(*runs, strict=True):
        assert np.array_equal(zeros, nans)
    out, lse, *gradients = runs[1]
    assert np.all(out[~np.broadcast_to(inside, out.shape)] == 0)
    assert np.all(lse[~np.broadcast_to(inside[..., 0], lse.shape)] == -np.inf)
    assert np.isfinite(lse[np.broadcast_to(inside[..., 0], lse.shape)]).all()
    for gradient in gradients:
        assert np.all(gradient[~np.broadcast_to(inside, gradient.shape)] == 0)
