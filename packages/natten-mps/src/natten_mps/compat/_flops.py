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
from .._metal.problem.ops import OPS, Op


def _one_product(op: Op, inputs: list[Any], kernel_size: Any) -> int:
    """Floating-point operations of one product over all tokens; shapes heads-last. D and D_v count as their mean."""
    shapes = dict(zip(op.input_names, inputs, strict=False))
    tokens, key = math.prod(inputs[0][:-1]), shapes.get("key") or shapes["value"]
    # The channels of a product: of the query and key, of the value.
    dims = [shapes[name][-1] for name in ("query", "value") if name in shapes]
    seen = math.prod(kernel_size) if op.has_window else key[1]
    additional = shapes.get("additional_keys")
    if additional is not None:
        seen += additional[1]
    return int(2 * tokens * seen * (sum(dims) / len(dims)))


def _register(op: Op) -> None:
    forward, backward = op.products

    def count_forward(inputs: list[Any], kernel_size: Any, *rest: Any, **kwargs: Any) -> int:
        return forward * _one_product(op, inputs, kernel_size)

    def count_backward(gradients: Any, inputs: list[Any], outputs: Any, kernel_size: Any, *rest: Any, **kw: Any) -> int:
        return backward * _one_product(op, inputs, kernel_size)

    ops = torch.ops.natten_mps
    register_flop_formula(getattr(ops, f"{op.name}_forward"))(count_forward)
    register_flop_formula(getattr(ops, f"{op.name}_backward"))(count_backward)


for _op in OPS.values():
    _register(_op)
