"""Calls that came before: what a call's checks and its plan gave is kept for the next one that is like it.

Both cost more than a small problem, and a program's calls are few in kind.
"""

from collections.abc import Callable, Hashable
from typing import Any

MOST = 1024
Signature = tuple[Hashable, ...]


_VALUES = frozenset((int, float, bool, str, type(None)))


def exactly(arguments: tuple[Any, ...]) -> Signature | None:
    """Arguments with their types: 1, 1.0 and True are equal, but not equally legal.

    None if one of them is neither a plain value nor a tuple or list of these: it may change behind its hash.
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
        raise TypeError(f"a {kind.__name__} is no plain value")
    return kind, argument


class Recall:
    """Outcomes by signature; a signature of None is never kept."""

    def __init__(self) -> None:
        self._kept: dict[Signature | None, Any] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, signature: Signature | None) -> Any:
        """The outcome of an earlier call; None if there was none."""
        return self._kept.get(signature)

    def keep(self, signature: Signature | None, outcome: Any) -> None:
        """Keep the outcome of a call whose checks passed."""
        if signature is None:
            return
        if len(self._kept) >= MOST:
            self._kept.clear()
        self._kept[signature] = outcome

    def get_or_make(self, signature: Signature | None, make: Callable[[], Any]) -> Any:
        """The outcome of an earlier call, or of ``make``, which is kept."""
        try:
            found = self._kept.get(signature)
        except TypeError:  # sizes that a tracer counts with have no hash
            return make()
        if found is None:
            found = make()
            self.keep(signature, found)
        return found

    def clear(self) -> None:
        """Forget all of them."""
        self._kept.clear()
