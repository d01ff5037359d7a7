"""Which columns a row of a walk sees: keys that a query attends to, or queries that attend to a key."""

from typing import Any, Protocol

from .problem import Axis
from .window import INTEGERS, ArrayNamespace, inverse, window


class TableNamespace(ArrayNamespace, Protocol):
    """:class:`~.window.ArrayNamespace` that also makes arrays."""

    def arange(self, count: int, /) -> Any: ...


def row_interval(axis: Axis, transposed: bool, p: Any, columns: Any, xp: ArrayNamespace = INTEGERS) -> tuple[Any, Any]:
    """``[low, high)``: the columns, out of ``columns`` in the group, that the row at ``p`` sees."""
    interval = inverse if transposed else window
    return interval(p, columns, axis.window, axis.stride, axis.causal, xp)
