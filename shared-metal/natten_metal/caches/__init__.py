"""The one kind of cache: named, bounded, safe to use from several threads, and empty again when a test asks for it."""

import os
import threading
import weakref
from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_caches: "weakref.WeakSet[Cache]" = weakref.WeakSet()


class Cache:
    """At most ``max_size`` values by key; the oldest one makes room for a new one.

    Reading takes no lock. Values are never None: None means that the key is absent.
    """

    def __init__(self, name: str, max_size: int) -> None:
        self.name, self.max_size = name, max_size
        self._kept: dict[Hashable, Any] = {}
        self._lock = threading.RLock()
        _caches.add(self)

    def __len__(self) -> int:
        return len(self._kept)

    def values(self) -> list[Any]:
        """What is kept, oldest first."""
        with self._lock:
            return list(self._kept.values())

    def get(self, key: Hashable) -> Any:
        """The value of ``key``, or None; TypeError if ``key`` is not hashable."""
        return self._kept.get(key)

    def keep(self, key: Hashable, value: Any) -> Any:
        """Keep ``value`` under ``key``, unless another thread was first; returns the value that is kept."""
        with self._lock:
            found = self._kept.setdefault(key, value)
            while len(self._kept) > self.max_size:
                del self._kept[next(iter(self._kept))]
            return found

    def get_or_make(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value of ``key``, or that of ``make()``. Several threads may each make it, but all get the same one."""
        found = self._kept.get(key)
        return self.keep(key, make()) if found is None else found

    def get_or_make_once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """As :meth:`get_or_make`, but no two threads make a value of this cache at the same time."""
        found = self._kept.get(key)
        if found is None:
            with self._lock:
                return self.get_or_make(key, make)
        return found

    def add(self, key: Hashable) -> bool:
        """Keep ``key`` without a value; whether it is new. Of several threads at once, exactly one gets True."""
        with self._lock:
            new = key not in self._kept
            self.keep(key, True)
            return new

    def clear(self) -> None:
        """Remove all values."""
        with self._lock:
            self._kept.clear()


def caches() -> list[Cache]:
    """All caches of this package that are alive, by name."""
    return sorted(_caches, key=lambda cache: cache.name)


def clear_all() -> None:
    """Empty every cache of this package, as if no call had been made yet. Verdicts stay: ``Planner.forget``."""
    for cache in caches():
        cache.clear()


_NAMED = object()


def cached(name: str, max_size: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function so that a :class:`Cache` keeps its results, which are never None, by its arguments."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        cache = Cache(name, max_size)

        @wraps(function)
        def call(*arguments: P.args, **named: P.kwargs) -> T:
            key = (*arguments, _NAMED, *named.items()) if named else arguments
            found: T | None = cache.get(key)
            if found is None:
                found = cache.keep(key, function(*arguments, **named))
            return found

        return call

    return decorate


def _renew_locks() -> None:
    """In a forked child, a lock that another thread held would stay locked forever."""
    for cache in _caches:
        cache._lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_locks)
