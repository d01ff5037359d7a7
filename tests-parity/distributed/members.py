"""One interface to the two packages, for a process of a group."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
from shard_cases import Array, ShardCase

Tensor = Any
TIMEOUT = 8.0  # seconds


class Torch:
    dtype, tolerance, itemsize = "float64", 1e-12, 8
    in_ring = False

    def __init__(self) -> None:
        import torch
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh

        import natten_mps
        from natten_mps import distributed

        assert "torch._dynamo" not in sys.modules, "torch's compiler is imported, which takes seconds"
        self.torch, self.whole, self.shared = torch, natten_mps, distributed
        dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT))
        self.index, self.count, self.sent = dist.get_rank(), dist.get_world_size(), 0
        self.mesh = init_device_mesh("cpu", (2, 2)) if self.count == 4 else None
        real = dist.batch_isend_irecv

        def counted(calls: Any) -> Any:
            self.sent += sum(each.tensor.nbytes for each in calls if each.op is dist.isend)
            return real(calls)

        dist.batch_isend_irecv = counted

    def cut(self, case: ShardCase) -> dict[str, Any]:
        """The arguments that say how a case is cut."""
        if len(case.cut) == 1:
            return {"axis": case.cut[0]}
        return {"axis": case.cut, "group": self.mesh}

    def tensor(self, array: Array, dtype: str = "") -> Tensor:
        return self.torch.tensor(array, dtype=getattr(self.torch, dtype or self.dtype))

    def numpy(self, tensor: Tensor) -> Array:
        return tensor.detach().double().numpy()

    def vjp(self, function: Callable[..., Any], given: list[Tensor], cotangents: list[Tensor]) -> tuple[Any, Any]:
        given = [each.detach().clone().requires_grad_() for each in given]
        outputs = function(*given)
        cotangents = [each.to(out.dtype) for each, out in zip(cotangents, outputs, strict=True)]
        return outputs, self.torch.autograd.grad(outputs, given, cotangents)

    def end(self) -> None:
        self.torch.distributed.destroy_process_group()


class Mlx:
    dtype, tolerance, itemsize = "float32", 1e-5, 4
    in_ring = True

    def __init__(self) -> None:
        import mlx.core as mx

        import natten_mlx
        from natten_mlx import distributed

        self.mx, self.whole, self.shared = mx, natten_mlx, distributed
        # There is no ring of one process: MLX then has a group without a backend.
        several = int(os.environ["WORLD_SIZE"]) > 1
        group = mx.distributed.init(strict=several, backend="ring")
        self.index, self.count, self.sent = group.rank(), group.size(), 0
        real = mx.distributed.send

        def counted(array: Any, *rest: Any, **more: Any) -> Any:
            self.sent += array.nbytes
            return real(array, *rest, **more)

        mx.distributed.send = counted

    def cut(self, case: ShardCase) -> dict[str, Any]:
        """The arguments that say how a case is cut."""
        if len(case.cut) == 1:
            return {"axis": case.cut[0], "timeout": TIMEOUT}
        return {"axis": case.cut, "grid": case.grid}

    def tensor(self, array: Array, dtype: str = "") -> Tensor:
        return self.mx.array(np.asarray(array, np.float32)).astype(getattr(self.mx, dtype or self.dtype))

    def numpy(self, tensor: Tensor) -> Array:
        return np.array(tensor.astype(self.mx.float32)).astype(np.float64)

    def vjp(self, function: Callable[..., Any], given: list[Tensor], cotangents: list[Tensor]) -> tuple[Any, Any]:
        return self.mx.vjp(
            lambda *arrays: tuple(function(*arrays)),
            given,
            cotangents[:1] + [each.astype(self.mx.float32) for each in cotangents[1:]],
        )

    def end(self) -> None:
        """MLX ends the group when the process ends, so each process waits here for the others."""
        self.mx.eval(self.mx.distributed.all_sum(self.mx.ones(1)))


def member(framework: str) -> Any:
    return {"torch": Torch, "mlx": Mlx}[framework]()


def process_index() -> int:
    return int(os.environ["RANK"])
