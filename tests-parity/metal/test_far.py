"""Tensors whose elements lie more than 2^32 apart inside one batch item: all offsets are 64-bit."""

from __future__ import annotations

from typing import Any

import pytest

from .far import STRIDED, differing, far_instance
from .launch import kernels
from .pool import KITS

pytestmark = pytest.mark.usefixtures("emulator")
# Kits that read columns directly, staged, and in flat bricks, in rank 2.
DIRECT, STAGED, FLAT = "img-direct", "img-staged-bias", "img-flat"
# Templates of flat bricks that always run: the one that moves every kind of offset between lanes.
FLAT_ALWAYS = ("na_bwd_dkv",)


def cases() -> list[Any]:
    kits = {kit.name: kit for kit in KITS}
    return [
        pytest.param(
            name,
            template,
            axis,
            id=f"{name}-{template}-{what}",
            marks=[pytest.mark.all] if name == STAGED or (name == FLAT and template not in FLAT_ALWAYS) else [],
        )
        for name in (DIRECT, STAGED, FLAT)
        for template in STRIDED
        if template in kits[name].instances
        for axis, what in ((1, "rows"), (2, "columns"), (3, "heads"))
    ]


@pytest.mark.parametrize(("kit", "template", "axis"), cases())
def test_far_strides(kit: str, template: str, axis: int) -> None:
    """Tensors with huge strides on one axis give the bits of packed tensors."""
    instance = far_instance(kit, template)
    assert not differing(instance, kit, kernels([instance], checked=False)[instance], axis)
