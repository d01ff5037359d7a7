"""Weights from NATTEN's checkpoints of every generation, from natten-mlx, and back.

load_weights(module, "natten.pt")                       # or .npz, .safetensors, or any mapping of arrays
load_weights(module, mlx_module.parameters())
save_weights(module, "weights.safetensors")             # which natten_mlx.load_weights reads
"""

import os
from typing import Any

import torch
from torch import nn

from ._metal import weights

TORCH_FILES = (".pt", ".pth", ".bin")


def load_weights(module: nn.Module, source: Any, *, strict: bool = True) -> tuple[list[str], list[str]]:
    """Load a module, or a whole model, with weights of any framework, in the module's own dtypes and devices.

    source: a mapping of names to arrays of torch, MLX or numpy (nested as MLX nests them, or wrapped as training
    scripts do), or a file: .npz, .safetensors, or torch's .pt, .pth and .bin, of which only weights are read.
    strict: every weight must be there, and every one in ``source`` wanted.

    Returns the names that were missing and those that nothing wanted. ValueError where shapes differ, or strict
    is broken (the message says how the module would have to be made); TypeError for what is no array.
    """
    if isinstance(source, (str, os.PathLike)):
        if os.fspath(source).endswith(TORCH_FILES):
            source = torch.load(source, map_location="cpu", weights_only=True)
        else:
            source = weights.read(source, f" (or {', '.join(TORCH_FILES)})")
    given, own = weights.named(source), module.state_dict()
    found = weights.fitting(
        {name: array.shape for name, array in given.items()},
        {name: tuple(tensor.shape) for name, tensor in own.items()},
        strict,
    )
    module.load_state_dict({name: torch.tensor(array) for name, array in given.items() if name in own}, strict=False)
    return found


def save_weights(module: nn.Module, path: Any) -> None:
    """Write a module's state dict as .npz or .safetensors (bfloat16 as float32); ValueError for another ending."""
    weights.write(path, module.state_dict())
