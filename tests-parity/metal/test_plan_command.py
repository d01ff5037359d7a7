"""The ``plan`` command on emulated Metal: it says what ``explain`` says, kernels included, and that is what runs."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest
import torch

import natten_mlx
import natten_mps
from natten_mlx import cli as mlx_cli
from natten_mps import cli as mps_cli

from .host import EmulatedHost
from .mlx_host import EmulatedMlxHost

COMMAND = ["plan", "--shape", "9", "12", "--kernel-size", "3", "5", "--heads", "2", "--head-dim", "16", "--json"]
SHAPE, CALL = (1, 9, 12, 2, 16), {"kernel_size": (3, 5)}


def test_torch(metal: EmulatedHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert mps_cli.main(COMMAND) == 0
    found = json.loads(capsys.readouterr().out)
    query = torch.randn(SHAPE, dtype=torch.float16, requires_grad=True)
    assert found["explain"] == natten_mps.explain("na2d", query, query, query, **CALL)
    assert found["backend"] == "metal" and not metal.launches
    natten_mps.na2d(query, query, query, **CALL).sum().backward()
    planned = [each["template"] for direction in ("forward", "backward") for each in found[direction]["launches"]]
    assert [name.rpartition("_r")[0] for name in metal.names] == planned
    bricks = [each["counts"]["bricks"] for d in ("forward", "backward") for each in found[d]["launches"]]
    assert sum(bricks) > 0 and [launch.executed for launch in metal.launches] == bricks


def test_mlx(mlx_metal: EmulatedMlxHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert mlx_cli.main(COMMAND) == 0
    found = json.loads(capsys.readouterr().out)
    query = mx.zeros(SHAPE, mx.float16)
    assert found["explain"] == natten_mlx.explain("na2d", query, query, query, **CALL)
    assert found["backend"] == "fast_metal" and "kernel na_fwd" in found["explain"]
