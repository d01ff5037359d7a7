"""Processes of ``torch.distributed``, as :class:`natten_metal.api.shards.Transport` describes them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from ._metal.problem.checks import shards as rules

_HOW = "call torch.distributed.init_process_group first"
_Group = Any  # torch.distributed.ProcessGroup; its stub is incomplete


class Processes:
    """A process group, or a DeviceMesh whose dimensions are the axes that are cut.

    Messages go straight to their targets. A process that dies is a RuntimeError in every process that waits for it,
    from torch.distributed, and so is one that does not answer within the group's ``timeout``.
    """

    def __init__(self, face: str, group: Any) -> None:
        if not dist.is_available() or not dist.is_initialized():
            rules.no_group(face, _HOW)
        self.groups: list[_Group]  # of each dimension of the grid, the one that this process belongs to
        if isinstance(group, DeviceMesh):
            ranks = group.mesh
            if group.get_coordinate() is None:
                rules.reject_grid(face, "a mesh without this process", "every calling process must be in the mesh")
            self.groups = [group.get_group(dim) for dim in range(ranks.dim())]
            self._within = self.groups[0] if ranks.dim() == 1 else None
        else:
            if group is not None and not isinstance(group, dist.ProcessGroup):
                rules.reject_group(face, group, "a ProcessGroup, a DeviceMesh or None")
            self._within = group
            ranks = torch.tensor(dist.get_process_group_ranks(group or dist.group.WORLD))
            self.groups = [group]
        self.grid = tuple(ranks.shape)
        self.ranks: list[int] = ranks.flatten().tolist()  # in the whole world
        self.index = self.ranks.index(dist.get_rank())

    def _sending_device(self, tensor: Tensor) -> torch.device:
        """Where a tensor must be to be sent: no backend of torch.distributed reads the memory of mps."""
        if "nccl" in dist.get_backend(self._within):
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu") if tensor.device.type == "mps" else tensor.device

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        here = torch.tensor([list(numbers)], dtype=torch.int64)
        here = here.to(self._sending_device(here))
        for group in reversed(self.groups):
            rows = [torch.empty_like(here) for _ in range(dist.get_world_size(group))]
            dist.all_gather(rows, here, group)
            here = torch.cat(rows)
        return list(here.tolist())

    def post(
        self, ends: Sequence[tuple[int, int]], sizes: Sequence[int], outgoing: dict[int, Tensor], like: Tensor
    ) -> Callable[[], dict[int, Tensor]]:
        device, calls = self._sending_device(like), []
        sent = {index: flat.to(device).contiguous() for index, flat in outgoing.items()}
        received: dict[int, Tensor] = {}
        for index, (source, target) in enumerate(ends):
            if source == self.index:
                calls.append(self._message(dist.isend, sent[index], target))
            elif target == self.index:
                received[index] = torch.empty(sizes[index], dtype=like.dtype, device=device)
                calls.append(self._message(dist.irecv, received[index], source))
        works = dist.batch_isend_irecv(calls) if calls else []

        def wait() -> dict[int, Tensor]:
            for work in works:
                work.wait()
            sent.clear()  # kept alive until now
            return {index: flat.to(like.device) for index, flat in received.items()}

        return wait

    def _message(self, call: Callable[..., Any], flat: Tensor, other: int) -> Any:
        return dist.P2POp(call, flat, self.ranks[other], self._within)

    def total(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        found = []
        for tensor in tensors:
            moved = tensor.to(self._sending_device(tensor), copy=True).contiguous()
            for group in self.groups:
                dist.all_reduce(moved, group=group)
            found.append(moved.to(tensor.device))
        return tuple(found)
