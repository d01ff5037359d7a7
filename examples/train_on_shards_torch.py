"""Train a small model on several processes, each of which holds some rows of every image.

    torchrun --nproc-per-node 3 examples/train_on_shards_torch.py

Attention is the only layer that looks beyond its own token, so `share_attention` is the only change to the model; the
losses and gradients of the rows are summed. Without torchrun it trains on one process.
"""

import json
import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

import natten_mps
from natten_mps import distributed

ROWS, COLUMNS, WIDTH, STEPS = 23, 16, 16, 12


class Model(nn.Module):
    """Two layers of attention over 5 x 5 windows, the second dilated."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(1, WIDTH)
        self.attention = nn.ModuleList(
            natten_mps.NeighborhoodAttention2D(WIDTH, 2, 5, dilation=d, rel_pos_bias=True) for d in (1, 3)
        )
        self.outer = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner(x)
        for layer in self.attention:
            x = x + layer(torch.tanh(x))
        return self.outer(x)


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy waves and clean ones, ``[4, ROWS, COLUMNS, 1]``."""
    rows, columns = torch.arange(ROWS)[:, None], torch.arange(COLUMNS)[None]
    clean = torch.stack([torch.sin(rows / (2 + i)) * torch.cos(columns / (3 + i)) for i in range(4)])[..., None]
    return clean + 0.3 * torch.randn(clean.shape), clean


def train() -> None:
    if "RANK" in os.environ:
        dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    index, count = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(0)  # the same model, and the same images, in every process
    model, (noisy, clean) = Model(), images()
    if count > 1:
        distributed.share_attention(model, axis=0)
    # Shards need not be equally long; each process would read its own rows from a file.
    first, last = ROWS * index // count, ROWS * (index + 1) // count
    own, target = noisy[:, first:last], clean[:, first:last]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(STEPS):
        loss = ((model(own) - target) ** 2).sum() / clean.numel()  # the rows' share of the mean
        optimizer.zero_grad()
        loss.backward()
        if count > 1:
            distributed.sum_gradients(model)
            dist.all_reduce(loss.detach_())
        optimizer.step()
        if index == 0:
            print(json.dumps({"step": step, "loss": loss.item()}), flush=True)
    if count > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    train()
