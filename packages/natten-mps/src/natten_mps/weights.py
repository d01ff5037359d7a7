"""Weights from NATTEN's checkpoints of every generation, from natten-mlx, and back.

load_weights(module, "natten.pt")                       # or .npz, .safetensors, or any mapping of arrays
load_weights(module, mlx_module.parameters())
save_weights(module, "weights.safetensors")             # which natten_mlx.load_weights reads
"""

import os
from typing import Any

import torch
from torch import Tensor, nn

from ._metal.weights import files as weight_files
from ._metal.weights import state as weights
from ._metal.weights.faults import UNREADABLE, broken

TORCH_FILES = (".pt", ".pth", ".bin")


def load_weights(module: nn.Module, source: Any, *, strict: bool = True) -> tuple[list[str], list[str]]:
    """Load a module, or a whole model, with weights of any framework, in the module's own dtypes and devices.

    Args:
        module: its parameters are replaced.
        source: a mapping of names to arrays of torch, MLX or numpy, nested as MLX nests them or wrapped as training
            scripts do; or a file: .npz, .safetensors, or torch's .pt, .pth and .bin, of which only weights are read.
        strict: every weight of the module must be there, and nothing else.

    Returns:
        The names that were missing, and those that the module does not have.

    Raises:
        ValueError: shapes that differ, or strict is broken (the message says how the module would have to be made), or
            a file of another kind or cut short.
        TypeError: something that is not an array. OSError: a file that cannot be read.

    Source: upstream NATTEN's checkpoints of every generation, whose names are understood.
    """
    if isinstance(source, (str, os.PathLike)):
        if os.fspath(source).endswith(TORCH_FILES):
            source = _torch_file(source)
        else:
            source = weight_files.read(source, f" (or {', '.join(TORCH_FILES)})")
    own = module.state_dict()
    full = {short: name for name, short in weights.bare(own).items()}
    given = weights.named(source, full)
    found = weights.fitting(
        {name: array.shape for name, array in given.items()},
        {short: _shape(short, own[name]) for short, name in full.items()},
        strict,
    )
    tensors = {full[name]: _view(array) for name, array in given.items() if name in full}
    module.load_state_dict(tensors, strict=False)
    return found


def _torch_file(path: Any) -> Any:
    """A file of torch.save, of which only weights are read."""
    with open(path, "rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except UNREADABLE as error:
            raise broken(path, error) from error


def _view(array: Any) -> Tensor:
    """An array as a tensor in the same memory: load_state_dict copies it. A copy only where torch takes no view."""
    import numpy

    return torch.from_numpy(numpy.require(array, requirements=["C", "A", "W"]))


def _shape(name: str, tensor: Any) -> tuple[int, ...]:
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"load_weights: the module keeps {name} as {type(tensor).__name__}, which no array fills; "
            "load the weights first, and quantise the module then"
        )
    return tuple(tensor.shape)


def save_weights(module: nn.Module, path: Any) -> None:
    """Write a module's state dict to a file that both packages read.

    Names are without what torch.compile and parallel training put into them.

    Args:
        module: the module, or a whole model.
        path: ending in .npz or .safetensors; bfloat16 is written as float32.

    Raises:
        ValueError: another ending. OSError: a file that cannot be written.
    """
    own = module.state_dict()
    weight_files.write(path, {short: own[name] for name, short in weights.bare(own).items()})
