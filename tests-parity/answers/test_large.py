"""Sizes beyond a backend's limits: the call raises and names the limit and the size; evaluation never fails."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import torch
from cases import BY_NAME
from frameworks import FRAMEWORKS, MLX, Framework, planned_backend

from natten_mps._metal.plan import limits, plan
from natten_mps._metal.plan.device import Device
from natten_mps._metal.problem.problem import Problem

CPU_SOURCE = Path(__file__).resolve().parents[2] / "shared-metal" / "cpu" / "natten_cpu.cpp"
MOST, LONGEST = 2**29, 2**31 - 1
ONE = (1,)


def test_the_limits_are_those_of_the_kernels() -> None:
    text = CPU_SOURCE.read_text()
    (shift,), (power,) = re.findall(r"kMaxCount = int64_t\(1\) << (\d+);", text), re.findall(r"< 0x1p(\d+);", text)
    assert (limits.MAX_COUNT, limits.MAX_ELEMENTS) == (2 ** int(shift), 2 ** int(power)) == (MOST, 2**50)


def problem(**changed: Any) -> Problem:
    given: dict[str, Any] = {
        "op": "na",
        "batch": 1,
        "query_shape": ONE,
        "key_shape": ONE,
        "heads": 1,
        "kv_heads": 1,
        "head_dim": 1,
        "head_dim_v": 1,
        "kernel_size": ONE,
        "stride": ONE,
        "dilation": ONE,
        "is_causal": (False,),
        "scale": 1.0,
        "dtype": "float32",
    }
    return Problem(**given | changed)


COUNTS: dict[str, tuple[str, ...]] = {
    "batch items": ("batch",),
    "heads": ("heads", "kv_heads"),
    "channels of a head": ("head_dim_v",),
    "additional keys": ("additional",),
    "tokens on an axis": ("query_shape", "key_shape"),
}


@pytest.mark.parametrize("what", COUNTS)
@pytest.mark.parametrize("backend", ["native", "metal", "nanobind"])
def test_counts_that_the_kernels_take(what: str, backend: str) -> None:
    device = Device("cpu" if backend == "native" else "gpu", "here")

    def reason(count: int) -> str | None:
        asked = {name: (count,) if name.endswith("shape") else count for name in COUNTS[what]}
        return plan.refusal(problem(**asked), device, backend)

    assert reason(MOST + 1) == f"the kernels take at most {MOST} {what}; got {MOST + 1}"
    assert backend != "native" or reason(MOST) is None


def test_elements_that_the_kernels_take() -> None:
    asked = {"batch": 2**20, "heads": 2**20, "query_shape": (2**11,), "key_shape": (2**11,)}
    reason = plan.refusal(problem(**asked), Device("cpu", "cpu"), "native")
    assert reason is not None and reason.startswith(f"the kernels take tensors of fewer than {2**50} elements; got ")


def broadcast(framework: Framework, *shape: int) -> Any:
    """An array of that shape that takes no memory."""
    return mx.broadcast_to(mx.zeros(ONE), shape) if framework is MLX else torch.zeros(1).expand(shape)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_the_call_itself_refuses(framework: Framework) -> None:
    wide, narrow = broadcast(framework, 1, 4, 1, MOST + 1), broadcast(framework, 1, 4, 1, 1)
    backend = framework.compiled
    with pytest.raises(NotImplementedError) as caught:
        framework.face("na1d")(wide, wide, narrow, 3, backend=backend)
    assert str(caught.value) == (
        f"na1d: backend='{backend}' cannot take this problem: the kernels take at most {MOST} channels of a head; got "
        f"{MOST + 1}. backend='auto' picks a backend that can"
    )
    assert planned_backend(framework, "na1d", wide, wide, narrow, kernel_size=3) == "pure"


SIDE = 50_000  # squared beyond LONGEST
# An op of MLX, its arrays' shapes, its window, and the reason of each backend that cannot take it.
TOO_LONG: dict[str, tuple[str, tuple[tuple[int, ...], ...], Any, dict[str, str]]] = {
    "tokens": (
        "na2d",
        ((1, SIDE, SIDE, 1, 1),) * 3,
        1,
        {"pure": f"the list of all tokens of all heads would need {SIDE**2}"},
    ),
    "logits": (
        "na2d_qk",
        ((1, SIDE, SIDE, 1, 1),) * 2,
        SIDE,
        dict.fromkeys(("nanobind", "pure", "dense"), f"a query's window of ({SIDE}, {SIDE}) would need {SIDE**2}"),
    ),
    "slots": (
        "na1d_qk",
        ((1, SIDE, 1, 1),) * 2,
        SIDE,
        {"pure": f"the list of all window slots would need {SIDE**2}"},
    ),
    "bias": (
        "na1d",
        ((1, SIDE, 1, 1),) * 3,
        3,
        {"dense": f"the list of all pairs of a query and a key would need {SIDE**2}"},
    ),
}


@pytest.mark.parametrize("name", TOO_LONG)
def test_dimensions_that_mlx_cannot_count(name: str) -> None:
    """MLX's shapes are 32-bit; if only one backend would need more, another takes the problem."""
    op, shapes, window, refused = TOO_LONG[name]
    given = [broadcast(MLX, *shape) for shape in shapes]
    more = {"rpb": mx.zeros((1, 5))} if name == "bias" else {}
    for backend, words in refused.items():
        with pytest.raises(NotImplementedError) as caught:
            MLX.face(op)(*given, window, backend=backend, **more)
        assert f"an array's dimension has at most {LONGEST} elements here; {words}." in str(caught.value)
    if "nanobind" not in refused:
        lazy = MLX.face(op)(*given, window, **more)
        assert lazy.shape[:-2] == shapes[0][:-2]
        return
    with pytest.raises(NotImplementedError, match=rf"^{op}: no backend takes this problem: .*{LONGEST} elements here"):
        MLX.face(op)(*given, window, **more)


def test_ordinary_problems_are_far_from_the_limits() -> None:
    for case in BY_NAME.values():
        for backend in ("pure", "dense"):
            assert limits.too_large(case.problem()) is limits.too_long(case.problem(), backend, LONGEST) is None
