"""Train a small model on several processes, each of which holds some rows of every image.

    mlx.launch -n 3 examples/train_on_shards_mlx.py

Attention is the only layer that looks beyond its own token, so `share_attention` is the only change to the model; the
losses and gradients of the rows are summed. Without mlx.launch it trains on one process.
"""

import json

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

import natten_mlx
from natten_mlx import distributed

ROWS, COLUMNS, WIDTH, STEPS = 23, 16, 16, 12


class Model(nn.Module):
    """Two layers of attention over 5 x 5 windows, the second dilated."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(1, WIDTH)
        self.attention = [
            natten_mlx.NeighborhoodAttention2D(WIDTH, 2, 5, dilation=d, rel_pos_bias=True) for d in (1, 3)
        ]
        self.outer = nn.Linear(WIDTH, 1)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.inner(x)
        for layer in self.attention:
            x = x + layer(mx.tanh(x))
        return self.outer(x)


def images() -> tuple[mx.array, mx.array]:
    """Noisy waves and clean ones, ``[4, ROWS, COLUMNS, 1]``."""
    rows, columns = mx.arange(ROWS)[:, None], mx.arange(COLUMNS)[None]
    clean = mx.stack([mx.sin(rows / (2 + i)) * mx.cos(columns / (3 + i)) for i in range(4)])[..., None]
    return clean + 0.3 * mx.random.normal(clean.shape), clean


def train() -> None:
    group = mx.distributed.init()
    index, count = group.rank(), group.size()
    mx.random.seed(0)  # the same model, and the same images, in every process
    model, (noisy, clean) = Model(), images()
    if count > 1:
        distributed.share_attention(model, axis=0)
    # Shards need not be equally long; each process would read its own rows from a file.
    first, last = ROWS * index // count, ROWS * (index + 1) // count
    own, target = noisy[:, first:last], clean[:, first:last]

    def loss_of(model: Model) -> mx.array:
        return ((model(own) - target) ** 2).sum() / clean.size  # the rows' share of the mean

    optimizer, loss_and_gradients = optim.Adam(learning_rate=3e-3), nn.value_and_grad(model, loss_of)
    for step in range(STEPS):
        loss, gradients = loss_and_gradients(model)
        if count > 1:
            mx.eval(loss, gradients)
            gradients, loss = distributed.sum_gradients(gradients), mx.distributed.all_sum(loss)
        optimizer.update(model, gradients)
        mx.eval(loss, model.parameters(), optimizer.state)
        if index == 0:
            print(json.dumps({"step": step, "loss": loss.item()}), flush=True)


if __name__ == "__main__":
    train()
