"""Tensors whose elements lie more than 2^32 apart inside one batch item: all offsets are 64-bit."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from natten_mps._metal.metal.source import Instance

from .arrays import far
from .launch import kernels, launch_of, run
from .pool import KITS
from .verify import problem_for, sample_of

pytestmark = pytest.mark.usefixtures("emulator")
# Tensors that may have any strides, by template.
STRIDED = {
    "na_fwd": ("q", "k", "v"),
    "na_bwd_dq": ("q", "k", "v", "out_grad"),
    "na_bwd_dkv": ("q", "k", "v", "out_grad"),
    "na_qk": ("q", "k"),
    "na_av": ("attn", "v"),
    "na_av_t": ("attn", "x"),
}
# Kits that read columns directly, staged, and in flat bricks, in rank 2.
DIRECT, STAGED, FLAT = "img-direct", "img-staged-bias", "img-flat"
BEYOND = 1 << 32
# Templates of flat bricks that always run: the one that moves every kind of offset between lanes.
FLAT_ALWAYS = ("na_bwd_dkv",)


def cases() -> list[Any]:
    kits = {kit.name: kit for kit in KITS}
    return [
        pytest.param(
            kits[name].instances[template],
            axis,
            id=f"{name}-{template}-{what}",
            marks=[pytest.mark.all] if name == STAGED or (name == FLAT and template not in FLAT_ALWAYS) else [],
        )
        for name in (DIRECT, STAGED, FLAT)
        for template in STRIDED
        if template in kits[name].instances
        for axis, what in ((1, "rows"), (2, "columns"), (3, "heads"))
    ]


@pytest.mark.parametrize(("instance", "axis"), cases())
def test_far_strides(instance: Instance, axis: int) -> None:
    """Tensors with huge strides on one axis give the bits of packed tensors."""
    name = FLAT if instance.flat else STAGED if instance.stage else DIRECT
    kit = next(kit for kit in KITS if kit.name == name)
    rng = random.Random(f"far/{instance.name}/{axis}")
    sample = sample_of(kit, rng, 0)
    while min(sample.problem.kernel_size) < 4 or max(sample.problem.dilation) > 1 or sample.problem.heads < 2:
        sample = sample_of(kit, rng, 0)
    launch = launch_of(instance, problem_for(instance, sample.problem))
    # On this axis, the ends of a window, and so of a box, are at least BEYOND elements apart.
    built = kernels([instance], checked=False)[instance]
    moved = {}
    for argument, tensor in launch.inputs:
        if argument in STRIDED[instance.template]:
            values = sample.tensors[tensor]
            moved[tensor] = far(values, instance.dtype, axis, BEYOND // max(1, min(3, values.shape[axis] - 1)))
    wanted, found = run(launch, built, sample.tensors), run(launch, built, sample.tensors, laid=moved)
    for output, laid in wanted.outputs.items():
        assert np.array_equal(laid.view, found.outputs[output].view), output
