"""Command line: ``natten-mps COMMAND``, also ``python -m natten_mps COMMAND``."""

from collections.abc import Sequence
from typing import Any

from ._metal.tools.cli import CommandLine


def _tensors(arrays: Sequence[Any], backend: str | None) -> Sequence[Any]:
    """The arrays as tensors: on the GPU if there is one, otherwise, and for the CPU kernels, on the CPU."""
    import torch

    device = "mps" if torch.backends.mps.is_available() and backend != "native" else "cpu"
    return [torch.from_numpy(array).to(device) for array in arrays]


def _numpy(tensor: Any) -> Any:
    return tensor.cpu().numpy()


main = CommandLine("natten-mps", "PyTorch", ("auto", "metal", "native", "pure"), _tensors, _numpy).main
