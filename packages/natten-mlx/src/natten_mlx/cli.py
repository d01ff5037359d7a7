"""Command line: ``natten-mlx COMMAND``, also ``python -m natten_mlx.cli COMMAND``."""

import argparse
from collections.abc import Sequence
from typing import Any

from . import __version__
from ._metal.demo import Host, add_demo
from ._metal.doctor import Patient, add_doctor


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


HOST = Host("natten-mlx", ("auto", "nanobind", "fast_metal", "pure"), _attend, _explain)


def _patient() -> Patient:
    """The package as the doctor sees it; mlx is imported only when a command asks."""
    from ._doctor import PATIENT

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
    add_doctor(commands, "natten-mlx", _patient)
    arguments = parser.parse_args(argv)
    return int(arguments.run(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
