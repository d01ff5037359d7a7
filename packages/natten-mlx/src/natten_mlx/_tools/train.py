"""``natten-mlx demo train``: the model, and one step of training, in MLX."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.optimizers import AdamW

from .._metal.tools import train
from ..functional import explain
from ..modules import NeighborhoodAttention2D
from ..weights import load_weights


class Block(nn.Module):
    """Neighborhood attention and a perceptron, each after a norm and around a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(train.WIDTH), nn.LayerNorm(train.WIDTH)
        self.attention = NeighborhoodAttention2D(train.WIDTH, train.HEADS, train.WINDOW)
        self.expand, self.contract = nn.Linear(train.WIDTH, train.HIDDEN), nn.Linear(train.HIDDEN, train.WIDTH)

    def __call__(self, x: mx.array) -> mx.array:
        """``[B, 4, 4, C]`` -> the same."""
        x = x + self.attention(self.norm1(x))
        hidden = self.expand(self.norm2(x))
        # silu in plain operations: nn.silu compiles itself, which needs a C++ compiler on a CPU.
        return x + self.contract(hidden * mx.sigmoid(hidden))


class Classifier(nn.Module):
    """Patches ``[B, 4, 4, 9]`` -> logits ``[B, 10]``; described in :mod:`train`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(train.PATCH**2, train.WIDTH)
        self.position = mx.zeros((train.GRID, train.GRID, train.WIDTH))
        self.blocks = [Block() for _ in range(train.BLOCKS)]
        self.norm = nn.LayerNorm(train.WIDTH)
        self.head = nn.Linear(train.GRID**2 * train.WIDTH, train.CLASSES)

    def __call__(self, patches: mx.array) -> mx.array:
        x = self.embed(patches) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).flatten(1))


def _loss(model: Classifier, patches: mx.array, labels: mx.array) -> mx.array:
    return nn.losses.cross_entropy(model(patches), labels, reduction="mean")


class Trainer:
    """A :class:`train.Trainer` on the default device."""

    def __init__(self, weights: dict[str, Any]) -> None:
        self.model = Classifier()
        load_weights(self.model, weights)
        self.optimizer = AdamW(
            0.0, betas=list(train.BETAS), eps=train.EPSILON, weight_decay=train.DECAY, bias_correction=True
        )
        self.loss_and_gradients = nn.value_and_grad(self.model, _loss)

    def _input(self, patches: Any) -> mx.array:
        return mx.array(patches, dtype=self.model.position.dtype)

    def step(self, images: Any, labels: Any, rate: float) -> float:
        self.optimizer.learning_rate = rate
        loss, gradients = self.loss_and_gradients(self.model, self._input(images), mx.array(labels))
        self.optimizer.update(self.model, gradients)
        mx.eval(loss, self.model.state, self.optimizer.state)
        return float(loss.item())

    def logits(self, images: Any) -> Any:
        import numpy as np

        return np.array(self.model(self._input(images)))

    def explain(self) -> str:
        shape = (train.BATCH, train.GRID, train.GRID, train.HEADS, train.WIDTH // train.HEADS)
        query = mx.zeros(shape)
        return explain("na2d", query, query, query, kernel_size=train.WINDOW)
