"""The types of arguments that both packages have, and what typed faces need."""

from collections.abc import Callable
from typing import Any, Protocol

Ints = int | tuple[int, ...] | list[int]
Bools = bool | tuple[bool, ...] | list[bool]
Face = Callable[..., Any]


class Named(Protocol):
    """What a face has besides being callable."""

    __name__: str


def unchanged(face: Any) -> Any:
    """A decorator only for type checkers, which see a protocol instead of the function."""
    return face
