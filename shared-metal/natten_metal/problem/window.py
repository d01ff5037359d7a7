"""Which keys a query attends to, and which queries attend to a key: one axis, closed forms.

An axis of length ``L`` with dilation ``d`` falls into ``d`` groups; group ``g`` holds the tokens
``g, g + d, g + 2d, ...``, and everything below counts positions *inside* a group of ``n`` tokens:

    token = position * d + g            n = ceil((L - g) / d)

    not causal   leader = min((p // s) * s + s // 2, n - 1)      the middle of the stride group
                 start  = clamp(leader - w // 2, 0, n - w)       shifted at borders, never shrunk
                 end    = start + w
    causal       leader = min((p // s) * s + s - 1, n - 1)       the last of the stride group
                 start  = max(leader - w + 1, 0)
                 end    = p + 1

``kernels/window.h`` states the same lines for C++ and Metal, and ``viz/window.js`` for a page that runs in browsers;
nothing else in the project does.
Start and end never decrease with ``p``, so the windows of the positions ``p0..p1`` lie in
``[start(p0), end(p1))`` and share ``[start(p1), end(p0))``.

The arithmetic is written over an array namespace (:class:`Integers` for plain ints), so that one
statement of it serves a single position, a numpy array, a torch tensor and an MLX array alike.

Source: NATTEN (Hassani et al., arXiv 2204.07143), generalized by stride (arXiv 2504.16922); the
inverse is our own closed form, tested exhaustively as the exact transpose of the forward window.
"""

from typing import Any, Protocol


class ArrayNamespace(Protocol):
    """The three functions that window arithmetic needs besides ``+ - * // %`` and comparisons."""

    def minimum(self, a: Any, b: Any, /) -> Any: ...
    def maximum(self, a: Any, b: Any, /) -> Any: ...
    def where(self, condition: Any, a: Any, b: Any, /) -> Any: ...


class Integers:
    """:class:`ArrayNamespace` of plain Python integers."""

    minimum = staticmethod(min)
    maximum = staticmethod(max)

    @staticmethod
    def where(condition: bool, a: int, b: int) -> int:
        return a if condition else b


INTEGERS = Integers()


def group_length(length: int, group: Any, dilation: int) -> Any:
    """Number of tokens ``n`` in dilation group ``group`` of an axis of ``length`` tokens."""
    return (length - group + dilation - 1) // dilation


def window(p: Any, n: Any, w: int, s: int, causal: bool, xp: ArrayNamespace = INTEGERS) -> tuple[Any, Any]:
    """``[start, end)``: the key positions that the query at position ``p`` attends to.

    ``p`` and ``n`` are ints or integer arrays of ``xp``; ``w`` is the window (kernel_size), ``s`` the
    stride. Legal problems have ``1 <= s <= w <= n``. Only full attention passes ``w > n`` (queries and
    keys of different lengths): then the window starts at 0 and may end past ``n``.
    """
    if causal:
        leader = xp.minimum(p // s * s + s - 1, n - 1)
        return xp.maximum(leader - w + 1, 0), p + 1
    leader = xp.minimum(p // s * s + s // 2, n - 1)
    start = xp.maximum(xp.minimum(leader - w // 2, n - w), 0)
    return start, start + w


def inverse(j: Any, n: Any, w: int, s: int, causal: bool, xp: ArrayNamespace = INTEGERS) -> tuple[Any, Any]:
    """``[low, high)``: the query positions whose windows hold the key at position ``j``.

    The exact transpose of :func:`window`: they form an interval because start and end are monotone.
    Every division below is of a number that cannot be negative, so floor and truncation agree.
    """
    if causal:
        high = xp.where(j + w >= n, n, ((j + w - s) // s + 1) * s)
        return j, xp.minimum(high, n)
    groups = (n + s - 1) // s
    reach = j + w // 2
    last = xp.where(j + w >= n, groups, (reach - s // 2) // s + 1)
    need = xp.maximum(reach - w + 1 - s // 2, 0)
    first = xp.where(j + 1 <= w, 0, xp.minimum((need + s - 1) // s, groups - 1))
    return first * s, xp.minimum(last * s, n)
