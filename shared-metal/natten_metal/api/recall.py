"""Repeated calls: the results of a call's checks and of its planning are kept for the next call like it.

Both cost more than a small problem, and most calls of a program are alike.
"""

from collections.abc import Callable, Hashable
from typing import Any

from ..caches import Cache

MAX_CALLS = 1024
Signature = tuple[Hashable, ...]


_VALUES = frozenset((int, float, bool, str, type(None)))


def exactly(arguments: tuple[Any, ...]) -> Signature | None:
    """Arguments with their types: 1, 1.0 and True are equal, but not equally legal.

    None if one of them is neither a plain value nor a tuple or list of these: it could change and keep its hash.
    """
    kinds = tuple(map(type, arguments))
    if _VALUES.issuperset(kinds):
        return kinds, arguments
    try:
        return kinds, tuple(map(_value, arguments))
    except TypeError:
        return None


def _value(argument: Any) -> Hashable:
    kind = type(argument)
    if kind is tuple or kind is list:
        return tuple(map(_value, argument))
    if kind not in _VALUES:
        raise TypeError(f"a {kind.__name__} is not a plain value")
    return kind, argument


class Recall(Cache):
    """Outcomes of calls by signature; nothing is kept under None."""

    def __init__(self, name: str = "calls", max_size: int = MAX_CALLS) -> None:
        super().__init__(name, max_size)

    def keep(self, key: Hashable, value: Any) -> Any:
        """Keep the outcome of a call whose checks passed."""
        return value if key is None else super().keep(key, value)

    def get_or_make(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The outcome of an earlier call, or of ``make``, which is kept."""
        try:
            found = self.get(key)
        except TypeError:  # a tracer's symbolic sizes have no hash
            return make()
        return self.keep(key, make()) if found is None else found
