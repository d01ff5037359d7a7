"""Calls that ``plan`` is asked about, as the command's options and as arguments of ``explain``; what it answers."""

from __future__ import annotations

import argparse
import importlib
import json
from typing import Any

import pytest
from frameworks import Framework

M4 = "Apple M4 Max"
# The command's options, and the same call: op, shapes of its first tensors, other arguments (shapes for tensors).
CALLS: dict[str, tuple[str, str, list[tuple[int, ...]], dict[str, Any]]] = {
    "na2d": (
        "--shape 12 20 --kernel-size 5 --stride 2 --dilation 1 2 --is-causal no yes --heads 2 --additional 9",
        "na2d",
        [(1, 12, 20, 2, 64), (1, 12, 20, 2, 64), (1, 12, 20, 2, 64)],
        {
            "kernel_size": 5,
            "stride": 2,
            "dilation": (1, 2),
            "is_causal": (False, True),
            "additional_keys": (1, 9, 2, 64),
            "additional_values": (1, 9, 2, 64),
        },
    ),
    "bias": (
        "--shape 40 --kernel-size 7 --rpb --key-mask --head-dim 20 --head-dim-v 24",
        "na1d",
        [(1, 40, 1, 20), (1, 40, 1, 20), (1, 40, 1, 24)],
        {"kernel_size": 7, "rpb": (1, 13), "key_mask": (1, 40)},
    ),
    "piece": (
        "--shape 8 --key-shape 16 --full-shape 100 --query-start 20 --key-start 16 --kernel-size 9 --dtype float32",
        "na1d",
        [(1, 8, 1, 64), (1, 16, 1, 64), (1, 16, 1, 64)],
        {"kernel_size": 9, "full_shape": 100, "query_start": 20, "key_start": 16},
    ),
    "wrap": (
        "--batch 2 --shape 6 8 --kernel-size 3 --wrap no yes",
        "na2d",
        [(2, 6, 8, 1, 64), (2, 6, 8, 1, 64), (2, 6, 8, 1, 64)],
        {"kernel_size": 3, "wrap": (False, True)},
    ),
    "qk": (
        "--op na3d_qk --shape 4 5 6 --kernel-size 3",
        "na3d_qk",
        [(1, 4, 5, 6, 1, 64), (1, 4, 5, 6, 1, 64)],
        {"kernel_size": 3},
    ),
    "av": ("--op na1d_av --shape 30 --kernel-size 5", "na1d_av", [(1, 30, 1, 5), (1, 30, 1, 64)], {"kernel_size": 5}),
    "attention": (
        "--op attention --heads 4 --kv-heads 2 --shape 30 --key-shape 17 --is-causal",
        "attention",
        [(1, 30, 4, 64), (1, 17, 2, 64), (1, 17, 2, 64)],
        {"is_causal": True},
    ),
}


def planned(framework: Framework, options: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    cli = importlib.import_module(f"{framework.package_name}.cli")
    capsys.readouterr()
    assert cli.main(["plan", *options, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def problem_of(framework: Framework, options: list[str]) -> Any:
    """The problem of the command's options."""
    tools = framework.module("_metal.tools.plan")
    parser = argparse.ArgumentParser()
    tools.add_plan(parser.add_subparsers(), framework.package_name, lambda: None)
    op, specs, given = tools.described(parser.parse_args(["plan", *options]))
    return framework.module("_metal.problem.faces").explained("plan", op, specs, given)


def plan_of(framework: Framework, options: list[str]) -> tuple[Any, Any]:
    """The problem of the command's options, and its plan on a GPU that is not here."""
    problem, device = problem_of(framework, options), framework.module("_tools.plan").TARGET.device(M4)
    return problem, framework.module("_device").machine().plan(problem, device, "auto")
