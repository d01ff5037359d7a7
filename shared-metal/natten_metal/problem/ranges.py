"""Which keys a range of queries attends to, and which queries attend to a range of keys."""

from typing import Any

from . import checks
from .interval import column_span
from .problem import Axis

Ranges = tuple[tuple[int, int], ...]


def key_range(
    full_shape: Any, kernel_size: Any, stride: Any, dilation: Any, is_causal: Any, query_range: Any
) -> Ranges:
    """The keys that a range of queries attends to: from the lowest to one past the highest, on each axis.

    These are the keys that a call with ``full_shape`` must be given for these queries. With dilation there may be keys
    between them that none of the queries attends to.

        key_range(1000, 7, 1, 1, False, (100, 200))        # ((97, 203),)

    Args:
        full_shape: tokens of the whole problem, an int for one axis or one int per axis.
        kernel_size, stride, dilation, is_causal: the window, one value or one per axis, as in
            ``neighborhood_attention``.
        query_range: ``(low, high)`` on each axis, ``0 <= low <= high <= full_shape``: the queries ``low .. high - 1``.
            For one axis, the pair alone is enough.

    Returns:
        ``(low, high)`` for each axis, in tokens of the whole problem; ``(low, low)`` for an axis without queries.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a window that does not fit full_shape, or a range that does not lie in it; the message names the
            axis.

    Source: our own closed form, from NATTEN's window (arXiv 2204.07143 and 2504.16922).
    """
    window = full_shape, kernel_size, stride, dilation, is_causal
    return _ranges("key_range", "query_range", query_range, window, transposed=False)


def query_range(
    full_shape: Any, kernel_size: Any, stride: Any, dilation: Any, is_causal: Any, key_range: Any
) -> Ranges:
    """The queries that attend to a range of keys: from the lowest to one past the highest, on each axis.

    Only these queries read the keys, and only they contribute to the gradients of these keys and their values.

        query_range(1000, 7, 1, 1, True, (100, 200))       # ((100, 206),)

    Args:
        full_shape, kernel_size, stride, dilation, is_causal: the whole problem, as in :func:`key_range`.
        key_range: ``(low, high)`` on each axis, as query_range in :func:`key_range`.

    Returns:
        ``(low, high)`` for each axis, in tokens of the whole problem; ``(low, low)`` for an axis without keys.

    Raises:
        TypeError, ValueError: as :func:`key_range`.

    Source: our own closed form, the transpose of :func:`key_range`.
    """
    window = full_shape, kernel_size, stride, dilation, is_causal
    return _ranges("query_range", "key_range", key_range, window, transposed=True)


def _ranges(face: str, name: str, given: Any, window: tuple[Any, ...], transposed: bool) -> Ranges:
    """The span of columns, on each axis, of the rows ``given``."""
    full_shape = checks.axes_of(face, window[0])
    per_axis = checks.window_arguments(face, len(full_shape), *window[1:])
    checks.check_axes(face, full_shape, *per_axis[:3])
    found = []
    rows = checks.axis_ranges(face, name, given, full_shape)
    for full, w, s, d, causal, (low, high) in zip(full_shape, *per_axis, rows, strict=True):
        if transposed:
            axis = Axis(full, high - low, w, s, d, causal, full, key_start=low)
        else:
            axis = Axis(high - low, full, w, s, d, causal, full, query_start=low)
        found.append(column_span(axis, transposed))
    return tuple(found)
