"""Tensors whose elements lie more than 2^32 apart inside one batch item, beside the same tensors packed."""

from __future__ import annotations

import random

import numpy as np
from metal_emulator import Kernel

from natten_mps._metal.metal.source import Instance

from .arrays import far
from .launch import launch_of, run
from .pool import KITS
from .verify import problem_for, sample_of

# Tensors that may have any strides, by template.
STRIDED = {
    "na_fwd": ("q", "k", "v"),
    "na_bwd_dq": ("q", "k", "v", "out_grad"),
    "na_bwd_dkv": ("q", "k", "v", "out_grad"),
    "na_qk": ("q", "k"),
    "na_av": ("attn", "v"),
    "na_av_t": ("attn", "x"),
}
BEYOND = 1 << 32


def far_instance(kit: str, template: str) -> Instance:
    """An instance of a kit of rank 2."""
    return next(one for one in KITS if one.name == kit).instances[template]


def differing(instance: Instance, kit: str, kernel: Kernel, axis: int) -> list[str]:
    """The outputs whose bits change if inputs have huge strides on ``axis``. kernel: compiled without checks."""
    rng, own = random.Random(f"far/{instance.name}/{axis}"), next(one for one in KITS if one.name == kit)
    sample = sample_of(own, rng, 0)
    while min(sample.problem.kernel_size) < 4 or max(sample.problem.dilation) > 1 or sample.problem.heads < 2:
        sample = sample_of(own, rng, 0)
    launch = launch_of(instance, problem_for(instance, sample.problem))
    # On this axis, the ends of a window, and so of a box, are at least BEYOND elements apart.
    moved = {}
    for argument, tensor in launch.inputs:
        if argument in STRIDED[instance.template]:
            values = sample.tensors[tensor]
            moved[tensor] = far(values, instance.dtype, axis, BEYOND // max(1, min(3, values.shape[axis] - 1)))
    wanted, found = run(launch, kernel, sample.tensors), run(launch, kernel, sample.tensors, laid=moved)
    return [name for name, laid in wanted.outputs.items() if not np.array_equal(laid.view, found.outputs[name].view)]
