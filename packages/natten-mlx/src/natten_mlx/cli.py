"""Command line: ``natten-mlx COMMAND``, also ``python -m natten_mlx COMMAND``."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from . import __version__
from ._metal.tools.demo import Host, add_demo
from ._metal.tools.doctor import Patient, add_doctor
from ._metal.tools.train import Trainer, TrainHost, add_train, join_train


def _attend(query: Any, key: Any, value: Any, kernel_size: int, backend: str | None) -> tuple[Any, Any]:
    import mlx.core as mx
    import numpy as np

    from . import na2d

    query, key, value = (mx.array(array) for array in (query, key, value))
    output, lse = na2d(query, key, value, kernel_size, scale=1.0, return_lse=True, backend=backend)
    return np.array(output), np.array(lse)


def _explain(query: Any, key: Any, value: Any, kernel_size: int, backend: str | None) -> str:
    import mlx.core as mx

    from . import explain

    query, key, value = (mx.array(array) for array in (query, key, value))
    return explain("na2d", query, key, value, kernel_size=kernel_size, scale=1.0, backend=backend)


def _get_backend() -> str:
    from . import get_backend

    return get_backend()


HOST = Host("natten-mlx", ("auto", "nanobind", "fast_metal", "pure"), _get_backend, _attend, _explain)


def _trainer(weights: dict[str, Any]) -> Trainer:
    from ._tools.train import Trainer

    return Trainer(weights)


def _use_backend(backend: str) -> AbstractContextManager[None]:
    from . import use_backend

    return use_backend(backend)


# Dense attention has enough memory for the few tokens of a digit.
TRAIN_HOST = TrainHost("natten-mlx", (*HOST.backends, "dense"), _get_backend, _trainer, _use_backend)


def _patient() -> Patient:
    """The package as the doctor sees it; mlx is imported only when a command asks."""
    from ._tools.doctor import PATIENT

    return PATIENT


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return the exit status.

    Raises SystemExit for --help, --version and a command line that cannot be parsed, as argparse does.
    """
    parser = argparse.ArgumentParser(
        "natten-mlx", description="Neighborhood attention for Apple MLX on Apple GPUs and on any CPU."
    )
    parser.add_argument("--version", action="version", version=f"natten-mlx {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_demo(commands, HOST)
    add_train(commands, TRAIN_HOST)
    add_doctor(commands, "natten-mlx", _patient)
    arguments = parser.parse_args(join_train(sys.argv[1:] if argv is None else list(argv)))
    return int(arguments.run(arguments))
