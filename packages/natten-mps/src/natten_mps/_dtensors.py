"""DTensors in, DTensors out: their placements say which axes are cut, and their mesh which process holds what."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._metal.problem.checks import shards as rules


def any_dtensor(tensors: tuple[Any, ...]) -> bool:
    """Whether one of them is a DTensor. Their module takes a second to import: without it, there is none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(isinstance(tensor, module.DTensor) for tensor in tensors)


def on_mesh(face: str, call: Callable[[tuple[Any, ...], Any, Any], Any], tensors: tuple[Any, ...], group: Any) -> Any:
    """``call(tensors, group, axis)`` on the shards of this process; its results with the query's placements.

    tensors: query, key and value with equal placements, each of which cuts an axis of tokens; the others replicated, or
    plain tensors. Every process has the same placements, so every process raises what is wrong with them.
    """
    from torch.distributed.tensor import DTensor, Replicate, Shard

    query = tensors[0]
    if not all(isinstance(tensor, DTensor) for tensor in tensors[:3]):
        rules.reject_placements(face, "query, key and value must all be DTensors, or none of them")
    mesh, placements = query.device_mesh, query.placements
    for tensor in tensors[1:3]:
        if tensor.device_mesh != mesh or tensor.placements != placements:
            rules.reject_placements(face, f"they must be placed alike; got {placements} and {tensor.placements}")
    rank = query.dim() - 3
    cut = [each.dim - 1 if isinstance(each, Shard) else -1 for each in placements]
    if not all(0 <= axis < rank for axis in cut):
        rules.reject_placements(face, f"each placement must shard one of the dimensions 1..{rank}; got {placements}")
    if group is not None and group != mesh:
        rules.reject_placements(face, "their mesh is the group; leave group out")
    everywhere = [Replicate()] * mesh.ndim
    if any(isinstance(each, DTensor) and list(each.placements) != everywhere for each in tensors[3:]):
        rules.reject_placements(face, "additional keys and values, and rpb, must be replicated")
    own = tuple(each.to_local() if isinstance(each, DTensor) else each for each in tensors)

    def placed(result: Tensor, *channels: int) -> Tensor:
        whole = torch.empty(*query.shape[:-1], *channels, device="meta")
        return DTensor.from_local(result, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride())

    found = call(own, mesh, tuple(cut))
    width = tensors[2].shape[-1]
    return (placed(found[0], width), placed(found[1])) if isinstance(found, tuple) else placed(found, width)
