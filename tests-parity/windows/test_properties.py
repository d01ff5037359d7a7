"""Random problems of every rank: a sweep without hand-picked cases, the same one at every run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tolerances
from cases import Case
from frameworks import MLX, MPS, Path, run, run_av, run_qk
from hypothesis import given, settings
from hypothesis import strategies as st

PURE_MPS = Path(MPS, "pure")
OTHERS = (Path(MLX, "pure"), Path(MPS, MPS.compiled), Path(MLX, MLX.compiled))
LONGEST = {1: 48, 2: 11, 3: 6}
SWEEP = settings(derandomize=True, deadline=None, max_examples=50, database=None)


@st.composite
def axes(draw: Any, length: int) -> tuple[int, int, int, int, bool]:
    """Length, window, stride, dilation and causality of one legal axis."""
    d = draw(st.integers(1, length))
    w = draw(st.integers(1, length // d))
    return length, w, draw(st.integers(1, w)), d, draw(st.booleans())


@st.composite
def problems(draw: Any, rank: int) -> Case:
    """A legal problem: any window on any axis, any heads and head dims, additional keys, rpb, batch."""
    lengths = draw(st.lists(st.integers(1, LONGEST[rank]), min_size=rank, max_size=rank))
    shape, kernel, stride, dilation, causal = zip(*(draw(axes(length)) for length in lengths), strict=True)
    rpb = draw(st.booleans())
    kv_heads = draw(st.integers(1, 2))
    return Case(
        f"random-{draw(st.integers(0, 1 << 30))}",
        shape,
        kernel,
        (1,) * rank if rpb else stride,
        dilation,
        causal,
        batch=draw(st.integers(1, 2)),
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        head_dim=draw(st.integers(1, 9)),
        head_dim_v=draw(st.integers(1, 9)),
        additional=draw(st.one_of(st.none(), st.integers(0, 6))),
        rpb=rpb,
        scale=draw(st.one_of(st.none(), st.floats(-1, 1))),
    )


OPS = ((run, tolerances.fused_truth), (run_qk, tolerances.qk_truth), (run_av, tolerances.av_truth))


def assert_equal(found: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    """All in float64, where nothing but the order of sums may differ."""
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        top = np.abs(values[np.isfinite(values)]).max(initial=1.0)
        apart = tolerances.deviation(found[name], values)
        assert apart <= 1e-12 * top, f"{where}: {name} is off by {apart:.3g}"


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_torch_is_the_reference_and_the_others_are_torch(rank: int) -> None:
    @SWEEP
    @given(problems(rank))
    def sweep(case: Case) -> None:
        for function, truth in OPS:
            ours = function.__wrapped__(PURE_MPS, case, "float64")[0]
            assert_equal(ours, truth(case, "float64"), f"{PURE_MPS} {function.__name__} of {case!r}")
            for path in OTHERS:
                theirs = function.__wrapped__(path, case, "float64")[0]
                assert_equal(theirs, ours, f"{path} {function.__name__} of {case!r}")

    sweep()
