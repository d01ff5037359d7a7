"""``natten-mlx demo train``: the model, and one step of training, in MLX."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.optimizers import AdamW

from .._metal.tools import train, train_model
from ..functional import explain
from ..modules import NeighborhoodAttention2D
from ..weights import load_weights


def _silu(x: mx.array) -> mx.array:
    """In plain operations: nn.silu compiles itself, which needs a C++ compiler on a CPU."""
    return x * mx.sigmoid(x)


def _loss(model: Any, patches: mx.array, labels: mx.array) -> mx.array:
    return nn.losses.cross_entropy(model(patches), labels, reduction="mean")


class Trainer:
    """A :class:`train.Trainer` on the default device."""

    def __init__(self, weights: dict[str, Any]) -> None:
        position = mx.zeros((train.GRID, train.GRID, train.WIDTH))
        self.model = train_model.classifier(nn, NeighborhoodAttention2D, _silu, position, list, "__call__")
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
        query = mx.zeros(train.QUERY_SHAPE)
        return explain("na2d", query, query, query, kernel_size=train.WINDOW)
