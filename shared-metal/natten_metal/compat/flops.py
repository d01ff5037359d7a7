"""Upstream's operation counts: the multiplications and additions of a call, from its shapes.

A product of matrices ``[m, k] x [k, n]`` is ``m * k * n`` multiply-accumulates, and twice as many floating-point
operations. As in upstream, softmax and rpb are left out where the docstring says so, and causal axes make no
difference.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..problem.problem import RANKS

Shape = Sequence[int]


def _count(face: str, shape: Shape, kernel_size: Any, heads_last: bool, return_macs: bool) -> int:
    """Operations of one product over the window of every token of ``shape``."""
    rank = len(shape) - 3
    if rank not in RANKS:
        raise ValueError(f"{face}: shapes must have 4, 5 or 6 axes; got {tuple(shape)}")
    sizes = (kernel_size,) * rank if isinstance(kernel_size, int) else tuple(kernel_size)
    if len(sizes) != rank:
        raise ValueError(f"{face}: kernel_size must have one size for each of {rank} axes; got {sizes}")
    tokens, heads = (shape[1:-2], shape[-2]) if heads_last else (shape[2:-1], shape[1])
    macs = shape[0] * heads * math.prod(tokens) * math.prod(sizes) * shape[-1]
    return macs if return_macs else 2 * macs


def na_qk_flop_count(
    q_shape: Shape,
    k_shape: Shape,
    kernel_size: Any,
    dilation: Any,
    is_causal: Any,
    is_heads_last: bool,
    return_macs: bool = False,
) -> int:
    """Floating-point operations (or multiply-accumulates) of a window's logits, without scale and rpb."""
    if tuple(q_shape) != tuple(k_shape):
        raise ValueError(f"na_qk_flop_count: q_shape and k_shape must be equal; got {q_shape} and {k_shape}")
    return _count("na_qk_flop_count", q_shape, kernel_size, is_heads_last, return_macs)


def na_av_flop_count(
    a_shape: Shape,
    v_shape: Shape,
    kernel_size: Any,
    dilation: Any,
    is_causal: Any,
    is_heads_last: bool,
    return_macs: bool = False,
) -> int:
    """Floating-point operations (or multiply-accumulates) of a window's weights times its values."""
    return _count("na_av_flop_count", v_shape, kernel_size, is_heads_last, return_macs)


def fna_flop_count(
    q_shape: Shape,
    k_shape: Shape,
    v_shape: Shape,
    kernel_size: Any,
    dilation: Any,
    is_causal: Any,
    is_heads_last: bool,
    return_macs: bool = False,
) -> int:
    """Floating-point operations (or multiply-accumulates) of the fused op: both products, no softmax."""
    if not tuple(q_shape) == tuple(k_shape) == tuple(v_shape):
        raise ValueError(f"fna_flop_count: shapes must be equal; got {q_shape}, {k_shape} and {v_shape}")
    return 2 * _count("fna_flop_count", q_shape, kernel_size, is_heads_last, return_macs)


def _shapes(values: Sequence[Any]) -> list[tuple[int, ...]]:
    """Shapes of tensors, or of the values of a traced graph."""
    return [tuple(each.shape if hasattr(each, "shape") else each.type().sizes()) for each in values]


def _ranked(name: str, rank: int, with_bias: bool) -> Callable[[Sequence[Any], Sequence[Any]], int]:
    """A handle of fvcore's counter for a split op: multiply-accumulates from the shapes of inputs and outputs."""

    def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        (first, second, *_), (out, *_) = _shapes(inputs[:2]), _shapes(outputs[:1])
        if not len(first) == len(second) == len(out) == rank + 3:
            raise ValueError(f"{name}: inputs and output must have {rank + 3} axes; got {first}, {second} and {out}")
        # The last axis is the head dim in the query and the slots in the logits; for weights, the other way around.
        dim, slots = (first[-1], out[-1]) if with_bias else (out[-1], first[-1])
        tokens = math.prod(out[:-1])
        return tokens * slots * dim + (tokens * slots if with_bias else 0)

    handle.__name__ = handle.__qualname__ = name
    handle.__doc__ = f"Multiply-accumulates of the {rank}-D split op, from tensors or a trace's values, heads-first."
    return handle


def fna_generic_flops(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Multiply-accumulates of the fused autograd function, whose window is among the arguments that a trace keeps."""
    kernel_size = inputs[0].uses()[0].user.scalar_args()[0]
    return 2 * _count("fna_generic_flops", _shapes(inputs[:1])[0], kernel_size, True, True)


HANDLES: dict[str, Callable[[Sequence[Any], Sequence[Any]], int]] = {
    **{f"qk_{rank}d_rpb_flop": _ranked(f"qk_{rank}d_rpb_flop", rank, True) for rank in RANKS},
    **{f"av_{rank}d_flop": _ranked(f"av_{rank}d_flop", rank, False) for rank in RANKS},
}
# Up to 0.14 the names without a rank belong to the 2-D ops.
OLD_HANDLES = {"qk_rpb_flop": HANDLES["qk_2d_rpb_flop"], "av_flop": HANDLES["av_2d_flop"]}
COUNTS: dict[str, Any] = {
    each.__name__: each for each in (na_qk_flop_count, na_av_flop_count, fna_flop_count, fna_generic_flops)
}
