"""How many floating-point operations a call is worth."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from . import _framework
from ._metal.api import counting as bodies

Sized = Tensor | Sequence[int]


def flops(
    op: str | nn.Module,
    query: Sized,
    key: Sized | None = None,
    value: Sized | None = None,
    *,
    backward: bool = False,
    **arguments: Any,
) -> int:
    """The useful floating-point operations of a call, exactly, from shapes alone.

        flops("na2d", (1, 64, 64, 4, 32), (1, 64, 64, 4, 32), (1, 64, 64, 4, 32), kernel_size=7)
        flops(layer, (1, 64, 64, 128))

    ``torch.utils.flop_counter.FlopCounterMode`` counts the same of calls that it sees.

    A multiply-accumulate counts as two, and only matrix products count, over the pairs of a query and a key that it
    attends to: windows at borders, causal axes, additional keys and pieces included. Keys that ``key_mask`` hides
    count, because the shapes do not say which they are.

    Args:
        op: the name of a face (``"na2d"``, ``"na1d_qk"``, ``"attention"``, ...), or a ``NeighborhoodAttention`` module,
            whose projections count too.
        query, key, value: the face's first tensors, or their shapes; of a module only its input.
        backward: count the gradients of all inputs (and of a module's weights) instead of the call itself.
        **arguments: the face's other arguments by name, tensors or their shapes.

    Returns:
        The number of operations. What kernels execute beyond them, ``natten-mps plan`` says.

    Raises:
        TypeError, ValueError: op is neither of the two, or a call with these arguments would raise it.

    Source: our own; the count of the backward is that of FlashAttention (arXiv 2205.14135), five products.
    """
    return bodies.flops(_framework, op, query, key, value, backward, arguments)
