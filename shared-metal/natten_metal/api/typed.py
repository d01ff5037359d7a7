"""The types of arguments that both packages have, and what their typed faces are made with."""

from collections.abc import Callable
from typing import Any, Protocol

Ints = int | tuple[int, ...] | list[int]
Bools = bool | tuple[bool, ...] | list[bool]
Face = Callable[..., Any]


class Named(Protocol):
    """What a face has besides its call."""

    __name__: str


def unchanged(face: Any) -> Any:
    """A decorator for type checkers alone: they read a protocol in place of the function."""
    return face
