"""Windows on one axis, in tokens, as in natten-mps 0.3."""

from torch import Tensor

from .._metal.compat import earlier
from .._metal.compat.earlier import bias_start as get_pb_start
from .._metal.compat.earlier import window_last as get_window_end
from .._metal.compat.earlier import window_start as get_window_start
from .._tensors import TorchTables

__all__ = [
    "get_pb_start",
    "get_pb_start_vectorized",
    "get_window_end",
    "get_window_start",
    "get_window_start_vectorized",
]


def get_window_start_vectorized(indices: Tensor, length: int, kernel_size: int, dilation: int) -> Tensor:
    """The first token of the window of each query at the tokens ``indices``: ints, of the same shape."""
    found: Tensor = earlier.window_start(indices, length, kernel_size, dilation, TorchTables(indices.device))
    return found


def get_pb_start_vectorized(indices: Tensor, length: int, kernel_size: int, dilation: int) -> Tensor:
    """The rpb entry of the first key of the window of each query at ``indices``: ints, of the same shape."""
    found: Tensor = earlier.bias_start(indices, length, kernel_size, dilation, TorchTables(indices.device))
    return found
