"""The checks that a Mac runs on Metal itself (`on_metal.py`), on the emulator in its place."""

from __future__ import annotations

import math
from typing import Any

import on_metal
import pytest
from frameworks import MLX, MPS, Path

from .table import OPS, Entry, chosen

PATHS = (Path(MPS, "metal"), Path(MLX, "fast_metal"))


def smallest(op: str) -> Entry:
    """The entry of an op with the fewest tokens and kernels; always the same one."""
    return min((e for e in chosen() if e.op == op), key=lambda e: (len(e.instances), math.prod(e.case.shape), str(e)))


@pytest.mark.parametrize("op", [pytest.param(op, marks=pytest.mark.all if op == "na" else ()) for op in OPS])
def test_both_packages_pass(op: str, metal: Any, mlx_metal: Any) -> None:
    on_metal.check(smallest(op), PATHS)
    assert metal.launches and mlx_metal.ran


def test_a_wrong_result_is_seen(metal: Any, mlx_metal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = MLX.numpy
    monkeypatch.setattr(type(MLX), "numpy", lambda self, tensor: exact(tensor) * 1.1)
    with pytest.raises(AssertionError, match="mlx-fast_metal"):
        on_metal.check(smallest("av"), PATHS)


def test_the_probe(metal: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the emulator one package runs; what does not is named with the reason."""
    monkeypatch.setattr(on_metal, "PATHS", (*PATHS[:1], *on_metal.PATHS[1:2]))
    on_metal.probe()
    first, second = capsys.readouterr().out.splitlines()
    assert first == "metal=yes" and second.startswith("reason=mlx-fast_metal: ") and len(second) > 40
    monkeypatch.setattr(on_metal, "PATHS", on_metal.PATHS[1:])
    on_metal.probe()
    assert capsys.readouterr().out.startswith("metal=no\n")
