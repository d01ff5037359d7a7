"""The split ops: logits of window slots, weights of window slots times values, and their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import tolerances
from cases import BY_NAME, CASES, DTYPES, Case, inputs, slot_inputs
from frameworks import MLX, MPS, PATHS, Path, held_slots, run, run_av, run_qk

# The split ops take no additional keys: of two cases that differ only in those, one is enough.
SPLIT = tuple(case for case in CASES if case.additional is None or case.rpb or "everything" in case.name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("case", SPLIT, ids=str)
def test_qk(case: Case, path: Path, dtype: str) -> None:
    """Logits and gradients are within bounds; a NaN cotangent of a slot without a key has no effect."""
    values, dtypes = run_qk(path, case, dtype)
    assert set(dtypes.values()) == {dtype}
    tolerances.assert_within(values, tolerances.split_qk(case, dtype), f"{path}, {case}, {dtype}")
    held = np.broadcast_to(held_slots(case), values["logits"].shape)
    assert np.all(values["logits"][~held] == -np.inf) and np.all(np.isfinite(values["logits"][held]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("case", SPLIT, ids=str)
def test_av(case: Case, path: Path, dtype: str) -> None:
    """Outputs and gradients are within bounds although slots without a key are NaN; their gradient is zero."""
    values, dtypes = run_av(path, case, dtype)
    assert set(dtypes.values()) == {dtype}
    tolerances.assert_within(values, tolerances.split_av(case, dtype), f"{path}, {case}, {dtype}")
    held = np.broadcast_to(held_slots(case), values["attn"].shape)
    assert np.all(values["attn"][~held] == 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SPLIT, ids=str)
def test_packages_agree(case: Case, dtype: str) -> None:
    for backend in ("pure", "dense"):
        ours, theirs = (Path(framework, backend) for framework in (MPS, MLX))
        for function, expected in ((run_qk, tolerances.split_qk), (run_av, tolerances.split_av)):
            a, b = (function(path, case, dtype)[0] for path in (ours, theirs))
            tolerances.assert_agree(a, b, expected(case, dtype), f"{case}, {dtype}, {backend}")


def test_there_are_slots_without_a_key() -> None:
    """Some cases do have empty slots, which the tests above rely on."""
    empty = [case for case in SPLIT if not held_slots(case).all()]
    assert len(empty) >= 12 and {case.rank for case in empty} == {1, 2, 3}


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("case", [case for case in SPLIT if not case.additional], ids=str)
def test_fused_is_softmax_of_qk_then_av(case: Case, path: Path) -> None:
    framework, arrays = path.framework, inputs(case)
    logits = run_qk(path, case, "float64")[0]["logits"]
    top = logits.max(-1, keepdims=True, initial=-np.inf)
    weights = np.exp(logits - top)
    total = weights.sum(-1, keepdims=True)
    attn, value = framework.tensor(weights / total), framework.tensor(arrays["value"])
    with framework.watch() as ran:
        out = framework.numpy(framework.face(f"{case.face}_av")(attn, value, **case.window, backend=path.backend))
    assert ran == {path.backend} or not case.batch
    fused, _ = run(path, case, "float64")
    np.testing.assert_allclose(out, fused["out"], rtol=0, atol=1e-13)
    np.testing.assert_allclose((top + np.log(total))[..., 0], fused["lse"], rtol=0, atol=1e-13)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_attn_of_another_dtype_is_converted(path: Path) -> None:
    """attn in float32 with value in bfloat16 equals attn rounded first; its gradient is float32."""
    case, framework = BY_NAME["img-causal"], path.framework
    arrays = inputs(case, "bfloat16")
    attn, value = slot_inputs(case, "bfloat16")["attn"], framework.tensor(arrays["value"], "bfloat16")
    cotangent = framework.tensor(arrays["d_out"], "bfloat16")

    def av(*given: object) -> tuple[object]:
        return (framework.face("na2d_av")(*given, **case.window, backend=path.backend),)

    found = []
    for dtype in ("float32", "bfloat16"):
        (out,), (attn_grad, value_grad) = framework.vjp(av, [framework.tensor(attn, dtype), value], [cotangent])
        assert [framework.dtype_of(t) for t in (out, attn_grad, value_grad)] == ["bfloat16", dtype, "bfloat16"]
        found.append([framework.numpy(t) for t in (out, value_grad, attn_grad)])
    for a, b in zip(*found, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_half_precision_logits_may_overflow_where_fused_does_not(path: Path) -> None:
    """300 * 300 overflows float16, so qk gives inf; the fused op accumulates in float32 and stays finite."""
    framework = path.framework
    tensor = framework.tensor(np.full((1, 5, 1, 1), 300.0), "float16")
    logits = framework.numpy(framework.face("na1d_qk")(tensor, tensor, 3, backend=path.backend))
    assert np.all(logits == np.inf)
    out = framework.face("na1d")(tensor, tensor, tensor, 3, return_lse=True, backend=path.backend)
    assert [framework.numpy(part).ravel().tolist() for part in out] == [
        [300.0] * 5,
        pytest.approx([90000 + np.log(3)] * 5),
    ]
