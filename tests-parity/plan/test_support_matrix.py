"""The support matrix of devices that this machine need not have; test_plan.py runs what it claims for this one."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from cases import BY_NAME

from natten_mps._metal.metal import op_launches
from natten_mps._metal.plan import plan, support
from natten_mps._metal.plan.device import Device
from natten_mps._metal.problem import checks

FAMILIES = ("fused", "additional_keys", "rpb", "key_mask", "attention", "split", "varlen", "modules")


def test_the_support_matrix_of_a_gpu() -> None:
    """It is made by the planner, which needs no GPU."""
    gpu = Device("gpu", "some gpu", (("native", "it runs on the CPU"),), float64=False, smallest=8)
    backends = ("metal", "fast_metal", "nanobind", "native", "pure", "dense")
    matrix = support.support_matrix(gpu, backends)
    all_of_it = dict.fromkeys(("available", "forward", "backward", "fusion", "varlen"), True) | {
        "ops": dict.fromkeys(FAMILIES, ""),
        "reason": "",
    }
    anywhere = {"ranks": [1, 2, 3], "dtypes": ["float16", "bfloat16", "float32"]}
    limits = {"head_dim": 256, "rpb_entries": 4096}
    words = {
        "float64": "some gpu does not compute in float64; the CPU does",
        "head_dim": "head dims beyond 256 do not fit a simdgroup's registers",
        "rpb_entries": "an rpb of 4097 entries per head does not fit threadgroup memory (at most 4096)",
    }
    mlx = {
        "small_tensors": "kernels get tensors of fewer than 8 elements as constants, which they do not read",
        "vmap": "mx.vmap over fast_metal kernels is not implemented, because MLX cannot map kernels given as text; "
        'use backend="pure", or make the mapped axis part of the batch',
    }
    for backend in ("metal", "fast_metal", "nanobind"):
        more = mlx if backend == "fast_metal" else {}
        assert matrix[backend] == all_of_it | {"constraints": anywhere | limits, "limits": words | more}
    assert matrix["pure"] == all_of_it | {"constraints": anywhere, "limits": {"float64": words["float64"]}}
    assert matrix["dense"] == matrix["pure"] | {"fusion": False}
    assert matrix["native"] == dict.fromkeys(all_of_it, False) | {
        "constraints": {"ranks": [], "dtypes": []},
        "ops": dict.fromkeys(FAMILIES, "it runs on the CPU"),
        "limits": {},
        "reason": "it runs on the CPU",
    }


def test_the_limits_are_true() -> None:
    """For each limit: the last problem that is accepted, and the first that is refused, with the matrix' own text."""
    gpu = Device("gpu", "some gpu", smallest=8)
    matrix = support.support_matrix(gpu, ("metal", "fast_metal"))
    assert matrix["metal"]["limits"]["float64"] == "Metal has no float64"
    problem = BY_NAME["seq"].problem("float32")
    sized = {"query_shape": (2100,), "key_shape": (2100,), "dilation": (1,), "stride": (1,)}
    little = {"query_shape": (7,), "key_shape": (7,), "kernel_size": (3,), "dilation": (1,), "batch": 1, "heads": 1}
    borders: dict[str, tuple[str, Any, Any]] = {
        "float64": ("metal", {}, {"dtype": "float64"}),
        "head_dim": ("metal", {"head_dim": 256}, {"head_dim": 257}),
        "rpb_entries": (
            "metal",
            *(sized | {"has_rpb": True, "kernel_size": (window,)} for window in (2048, 2049)),
        ),
        "small_tensors": (
            "fast_metal",
            *(little | {"kv_heads": 1, "head_dim": dim, "head_dim_v": 9} for dim in (2, 1)),
        ),
    }
    assert {"vmap", *borders} == set(matrix["fast_metal"]["limits"])
    for name, (backend, last, first) in borders.items():
        assert plan.refusal(dataclasses.replace(problem, **last), gpu, backend) is None, name
        refusal = plan.refusal(dataclasses.replace(problem, **first), gpu, backend)
        assert refusal is not None and refusal.startswith(matrix[backend]["limits"][name]), name
    with pytest.raises(NotImplementedError, match=re.escape(matrix["fast_metal"]["limits"]["vmap"])):
        checks.reject_vmap("na1d")


@pytest.mark.parametrize(
    ("lost", "left_out", "denied", "families"),
    [
        ("na", ["na"], {"forward", "backward", "fusion", "varlen"}, {"fused", "varlen", "modules"}),
        ("attention", ["attention"], {"forward", "backward", "varlen"}, {"attention", "varlen"}),
        ("av", ["av"], {"forward", "backward"}, {"split", "modules"}),
        ("rpb", ["rpb"], {"forward", "backward"}, {"rpb", "modules"}),
        ("mask", ["key_mask"], {"forward", "backward"}, {"key_mask", "modules"}),
        ("extra", ["additional_keys"], {"forward", "backward"}, {"additional_keys"}),
        ("gradient", None, {"backward"}, set()),
    ],
)
def test_the_support_matrix_asks_about_each_op(
    lost: str, left_out: list[str] | None, denied: set[str], families: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly what the planner refuses is denied."""
    gpu = Device("gpu", "some gpu", float64=False)

    def refusal(problem: Any, device: Device, backend: str, *verdicts: Any) -> str | None:
        given = {"rpb": problem.has_rpb, "mask": problem.has_key_mask, "extra": problem.additional > 0}
        kind = next((name for name, has in given.items() if has), problem.op)
        return f"{lost} is lost" if lost == kind else plan.refusal(problem, device, backend)

    monkeypatch.setattr(support, "refusal", refusal)
    if lost == "gradient":
        whole = op_launches.backward
        monkeypatch.setattr(op_launches, "backward", lambda *asked: whole(*asked)[:1])
    entry = support.support_matrix(gpu, ("metal",))["metal"]
    assert entry["available"] and entry["reason"] == ""
    assert {name for name in ("forward", "backward", "fusion", "varlen") if not entry[name]} == denied
    assert entry["constraints"].get("not") == left_out
    assert entry["ops"] == {family: f"{lost} is lost" if family in families else "" for family in FAMILIES}
