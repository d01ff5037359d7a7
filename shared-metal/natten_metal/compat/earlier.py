"""Names that natten-mps and natten-mlx 0.3 had in submodules of their own, for code written for them.

Positions are tokens of one axis. Windows are those of :mod:`..problem.window`, correct for even windows too, unlike in
0.3.
"""

import warnings
from collections.abc import Sequence
from typing import Any

from ..problem import checks
from ..problem.window import INTEGERS, ArrayNamespace, group_length, window


def moved(old: str, advice: str) -> None:
    """DeprecationWarning for whoever imports ``old``, a module of 0.3. advice: the replacement."""
    warnings.warn(f"{old} is a module of 0.3; {advice}", DeprecationWarning, stacklevel=3)


# --- utils.params ----------------------------------------------------------------------------------


def normalize_tuple_param(param: Any, rank: int, name: str) -> tuple[Any, ...]:
    """``param`` once per axis: an int or a bool, or a sequence of ``rank`` of them."""
    first = param[0] if isinstance(param, Sequence) and len(param) else param
    read = checks.arguments.bools_per_axis if checks.arguments.is_bool(first) else checks.arguments.ints_per_axis
    return read("normalize_tuple_param", name, param, rank)


def normalize_kernel_size(kernel_size: Any, rank: int) -> tuple[int, ...]:
    """``kernel_size`` as one int per axis."""
    return checks.arguments.ints_per_axis("normalize_kernel_size", "kernel_size", kernel_size, rank)


def check_kernel_size_vs_input(kernel_size: Sequence[int], input_spatial_shape: Sequence[int]) -> None:
    """ValueError where a window is longer than its axis."""
    ones = (1,) * len(tuple(kernel_size))
    checks.check_axes("check_kernel_size_vs_input", tuple(input_spatial_shape), tuple(kernel_size), ones, ones)


def check_stride_vs_kernel(stride: Sequence[int], kernel_size: Sequence[int]) -> None:
    """ValueError where a stride is larger than its window."""
    checks.check_window("check_stride_vs_kernel", tuple(kernel_size), tuple(stride), (1,) * len(tuple(stride)))


def check_dilation_kernel_vs_input(
    dilation: Sequence[int], kernel_size: Sequence[int], input_spatial_shape: Sequence[int]
) -> None:
    """ValueError where a dilated window is longer than its axis."""
    sizes, ones = tuple(kernel_size), (1,) * len(tuple(kernel_size))
    checks.check_axes("check_dilation_kernel_vs_input", tuple(input_spatial_shape), sizes, ones, tuple(dilation))


# --- utils.window ----------------------------------------------------------------------------------


def _positions(index: Any, length: int, kernel_size: int, dilation: int, xp: ArrayNamespace) -> tuple[Any, Any, Any]:
    """The query's position in its dilation group, and the positions ``[start, end)`` of its window."""
    position = index // dilation
    n = group_length(length, index % dilation, dilation)
    return (position, *window(position, n, kernel_size, 1, False, xp))


def window_start(index: Any, length: int, kernel_size: int, dilation: int, xp: ArrayNamespace = INTEGERS) -> Any:
    """The first token of the window of the query at token ``index``."""
    return _positions(index, length, kernel_size, dilation, xp)[1] * dilation + index % dilation


def window_last(index: Any, length: int, kernel_size: int, dilation: int, xp: ArrayNamespace = INTEGERS) -> Any:
    """The last token of the window of the query at token ``index``."""
    return (_positions(index, length, kernel_size, dilation, xp)[2] - 1) * dilation + index % dilation


def bias_start(index: Any, length: int, kernel_size: int, dilation: int, xp: ArrayNamespace = INTEGERS) -> Any:
    """The rpb entry of the window's first key."""
    position, start, _ = _positions(index, length, kernel_size, dilation, xp)
    return start - position + kernel_size - 1
