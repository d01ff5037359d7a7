"""The machine that a package's calls run on: its own, or one that tests put there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from .planner import Planner

M = TypeVar("M", bound=Planner)


class Machines(Generic[M]):
    """Calling it gives the machine that calls are planned for and run on."""

    def __init__(self, own: M) -> None:
        self._current = own

    def __call__(self) -> M:
        return self._current

    @contextmanager
    def on(self, other: M) -> Iterator[M]:
        """A context in which calls of all threads run on ``other``."""
        before, self._current = self._current, other
        try:
            yield other
        finally:
            self._current = before
