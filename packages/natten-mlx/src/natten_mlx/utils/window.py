"""Windows on one axis, in tokens, as in natten-mlx 0.3."""

from typing import Any

import numpy as np

from .._metal.compat import earlier


def get_window_start(index: int, length: int, kernel_size: int, neighborhood_size: int, dilation: int) -> int:
    """The first token of the window of the query at token ``index``. neighborhood_size follows from kernel_size."""
    return int(earlier.window_start(index, length, kernel_size, dilation))


def get_window_end(start_index: int, length: int, kernel_size: int, dilation: int) -> int:
    """One past the last token of the window that starts at token ``start_index``, or the end of the axis."""
    return min(start_index + kernel_size * dilation, length)


def get_pb_start(index: int, length: int, kernel_size: int, neighborhood_size: int, dilation: int) -> int:
    """The rpb entry of the window's first key. neighborhood_size follows from kernel_size."""
    return int(earlier.bias_start(index, length, kernel_size, dilation))


def compute_window_start_end(query_positions: Any, length: int, kernel_size: int, dilation: int) -> tuple[Any, Any]:
    """:func:`get_window_start` and :func:`get_window_end` of the queries at tokens ``query_positions``."""
    start = earlier.window_start(np.asarray(query_positions), length, kernel_size, dilation, np)
    return start, np.minimum(start + kernel_size * dilation, length)


def compute_pb_start(query_positions: Any, length: int, kernel_size: int, dilation: int) -> Any:
    """:func:`get_pb_start` of the queries at tokens ``query_positions``."""
    return earlier.bias_start(np.asarray(query_positions), length, kernel_size, dilation, np)
