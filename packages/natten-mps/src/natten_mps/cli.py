"""Command line: ``natten-mps COMMAND``, also ``python -m natten_mps COMMAND``."""

from collections.abc import Sequence
from typing import Any

from ._metal.plan.backend import AUTO, METAL, NATIVE, PURE
from ._metal.tools.cli import CommandLine
from ._metal.tools.installation import Framework

FRAMEWORK = Framework("PyTorch", "torch", "torch", install={"": "pip install torch"}, parts={})


def _tensors(arrays: Sequence[Any], backend: str | None) -> Sequence[Any]:
    """The arrays as tensors: on the GPU if there is one, otherwise, and for the CPU kernels, on the CPU."""
    import torch

    device = "mps" if torch.backends.mps.is_available() and backend != NATIVE.name else "cpu"
    return [torch.from_numpy(array).to(device) for array in arrays]


def _numpy(tensor: Any) -> Any:
    return tensor.cpu().numpy()


main = CommandLine("natten-mps", FRAMEWORK, (AUTO, METAL.name, NATIVE.name, PURE.name), _tensors, _numpy).main
