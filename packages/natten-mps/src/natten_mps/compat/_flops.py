"""Operation counts of this package's ops for torch's own counter, the same as upstream's.

``torch.utils.flop_counter.FlopCounterMode`` asks here for the floating-point operations of each custom op: products of
the window's size for every token, two for a fused forward, five for its backward, one and two for a split op's. Items
of different sizes (varlen, packed) are not counted, because their sizes are in a tensor and the counter only passes on
shapes.
"""

import math
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from .. import _ops as _ops  # which registers the custom ops
from .._metal.problem.problem import INPUTS

# Matrix products in forward and backward.
PRODUCTS = {"na": (2, 5), "attention": (2, 5), "qk": (1, 2), "av": (1, 2)}


def _one_product(op: str, inputs: list[Any], kernel_size: Any) -> int:
    """Floating-point operations of one product over all tokens; shapes heads-last. D and D_v are averaged."""
    first, second = inputs[0], inputs[1]
    tokens = math.prod(first[:-1])
    if op == "av":
        return 2 * tokens * math.prod(kernel_size) * second[-1]
    dim = first[-1] if op == "qk" else (first[-1] + inputs[2][-1]) / 2
    seen = second[1] if op == "attention" else math.prod(kernel_size)
    additional = inputs[3][1] if op == "na" and inputs[3] is not None else 0
    return int(2 * tokens * (seen + additional) * dim)


def _register(op: str) -> None:
    forward, backward = PRODUCTS[op]

    def count_forward(inputs: list[Any], kernel_size: Any, *rest: Any, **kwargs: Any) -> int:
        return forward * _one_product(op, inputs, kernel_size)

    def count_backward(gradients: Any, inputs: list[Any], outputs: Any, kernel_size: Any, *rest: Any, **kw: Any) -> int:
        return backward * _one_product(op, inputs, kernel_size)

    ops = torch.ops.natten_mps
    register_flop_formula(getattr(ops, f"{op}_forward"))(count_forward)
    register_flop_formula(getattr(ops, f"{op}_backward"))(count_backward)


for _op in INPUTS:
    _register(_op)
