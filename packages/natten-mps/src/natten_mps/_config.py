"""Which backend calls use, and what this machine can do."""

from contextlib import AbstractContextManager
from typing import Any

import torch

from ._backends import BACKENDS, ORDER
from ._device import machine
from ._metal.plan.backend import METAL
from ._metal.plan.support import support_matrix


def get_backend() -> str:
    """The backend that calls use unless they name another.

    Returns:
        'auto', 'metal', 'native', 'pure' or 'dense', by the innermost :func:`use_backend`,
        by :func:`set_backend`, or by the environment (``NATTEN_MPS_BACKEND``, ``NATTEN_BACKEND``).

    Raises:
        ValueError: the environment names a backend that does not exist.
    """
    return BACKENDS.get()


def set_backend(backend: str) -> None:
    """Make a backend the process's default.

    Args:
        backend: 'auto', 'metal', 'native', 'pure' or 'dense'.

    Raises:
        TypeError: not a string. ValueError: an unknown name.
    """
    BACKENDS.set(backend)


def use_backend(backend: str) -> AbstractContextManager[None]:
    """A context within which ``backend`` is the default: in this thread, or this asyncio task, only.

        with natten_mps.use_backend("pure"):
            out = model(x)

    A generator shares its caller's context: between its steps, what it chose holds for the caller too. torch.compile
    sees the backend that its thread chose last, and compiles a function again when that changes. So tasks that take
    turns in one thread, with different backends, must pass ``backend=`` to the calls that they compile.

    Args:
        backend: 'auto', 'metal', 'native', 'pure' or 'dense'.

    Returns:
        The context manager.

    Raises:
        TypeError, ValueError: not a string, or an unknown name, when the context is entered.
    """
    return BACKENDS.use(backend)


def has_mps() -> bool:
    """Whether torch can compute on this machine's Apple GPU."""
    return torch.backends.mps.is_available()


def has_metal() -> bool:
    """Whether the Metal kernels can run on this machine."""
    return has_mps() and bool(get_support_matrix()[METAL.name]["available"])


def get_support_matrix() -> dict[str, dict[str, Any]]:
    """What each backend can do on this machine, and why it cannot do the rest.

    Returns:
        By backend a dict of available, forward, backward, fusion, varlen, constraints, ops, limits and reason.
        constraints: ranks and dtypes, and if limited, the largest head_dim and number of rpb_entries.
        ops: for each family of ops '' or why it does not run on the backend. limits: by name, which problems of these
        ops the backend refuses, in words.
    """
    here = machine()
    device = here.device_of(torch.device("mps" if has_mps() else "cpu"))
    return support_matrix(device, ORDER, here.verdicts)
