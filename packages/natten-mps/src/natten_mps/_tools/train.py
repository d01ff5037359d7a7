"""``natten-mps demo train``: the model, and one step of training, in PyTorch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._config import get_backend
from .._metal.plan.backend import NATIVE
from .._metal.tools import train, train_model
from ..functional import explain
from ..modules import NeighborhoodAttention2D
from ..weights import load_weights


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
        position = nn.Parameter(torch.zeros(train.GRID, train.GRID, train.WIDTH))
        made = train_model.classifier(nn, NeighborhoodAttention2D, F.silu, position, nn.ModuleList, "forward")
        self.model = made.to("mps" if on_gpu else "cpu")
        load_weights(self.model, weights)
        parameters = self.model.parameters()
        self.optimizer = torch.optim.AdamW(parameters, betas=train.BETAS, eps=train.EPSILON, weight_decay=train.DECAY)

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
        query = torch.zeros(train.QUERY_SHAPE, device=self.model.position.device, requires_grad=True)
        return explain("na2d", query, query, query, kernel_size=train.WINDOW)
