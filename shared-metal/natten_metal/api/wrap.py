"""The tensors of an axis that wraps around: keys and values with the tokens at its ends repeated beyond them."""

from ..problem.wrap import Unrolled
from .operations import Operations, Tensor


def repeat_ends(xp: Operations, tensor: Tensor, axes: dict[int, Unrolled]) -> Tensor:
    """``[B, *shape, ...]``, longer along ``axes`` (0: the first of shape). One copy for each axis.

    Gradients of the repeated tokens are added to those of the tokens.
    """
    for axis, longer in axes.items():
        length, lead = tensor.shape[1 + axis], (slice(None),) * (1 + axis)
        last = tensor[(*lead, slice(length - longer.before, length))]
        first = tensor[(*lead, slice(0, longer.after))]
        tensor = xp.concatenate([last, tensor, first], 1 + axis)
    return tensor
