"""``natten-mps demo train``: the model, and one step of training, in PyTorch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._config import get_backend
from .._metal.plan.backend import NATIVE
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

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 4, 4, C]`` -> the same."""
        x = x + self.attention(self.norm1(x))
        return x + self.contract(F.silu(self.expand(self.norm2(x))))


class Classifier(nn.Module):
    """Patches ``[B, 4, 4, 9]`` -> logits ``[B, 10]``; described in :mod:`train`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(train.PATCH**2, train.WIDTH)
        self.position = nn.Parameter(torch.zeros(train.GRID, train.GRID, train.WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(train.BLOCKS)))
        self.norm = nn.LayerNorm(train.WIDTH)
        self.head = nn.Linear(train.GRID**2 * train.WIDTH, train.CLASSES)

    def forward(self, patches: Tensor) -> Tensor:
        x = self.blocks(self.embed(patches) + self.position)
        return self.head(self.norm(x).flatten(1))


@contextmanager
def _one_thread() -> Iterator[None]:
    """The operations are too small to parallelise: on a busy machine threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Trainer:
    """A :class:`train.Trainer` on the GPU if there is one and the backend does not require the CPU."""

    def __init__(self, weights: dict[str, Any]) -> None:
        on_gpu = torch.backends.mps.is_available() and get_backend() != NATIVE.name
        self.model = Classifier().to("mps" if on_gpu else "cpu")
        load_weights(self.model, weights)
        parameters = self.model.parameters()
        self.optimizer = torch.optim.AdamW(
            parameters, betas=train.BETAS, eps=train.EPSILON, weight_decay=train.DECAY
        )  # fmt: skip

    def _input(self, patches: Any) -> Tensor:
        return torch.from_numpy(patches).to(self.model.position)

    @_one_thread()
    def step(self, images: Any, labels: Any, rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        logits = self.model(self._input(images))
        loss = F.cross_entropy(logits, torch.from_numpy(labels).to(logits.device))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def logits(self, images: Any) -> Any:
        with torch.no_grad():
            return self.model(self._input(images)).cpu().numpy()

    def explain(self) -> str:
        shape = (train.BATCH, train.GRID, train.GRID, train.HEADS, train.WIDTH // train.HEADS)
        query = torch.zeros(shape, device=self.model.position.device, requires_grad=True)
        return explain("na2d", query, query, query, kernel_size=train.WINDOW)
