"""Key masks as the Metal kernels read them: a bit for each key."""

from ..metal.templates import MASK_BITS
from .operations import Operations, Tensor, pad

# Of each bit in a word, whose last bit is its sign.
_VALUES = (*(1 << bit for bit in range(MASK_BITS - 1)), -(1 << MASK_BITS - 1))


def key_bools(xp: Operations, words: Tensor, length: int) -> Tensor:
    """The bools that :func:`key_words` made ``words`` from. length: of their last axis."""
    bits = words[..., None] >> xp.integers(tuple(range(MASK_BITS)), xp.int32, words)
    return (bits & 1).flatten(words.ndim - 1)[..., :length] == 1


def key_words(xp: Operations, key_mask: Tensor) -> Tensor:
    """``[B, *shape]`` of bools -> ``[B, *shape but the last, ceil(last / 32)]`` of int32: bit b of a word is its key b.

    Bits beyond the last key are 0.
    """
    bits = pad(xp, xp.astype(key_mask, xp.int32), {key_mask.ndim - 1: (0, -key_mask.shape[-1] % MASK_BITS)})
    words = xp.unflatten(bits, bits.ndim - 1, (bits.shape[-1] // MASK_BITS, MASK_BITS))
    return xp.astype((words * xp.integers(_VALUES, xp.int32, key_mask)).sum(-1), xp.int32)
