"""Which backend calls use, and what this machine can do."""

from contextlib import AbstractContextManager
from typing import Any

import mlx.core as mx

from ._backends import BACKENDS, ORDER
from ._device import machine
from ._metal.plan.backend import FAST_METAL
from ._metal.plan.support import support_matrix
from ._tensors import stream_of


def get_backend() -> str:
    """The backend that calls use unless they name another.

    Returns:
        'auto', 'nanobind', 'fast_metal', 'pure' or 'dense', by the innermost :func:`use_backend`,
        by :func:`set_backend`, or by the environment (``NATTEN_MLX_BACKEND``, ``NATTEN_BACKEND``).

    Raises:
        ValueError: the environment names a backend that does not exist.
    """
    return BACKENDS.get()


def set_backend(backend: str) -> None:
    """Make a backend the process's default.

    Args:
        backend: 'auto', 'nanobind', 'fast_metal', 'pure' or 'dense' ('metal' means 'fast_metal').

    Raises:
        TypeError: not a string. ValueError: an unknown name.
    """
    BACKENDS.set(backend)


def use_backend(backend: str) -> AbstractContextManager[None]:
    """A context within which ``backend`` is the default: in this thread, or this asyncio task, only.

        with natten_mlx.use_backend("pure"):
            out = model(x)

    A generator shares its caller's context: between its steps, what it chose holds for the caller too. A function
    that mx.compile has traced keeps the backend that it was traced with.

    Args:
        backend: 'auto', 'nanobind', 'fast_metal', 'pure' or 'dense' ('metal' means 'fast_metal').

    Returns:
        The context manager.

    Raises:
        TypeError, ValueError: not a string, or an unknown name, when the context is entered.
    """
    return BACKENDS.use(backend)


def has_metal() -> bool:
    """Whether the Metal kernels can run on this machine."""
    return mx.metal.is_available() and bool(get_support_matrix()[FAST_METAL.name]["available"])


def has_nanobind() -> bool:
    """Whether the C++ extension can run on the default device."""
    return nanobind_unavailable_reason() is None


def nanobind_unavailable_reason() -> str | None:
    """Why the C++ extension cannot run on the default device, in one sentence; None if it can."""
    return machine().nanobind.missing(stream_of("nanobind_unavailable_reason", None))


def get_support_matrix() -> dict[str, dict[str, Any]]:
    """What each backend can do on the default device, and why it cannot do the rest.

    Returns:
        By backend a dict of available, forward, backward, fusion, varlen, constraints, ops, limits and reason.
        constraints: ranks and dtypes, and if limited, the largest head_dim and number of rpb_entries.
        ops: for each family of ops '' or why it does not run on the backend. limits: by name, which problems of these
        ops the backend refuses, in words.
    """
    here = machine()
    device = here.device_of(stream_of("get_support_matrix", None))
    return support_matrix(device, ORDER, here.verdicts)
