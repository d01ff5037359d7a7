"""Weights from NATTEN's checkpoints of every generation, from natten-mps, and back.

load_weights(module, "weights.safetensors")             # or .npz, or any mapping of arrays
load_weights(module, torch_module.state_dict())
save_weights(module, "weights.safetensors")             # which natten_mps.load_weights reads
"""

import os
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ._metal.weights import files as weight_files
from ._metal.weights import state as weights


def load_weights(module: nn.Module, source: Any, *, strict: bool = True) -> tuple[list[str], list[str]]:
    """Load a module, or a whole model, with weights of any framework, in the module's own dtypes.

    Args:
        module: its parameters are replaced.
        source: a mapping of names to arrays of MLX, torch or numpy, nested as MLX nests them or wrapped as training
            scripts do; or a file: .npz or .safetensors (natten_mps.save_weights makes one of torch's files).
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
        source = weight_files.read(source, "; natten_mps.save_weights makes one of torch's")
    own = dict(tree_flatten(module.parameters()))
    given = weights.named(source, own)
    found = weights.fitting(
        {name: array.shape for name, array in given.items()},
        {name: tuple(array.shape) for name, array in own.items()},
        strict,
    )
    loaded = [(name, mx.array(array).astype(own[name].dtype)) for name, array in given.items() if name in own]
    module.load_weights(loaded, strict=False)
    return found


def save_weights(module: nn.Module, path: Any) -> None:
    """Write a module's parameters to a file that both packages read.

    Args:
        module: the module, or a whole model.
        path: ending in .npz or .safetensors; bfloat16 is written as float32.

    Raises:
        ValueError: another ending. OSError: a file that cannot be written.
    """
    weight_files.write(path, dict(tree_flatten(module.parameters())))
