"""Command line: ``natten-mps COMMAND``, also ``python -m natten_mps.cli COMMAND``."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import __version__
from ._metal.demo import Host, add_demo
from ._metal.doctor import Patient, add_doctor

if TYPE_CHECKING:
    import torch


def _tensors(arrays: Sequence[Any], backend: str | None) -> "list[torch.Tensor]":
    """The arrays as tensors on the GPU if there is one, else, and for the CPU's own kernel, on the CPU."""
    import torch

    device = "mps" if torch.backends.mps.is_available() and backend != "native" else "cpu"
    return [torch.from_numpy(array).to(device) for array in arrays]


def _attend(query: Any, key: Any, value: Any, kernel_size: int, backend: str | None) -> tuple[Any, Any]:
    from . import na2d

    query, key, value = _tensors((query, key, value), backend)
    output, lse = na2d(query, key, value, kernel_size, scale=1.0, return_lse=True, backend=backend)
    return output.cpu().numpy(), lse.cpu().numpy()


def _explain(query: Any, key: Any, value: Any, kernel_size: int, backend: str | None) -> str:
    from . import explain

    query, key, value = _tensors((query, key, value), backend)
    return explain("na2d", query, key, value, kernel_size=kernel_size, scale=1.0, backend=backend)


HOST = Host("natten-mps", ("auto", "metal", "native", "pure"), _attend, _explain)


def _patient() -> Patient:
    """The package as the doctor sees it; torch is imported only when a command asks."""
    from ._doctor import PATIENT

    return PATIENT


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return the exit status.

    Raises SystemExit for --help, --version and a command line that cannot be parsed, as argparse does.
    """
    parser = argparse.ArgumentParser(
        "natten-mps", description="Neighborhood attention for PyTorch on Apple GPUs and on any CPU."
    )
    parser.add_argument("--version", action="version", version=f"natten-mps {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_demo(commands, HOST)
    add_doctor(commands, "natten-mps", _patient)
    arguments = parser.parse_args(argv)
    return int(arguments.run(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
