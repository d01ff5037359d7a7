"""DistributedDataParallel: two processes with half of a batch each equal one process with all of it."""

from __future__ import annotations

import datetime
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from frameworks import MPS
from torch import Tensor, nn

WORLD, BATCH, STEPS, LIMIT = 2, 4, 2, 90.0
BACKENDS = ("native", "pure")


def model_of() -> nn.Module:
    torch.manual_seed(0)
    attend = MPS.package.NeighborhoodAttention2D(8, 2, 3, is_causal=(False, True), rel_pos_bias=True)
    return nn.Sequential(nn.Linear(4, 8), attend, nn.Linear(8, 1)).double()


def data() -> Tensor:
    return torch.randn(BATCH, 6, 5, 4, generator=torch.Generator().manual_seed(1)).double()


def trained(model: nn.Module, batch: Tensor, backend: str) -> dict[str, Any]:
    """Gradients of the first step, weights after the last, and the backends that ran."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    gradients: list[Tensor] = []
    with MPS.package.use_backend(backend), MPS.watch() as ran:
        for _ in range(STEPS):
            optimizer.zero_grad()
            (model(batch) ** 2).mean().backward()
            found = [parameter.grad for parameter in model.parameters()]
            gradients = gradients or [gradient.clone() for gradient in found if gradient is not None]
            optimizer.step()
    return {"gradients": gradients, "weights": [p.detach() for p in model.parameters()], "ran": ran}


def work(rank: int, folder: str) -> None:
    """One process of the group: every second item of the batch."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/group", datetime.timedelta(seconds=LIMIT), world_size=WORLD, rank=rank
    )
    for backend in BACKENDS:
        model = nn.parallel.DistributedDataParallel(model_of())
        torch.save(trained(model, data()[rank::WORLD], backend), f"{folder}/{backend}-{rank}")
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    """Gradients of the whole batch in both processes, and equal weights after two steps."""
    started = torch.multiprocessing.start_processes(work, (str(tmp_path),), WORLD, join=False, start_method="spawn")
    assert started is not None
    until = time.monotonic() + LIMIT
    try:
        while not started.join(timeout=1):  # re-raises what a process raised
            assert time.monotonic() < until, "the processes hang"
    finally:
        for process in started.processes:
            process.kill()
    for backend in BACKENDS:
        alone = trained(model_of(), data(), backend)
        first, second = (torch.load(tmp_path / f"{backend}-{rank}") for rank in range(WORLD))
        assert first["ran"] == second["ran"] == alone["ran"] == {backend}
        assert len(first["gradients"]) == len(list(model_of().parameters()))
        for found, wanted in zip(
            first["gradients"] + first["weights"], alone["gradients"] + alone["weights"], strict=True
        ):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
        for a, b in zip(first["weights"], second["weights"], strict=True):
            assert torch.equal(a, b)
