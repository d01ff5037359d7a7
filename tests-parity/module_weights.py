"""Modules of both packages under test: how they are built, given weights, and called."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.utils
import numpy as np
import torch
from frameworks import Framework

Array = Any

SHAPES = {1: (9,), 2: (6, 7), 3: (4, 3, 5)}


def build(framework: Framework, rank: int, **arguments: Any) -> Any:
    """The module in eval mode, with embed_dim 12 and 4 heads."""
    made = framework.face(f"NeighborhoodAttention{rank}D")(**{"embed_dim": 12, "num_heads": 4} | arguments)
    made.eval()
    return made


def state(module: Any) -> dict[str, Array]:
    if isinstance(module, torch.nn.Module):
        return {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    return {name: np.array(array) for name, array in mlx.utils.tree_flatten(module.parameters())}


def load(module: Any, weights: dict[str, Array]) -> None:
    """Load exactly ``weights``, in the way in which each framework loads a checkpoint."""
    if isinstance(module, torch.nn.Module):
        module.load_state_dict({name: torch.tensor(array) for name, array in weights.items()}, strict=True)
    else:
        module.load_weights([(name, mx.array(array)) for name, array in weights.items()], strict=True)


def example(rank: int, batch: int = 2) -> Array:
    return np.random.default_rng(rank).standard_normal((batch, *SHAPES[rank], 12)).astype(np.float32)


def random_weights(module: Any, seed: int = 0) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(array.shape).astype(np.float32) / 3 for name, array in state(module).items()}


def forward(framework: Framework, module: Any, x: Array, **arguments: Any) -> Array:
    return framework.numpy(module(framework.tensor(x, "float32"), **arguments))
