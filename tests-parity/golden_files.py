"""The goldens: their manifest, their arrays, and how much a result may differ from them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path as File
from typing import Any

import numpy as np

Array = Any

FOLDER = File(__file__).parent / "goldens"
FIXTURES = json.loads((FOLDER / "manifest.json").read_text())["fixtures"]
# The largest deviation of an element: where golden and result are float64, and where either is float32.
EXACT, SINGLE = 2e-12, 5e-6
INPUT_NAMES = {
    "query": "q",
    "key": "k",
    "value": "v",
    "additional_keys": "add_k",
    "additional_values": "add_v",
    "rpb": "rpb",
}
GRADIENT_NAMES = {
    "query": "dq",
    "key": "dk",
    "value": "dv",
    "additional_keys": "d_add_k",
    "additional_values": "d_add_v",
    "rpb": "drpb",
    "logits": "d_logits",
    "attn": "d_attn",
}
FAMILY_B = [fixture for fixture in FIXTURES if fixture["family"] == "B"]


@cache
def arrays(file: str) -> dict[str, Array]:
    """All arrays of a fixture, as float64 and heads-last."""
    fixture = next(fixture for fixture in FIXTURES if fixture["file"] == file)
    with np.load(FOLDER / file) as stored:
        found = {name: stored[name].astype(np.float64) for name in stored.files}
    if fixture["family"] == "A":
        return found
    return {n: a if n in ("rpb", "drpb") else np.moveaxis(a, 1, -1 if n == "lse" else -2) for n, a in found.items()}


def tolerance(fixture: dict[str, Any], dtype: str) -> float:
    single = "float32" in (dtype, fixture.get("compute_dtype"))
    return SINGLE if single else EXACT


def close(found: Array, wanted: Array, limit: float, what: str) -> None:
    assert found.shape == wanted.shape, what
    with np.errstate(invalid="ignore"):
        apart = np.where(found == wanted, 0.0, np.abs(found - wanted))  # -inf equals -inf
    # NaN compares false, so it fails.
    assert apart.max() <= limit, f"{what} is off by {apart.max():.3g}"
