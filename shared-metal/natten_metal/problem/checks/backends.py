"""The rules of ``backend``, and keyword arguments that an op does not have."""

from collections.abc import Mapping
from typing import Any, NoReturn

from .arguments import reject_type


def backend_name(op: str, backend: Any, aliases: dict[str, str], known: tuple[str, ...], package: str) -> str:
    """The name that ``backend`` stands for: one of ``known``."""
    if not isinstance(backend, str):
        raise TypeError(f"{op}: backend must be a string or None; got {type(backend).__name__}")
    name = aliases.get(backend, backend)
    if name not in known:
        raise ValueError(f"{op}: unknown backend '{backend}'; {package} has {', '.join(known)}")
    return name


def reject_keyword(op: str, name: str) -> NoReturn:
    """TypeError for a keyword argument that the op does not have."""
    raise TypeError(f"{op}: got an unexpected keyword argument '{name}'")


def reject_problem(name: str, backend: str, reason: str) -> NoReturn:
    """NotImplementedError: the requested backend cannot take the problem."""
    raise NotImplementedError(
        f"{name}: backend='{backend}' cannot take this problem: {reason}. backend='auto' picks a backend that can"
    )


def no_backend(name: str, reasons: Mapping[str, object]) -> NotImplementedError:
    """The error of a problem that no backend can take."""
    return NotImplementedError(f"{name}: no backend takes this problem: " + "; ".join(map(str, reasons.values())))


def check_explained(asked: str, face: Any, faces: tuple[str, ...]) -> None:
    """The op that ``asked``, 'explain' or another function of this kind, is asked about."""
    if not isinstance(face, str):
        reject_type(asked, "op", face, "the name of an op")
    if face not in faces:
        verb = {"explain": "explains", "flops": "counts", "plan": "plans", "viz": "shows"}[asked]
        raise ValueError(f"{asked}: unknown op {face!r}; it {verb} {', '.join(faces)}")


def check_explained_arguments(
    asked: str, face: str, given: set[str], known: set[str], needs_window: bool, tensors: Any
) -> None:
    """The arguments of :func:`check_explained`'s op. known: all that it takes, kernel_size included."""
    unknown = sorted(given - known)
    if unknown:
        raise TypeError(f"{asked}: {face} has no argument '{unknown[0]}'")
    if needs_window and "kernel_size" not in given:
        raise TypeError(f"{asked}: {face} needs kernel_size")
    if None in tensors:
        raise TypeError(f"{asked}: {face} needs query, key and value")
