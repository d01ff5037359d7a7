"""Neighborhood attention on several processes, each with a shard of the tokens, over ``torch.distributed``.

    dist.init_process_group("gloo", timeout=timedelta(minutes=5))
    out = natten_mps.distributed.na2d(query, key, value, kernel_size=7, axis=0)   # shards of rows

Every process calls with its own shard; shards need not be equally long. The result is the shard of the whole problem's,
and so are the gradients. Only halos are sent: the keys and values of other shards that :func:`natten_mps.key_range`
says are needed, however many processes hold them, and their gradients on the way back.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import _framework, _shards
from ._dtensors import any_dtensor, on_mesh
from ._metal.api import modules as module_bodies
from ._metal.api import shards as bodies
from ._metal.problem.checks import shards as rules
from ._processes import Processes
from ._signatures import Bools, Ints, Result

__all__ = ["na1d", "na2d", "na3d", "share_attention", "sum_gradients"]


def na1d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Ints,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Bools = False,
    scale: float | None = None,
    *,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    rpb: Tensor | None = None,
    group: Any = None,
    axis: Ints = 0,
    wrap: Bools = False,
    return_lse: bool = False,
    backend: str | None = None,
    **upstream: Any,
) -> Result:
    """:func:`natten_mps.na1d` of a sequence that several processes share.

    Every process of the group makes the same call at the same time, and takes part in the backward pass as well.
    The function runs eagerly: ``torch.compile`` breaks its graph there.

    Args:
        query: ``[B, own length, H, D]``, the shard of this process; shards lie in the order of the processes.
        key, value: ``[B, own length, H_kv, D]`` and ``[B, own length, H_kv, D_v]``, the same tokens.
        kernel_size, stride, dilation, is_causal, scale, wrap: of the whole problem, as in :func:`natten_mps.na1d`.
        additional_keys, additional_values, rpb: as there, the same in every process; each gets the whole gradient, the
            sum over the processes.
        group: a ProcessGroup, or a DeviceMesh with one dimension for each axis that is cut; None: all processes.
        axis: the axis that is cut, or two of them, one for each dimension of the mesh. Where query, key and value are
            DTensors, their mesh and placements say both, and the results are DTensors placed alike.
        return_lse, backend, **upstream: as in :func:`natten_mps.na1d`.

    Returns:
        Output ``[B, own length, H, D_v]``; with ``return_lse`` also lse ``[B, own length, H]``.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`natten_mps.na1d`, and ValueError for shards that do not
            fit together or calls that differ. What one process rejects, every process raises.
        RuntimeError: by torch.distributed, in every process that waits for one that has died, or that waits longer than
            the timeout of the group.

    Source: our own; the exchange of halos is that of domain decomposition.
    """
    tensors = (query, key, value, additional_keys, additional_values, rpb)
    window = (kernel_size, stride, dilation, is_causal)
    return _shared("na1d", tensors, window, scale, group, axis, wrap, return_lse, backend, upstream)


def na2d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Ints,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Bools = False,
    scale: float | None = None,
    *,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    rpb: Tensor | None = None,
    group: Any = None,
    axis: Ints = 0,
    wrap: Bools = False,
    return_lse: bool = False,
    backend: str | None = None,
    **upstream: Any,
) -> Result:
    """:func:`natten_mps.na2d` of images that several processes share: :func:`na1d` of rank 2.

    Args:
        query: ``[B, X, Y, H, D]``, the shard of this process: whole along the axes that are not cut.
        key, value: the same tokens, with ``H_kv`` heads.
        kernel_size, stride, dilation, is_causal, scale, wrap, additional_keys, additional_values, rpb, return_lse,
            backend, **upstream: as in :func:`natten_mps.na2d`.
        group, axis: as in :func:`na1d`.

    Returns:
        Output ``[B, X, Y, H, D_v]``; with ``return_lse`` also lse ``[B, X, Y, H]``.

    Raises:
        TypeError, ValueError, NotImplementedError, RuntimeError: as :func:`na1d`.

    Source: our own; the exchange of halos is that of domain decomposition.
    """
    tensors = (query, key, value, additional_keys, additional_values, rpb)
    window = (kernel_size, stride, dilation, is_causal)
    return _shared("na2d", tensors, window, scale, group, axis, wrap, return_lse, backend, upstream)


def na3d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Ints,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Bools = False,
    scale: float | None = None,
    *,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    rpb: Tensor | None = None,
    group: Any = None,
    axis: Ints = 0,
    wrap: Bools = False,
    return_lse: bool = False,
    backend: str | None = None,
    **upstream: Any,
) -> Result:
    """:func:`natten_mps.na3d` of volumes that several processes share: :func:`na1d` of rank 3.

    Args:
        query: ``[B, X, Y, Z, H, D]``, the shard of this process: whole along the axes that are not cut.
        key, value: the same tokens, with ``H_kv`` heads.
        kernel_size, stride, dilation, is_causal, scale, wrap, additional_keys, additional_values, rpb, return_lse,
            backend, **upstream: as in :func:`natten_mps.na3d`.
        group, axis: as in :func:`na1d`.

    Returns:
        Output ``[B, X, Y, Z, H, D_v]``; with ``return_lse`` also lse ``[B, X, Y, Z, H]``.

    Raises:
        TypeError, ValueError, NotImplementedError, RuntimeError: as :func:`na1d`.

    Source: our own; the exchange of halos is that of domain decomposition.
    """
    tensors = (query, key, value, additional_keys, additional_values, rpb)
    window = (kernel_size, stride, dilation, is_causal)
    return _shared("na3d", tensors, window, scale, group, axis, wrap, return_lse, backend, upstream)


def _shared(*asked: Any, **more: Any) -> Any:
    """A call of a face or a module; torch.compile breaks its graph here, and traces nothing of it."""
    # As a decorator, ``disable`` would import torch's compiler with this module, which takes seconds.
    if torch.compiler.is_compiling():
        return torch.compiler.disable(_in_eager)(*asked, **more)
    return _in_eager(*asked, **more)


def _in_eager(
    face: str,
    tensors: tuple[Any, ...],
    window: tuple[Any, ...],
    scale: Any,
    group: Any,
    axis: Any,
    wrap: Any,
    return_lse: Any,
    backend: Any,
    upstream: dict[str, Any],
    rpb_of_module: bool = False,
) -> Any:
    if any_dtensor(tensors):

        def call(own: tuple[Any, ...], mesh: Any, cut: Any) -> Any:
            return _in_eager(face, own, window, scale, mesh, cut, wrap, return_lse, backend, upstream, rpb_of_module)

        return on_mesh(face, call, tensors, group)
    wanted = [torch.is_grad_enabled() and isinstance(each, Tensor) and each.requires_grad for each in tensors]
    about = f", requires_grad={wanted}"  # or some would wait for gradients that others do not send
    given = (tensors, window, scale, axis, wrap, return_lse, backend, upstream)
    return bodies.fused(_framework, face, Processes(face, group), *given, _shards.run, about, None, rpb_of_module)


def share_attention(module: nn.Module, group: Any = None, axis: Ints = 0) -> nn.Module:
    """Let the neighborhood attention of ``module``, and of the modules in it, work on the shard of its process.

    Args:
        module: any module; its :class:`natten_mps.NeighborhoodAttention1D` (2D, 3D) are changed in place, and attend
            across processes from now on. Layers that work token by token need no change.
        group, axis: as in :func:`na1d`; axis counts from the first axis of tokens.

    Returns:
        ``module``.

    Gradients of parameters, rpb included, are those of the process's own shard: see :func:`sum_gradients`.
    """
    each: Any
    for each in module.modules():
        if isinstance(each, module_bodies.NeighborhoodAttention):
            each.shared = partial(_attend_module, group, axis)
    return module


def _attend_module(
    group: Any, axis: Any, face: str, tensors: Any, window: Any, scale: Any, wrap: Any, backend: Any
) -> Any:
    return _shared(face, tensors, window, scale, group, axis, wrap, False, backend, {}, rpb_of_module=True)


def sum_gradients(module: nn.Module, group: Any = None) -> None:
    """Sum the gradients of the parameters over the processes, in place: those of the whole problem.

    For a loss that is a sum over tokens, of which each process adds up those of its shard (divided by the tokens of the
    whole problem, for a mean).

    Args:
        module: the same in every process. A gradient that some processes lack, because the losses of their shards do
            not depend on the parameter, counts as zeros there; where all lack it, it stays None.
        group: as in :func:`na1d`.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`na1d`; ValueError too if the modules differ.
    """
    face, parameters = "sum_gradients", list(module.parameters())
    processes = Processes(face, group)
    rules.same_parameters(face, processes.gather([len(parameters), sum(each.numel() for each in parameters)]))
    given = processes.gather([each.grad is not None for each in parameters])
    summed = [each for each, held in zip(parameters, zip(*given, strict=True), strict=True) if any(held)]
    sums = processes.total(tuple(torch.zeros_like(each) if each.grad is None else each.grad for each in summed))
    for each, total in zip(summed, sums, strict=True):
        each.grad = total
