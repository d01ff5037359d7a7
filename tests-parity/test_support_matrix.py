"""What the support matrix says of devices that need not be here; test_plan.py runs what it claims of this one."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from cases import BY_NAME

from natten_mps._metal import faces, plan, steps
from natten_mps._metal.device import Device


def test_the_support_matrix_of_a_gpu() -> None:
    """Asked of the planner, which needs no GPU; the limits are true: a step beyond is refused."""
    gpu = Device("gpu", "some gpu", (("native", "it runs on the CPU"),), float64=False, smallest=8)
    tiers = ("metal", "fast_metal", "nanobind", "native", "pure", "dense")
    matrix = faces.support_matrix(gpu, tiers)
    all_of_it = dict.fromkeys(("available", "forward", "backward", "fusion", "varlen"), True)
    anywhere = {"ranks": [1, 2, 3], "dtypes": ["float16", "bfloat16", "float32"]}
    limits = {"head_dim": 256, "rpb_entries": 4096}
    for tier in ("metal", "fast_metal", "nanobind"):
        assert matrix[tier] == all_of_it | {"constraints": anywhere | limits, "reason": ""}
    assert matrix["pure"] == all_of_it | {"constraints": anywhere, "reason": ""}
    assert matrix["dense"] == matrix["pure"] | {"fusion": False}
    assert matrix["native"] == dict.fromkeys(all_of_it, False) | {
        "constraints": {"ranks": [], "dtypes": []}, "reason": "it runs on the CPU",
    }  # fmt: skip
    problem = BY_NAME["seq"].problem("float32")
    for dim, taken in ((256, True), (257, False)):
        larger = dataclasses.replace(problem, head_dim=dim)
        assert (plan.obstacle(larger, gpu, "metal") is None) == taken
    for window, taken in ((2048, True), (2049, False)):
        sized = {"query_shape": (2100,), "key_shape": (2100,), "kernel_size": (window,), "dilation": (1,)}
        biased = dataclasses.replace(problem, **sized, stride=(1,), has_rpb=True)
        assert (plan.obstacle(biased, gpu, "metal") is None) == taken


@pytest.mark.parametrize(
    ("lost", "left_out", "denied"),
    [
        ("na", ["na"], {"forward", "backward", "fusion", "varlen"}),
        ("attention", ["attention"], {"forward", "backward", "varlen"}),
        ("av", ["av"], {"forward", "backward"}),
        ("rpb", ["rpb"], {"forward", "backward"}),
        ("gradient", None, {"backward"}),
    ],
)
def test_the_support_matrix_asks_about_each_op(
    lost: str, left_out: list[str] | None, denied: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the planner refuses is denied, and no more."""
    gpu = Device("gpu", "some gpu", float64=False)

    def obstacle(problem: Any, device: Device, tier: str) -> str | None:
        kinds = {problem.op} if not (problem.has_rpb or problem.additional) else {"rpb" if problem.has_rpb else "extra"}
        return "lost" if lost in kinds else plan.obstacle(problem, device, tier)

    monkeypatch.setattr(faces, "obstacle", obstacle)
    if lost == "gradient":
        monkeypatch.setattr(faces, "backward", lambda problem, has_lse_grad: steps.backward(problem, has_lse_grad)[:1])
    entry = faces.support_matrix(gpu, ("metal",))["metal"]
    assert entry["available"] and entry["reason"] == ""
    assert {name for name in ("forward", "backward", "fusion", "varlen") if not entry[name]} == denied
    assert entry["constraints"].get("not") == left_out
