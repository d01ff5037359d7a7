"""Calls that compute a piece of a larger problem: random ones against brute force, and the case table in slabs."""

from __future__ import annotations

import numpy as np
import pytest
from brute_force import piece
from cases import CASES, DTYPES, MASKED, Case, tagged
from frameworks import FRAMEWORKS, PATHS, Framework, Path
from joined_slabs import RUNS, check_slabs, ways
from random_problems import call

SOME = {"na": 6, "qk": 3, "av": 3}
# For each op and dtype: 2,040 for each backend.
MANY = 170


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", SOME)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_some_random_pieces(path: Path, op: str, dtype: str) -> None:
    for number in range(SOME[op]):
        call(path, piece(op, dtype, number))


@pytest.mark.all
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", SOME)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_many_random_pieces(path: Path, op: str, dtype: str) -> None:
    for number in range(MANY):
        call(path, piece(op, dtype, 100 + number))


def test_pieces_are_of_every_kind() -> None:
    """Each feature that the suite claims to cover occurs in some piece."""
    drawn = [piece(op, "float32", number) for op in SOME for number in range(100, 160)]
    for op in SOME:
        own = [each for each in drawn if each.op == op]
        windows, cuts = [each.window for each in own], [each.cut for each in own if each.cut is not None]
        assert len(cuts) == len(own) and {each.rank for each in own} == {1, 2, 3}
        assert any(max(w.stride) > 1 for w in windows) and any(max(w.dilation) > 1 for w in windows)
        assert any(any(w.is_causal) for w in windows)
        assert any(cut.queries != cut.keys for cut in cuts) and any(cut.queries == cut.keys for cut in cuts)
        starts = [cut.arguments[name] for cut in cuts for name in ("query_start", "key_start")]
        assert any(max(start) > 0 for start in starts) and any(max(start) == 0 for start in starts)
    fused = [set(each.arrays) for each in drawn if each.op == "na"]
    assert any("rpb" in names for names in fused) and any("additional_keys" in names for names in fused)


# --- the case table in slabs -------------------------------------------------------------------------

CUT = [case for case in (*CASES, *MASKED) if ways(case)]


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("case", CUT, ids=str)
def test_slabs_make_the_whole(case: Case, path: Path) -> None:
    """Each case cut in one way, which differs from case to case."""
    every = ways(case)
    check_slabs(path, case, "float64", "na", every[CUT.index(case) % len(every)])


@pytest.mark.parametrize("op", ["qk", "av"])
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_slabs_of_split_ops_make_the_whole(path: Path, op: str) -> None:
    for number, case in enumerate([case for case in tagged("small") if ways(case)][::2]):
        every = ways(case)
        check_slabs(path, case, "float64", op, every[number % len(every)])


@pytest.mark.all
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("op", "case"), [(op, case) for op in RUNS for case in CUT if op == "na" or not case.masked])
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_all_slabs_make_the_whole(case: Case, path: Path, op: str, dtype: str) -> None:
    """Each case in two to five slabs along every axis."""
    for way in ways(case):
        check_slabs(path, case, dtype, op, way)


# --- single properties -------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_a_piece_that_is_the_whole_is_the_same_problem(framework: Framework) -> None:
    """It is planned, and thus computed, as if it had been called without full_shape."""
    tensors = [framework.tensor(np.ones((1, 5, 6, 2, 4)), "float32")] * 3
    plain = framework.package.explain("na2d", *tensors, kernel_size=3)
    assert framework.package.explain("na2d", *tensors, kernel_size=3, full_shape=(5, 6), query_start=0) == plain
    cut = [framework.tensor(np.ones((1, 5, 2, 2, 4)), "float32"), *tensors[1:]]
    named = framework.package.explain("na2d", *cut, kernel_size=3, full_shape=(5, 6), query_start=(0, 3))
    assert "shape (5, 2), keys (5, 6)" in named
    assert ", a piece of (5, 6): queries from (0, 3), keys from (0, 0), " in named


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_keys_out_of_reach_get_zero_gradients(path: Path) -> None:
    """Exactly zero: a query sees no key of another dilation group. On the pure backend not even a NaN reaches such
    keys; the others multiply it by weights of 0, the kernels where keys share a patch.
    """
    framework, gradient = path.framework, np.nan if path.backend == "pure" else 1.0
    random = np.random.default_rng(0)
    cut = {"full_shape": 12, "query_start": 4, "key_start": 1}
    window = {"kernel_size": 2, "dilation": 3, "backend": path.backend}
    reach = (0, 3)  # query 4 sees the keys 1 and 4
    for face, shapes in {
        "na1d": [(1, 1, 2, 4), (1, 11, 2, 4), (1, 11, 2, 4)],
        "na1d_qk": [(1, 1, 2, 4), (1, 11, 2, 4)],
        "na1d_av": [(1, 1, 2, 2), (1, 11, 2, 4)],
    }.items():
        last = (1, 1, 2, 2 if face.endswith("qk") else 4)
        _, gradients = framework.vjp(
            lambda *given: (framework.face(face)(*given, **window, **cut),),  # noqa: B023 - called at once
            [framework.tensor(random.standard_normal(shape)) for shape in shapes],
            [framework.tensor(np.full(last, gradient))],
        )
        for of_keys in map(framework.numpy, gradients[1:]):
            zero = (of_keys == 0).all((0, 2, 3))
            assert zero.tolist() == [key not in reach for key in range(11)], face
