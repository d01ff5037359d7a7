"""Neighborhood attention on several processes, each with a shard of the tokens, over ``mx.distributed``.

    mx.distributed.init()                               # in programs that mlx.launch has started
    out = natten_mlx.distributed.na2d(query, key, value, kernel_size=7, axis=0)   # shards of rows

Every process calls with its own shard; shards need not be equally long. The result is the shard of the whole problem's,
and so are the gradients. Only halos are sent: the keys and values of other shards that :func:`natten_mlx.key_range`
says are needed, however many processes hold them, and their gradients on the way back.
"""

from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from . import _framework, _shards
from ._metal.api import modules as module_bodies
from ._metal.api import shards as bodies
from ._processes import Processes
from ._signatures import Bools, Ints, Result
from ._tensors import StreamOrDevice

__all__ = ["na1d", "na2d", "na3d", "share_attention", "sum_gradients"]

TIMEOUT = 1800.0  # seconds, as long as torch.distributed waits


def na1d(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    kernel_size: Ints,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Bools = False,
    scale: float | None = None,
    *,
    additional_keys: mx.array | None = None,
    additional_values: mx.array | None = None,
    rpb: mx.array | None = None,
    group: Any = None,
    axis: Ints = 0,
    wrap: Bools = False,
    grid: Ints | None = None,
    timeout: float = TIMEOUT,
    return_lse: bool = False,
    backend: str | None = None,
    stream: StreamOrDevice = None,
    **upstream: Any,
) -> Result:
    """:func:`natten_mlx.na1d` of a sequence that several processes share.

    Every process of the group makes the same call at the same time, and takes part in the backward pass as well. The
    call evaluates its own keys to send them, and is lazy otherwise; ``mx.compile`` and ``mx.vmap`` cannot contain it.

    Args:
        query: ``[B, own length, H, D]``, the shard of this process; shards lie in the order of the processes.
        key, value: ``[B, own length, H_kv, D]`` and ``[B, own length, H_kv, D_v]``, the same tokens.
        kernel_size, stride, dilation, is_causal, scale, wrap: of the whole problem, as in :func:`natten_mlx.na1d`.
        additional_keys, additional_values, rpb: as there, the same in every process; each gets the whole gradient, the
            sum over the processes.
        group: a group of ``mx.distributed``; None: all processes.
        axis: the axis that is cut, or two of them.
        grid: for two axes, how many processes lie along each; process ``i * grid[1] + j`` has the coordinates (i, j).
        timeout: seconds to wait for the other processes to make the same call, before this one ends with a message.
        return_lse, backend, stream, **upstream: as in :func:`natten_mlx.na1d`.

    Returns:
        Output ``[B, own length, H, D_v]``; with ``return_lse`` also lse ``[B, own length, H]``.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`natten_mlx.na1d`, and ValueError for shards that do not
            fit together or calls that differ. What one process rejects, every process raises.
        RuntimeError: by MLX, at evaluation, in every process that waits for one that has died.

    Source: our own; the exchange of halos is that of domain decomposition.
    """
    tensors = (query, key, value, additional_keys, additional_values, rpb)
    window = (kernel_size, stride, dilation, is_causal)
    return _shared(
        "na1d", tensors, window, scale, (group, grid, timeout), axis, wrap, return_lse, backend, upstream, stream
    )


def na2d(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    kernel_size: Ints,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Bools = False,
    scale: float | None = None,
    *,
    additional_keys: mx.array | None = None,
    additional_values: mx.array | None = None,
    rpb: mx.array | None = None,
    group: Any = None,
    axis: Ints = 0,
    wrap: Bools = False,
    grid: Ints | None = None,
    timeout: float = TIMEOUT,
    return_lse: bool = False,
    backend: str | None = None,
    stream: StreamOrDevice = None,
    **upstream: Any,
) -> Result:
    """:func:`natten_mlx.na2d` of images that several processes share: :func:`na1d` of rank 2.

    Args:
        query: ``[B, X, Y, H, D]``, the shard of this process: whole along the axes that are not cut.
        key, value: the same tokens, with ``H_kv`` heads.
        kernel_size, stride, dilation, is_causal, scale, wrap, additional_keys, additional_values, rpb, return_lse,
            backend, stream, **upstream: as in :func:`natten_mlx.na2d`.
        group, axis, grid, timeout: as in :func:`na1d`.

    Returns:
        Output ``[B, X, Y, H, D_v]``; with ``return_lse`` also lse ``[B, X, Y, H]``.

    Raises:
        TypeError, ValueError, NotImplementedError, RuntimeError: as :func:`na1d`.

    Source: our own; the exchange of halos is that of domain decomposition.
    """
    tensors = (query, key, value, additional_keys, additional_values, rpb)
    window = (kernel_size, stride, dilation, is_causal)
    return _shared(
        "na2d", tensors, window, scale, (group, grid, timeout), axis, wrap, return_lse, backend, upstream, stream
    )


def na3d(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    kernel_size: Ints,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Bools = False,
    scale: float | None = None,
    *,
    additional_keys: mx.array | None = None,
    additional_values: mx.array | None = None,
    rpb: mx.array | None = None,
    group: Any = None,
    axis: Ints = 0,
    wrap: Bools = False,
    grid: Ints | None = None,
    timeout: float = TIMEOUT,
    return_lse: bool = False,
    backend: str | None = None,
    stream: StreamOrDevice = None,
    **upstream: Any,
) -> Result:
    """:func:`natten_mlx.na3d` of volumes that several processes share: :func:`na1d` of rank 3.

    Args:
        query: ``[B, X, Y, Z, H, D]``, the shard of this process: whole along the axes that are not cut.
        key, value: the same tokens, with ``H_kv`` heads.
        kernel_size, stride, dilation, is_causal, scale, wrap, additional_keys, additional_values, rpb, return_lse,
            backend, stream, **upstream: as in :func:`natten_mlx.na3d`.
        group, axis, grid, timeout: as in :func:`na1d`.

    Returns:
        Output ``[B, X, Y, Z, H, D_v]``; with ``return_lse`` also lse ``[B, X, Y, Z, H]``.

    Raises:
        TypeError, ValueError, NotImplementedError, RuntimeError: as :func:`na1d`.

    Source: our own; the exchange of halos is that of domain decomposition.
    """
    tensors = (query, key, value, additional_keys, additional_values, rpb)
    window = (kernel_size, stride, dilation, is_causal)
    return _shared(
        "na3d", tensors, window, scale, (group, grid, timeout), axis, wrap, return_lse, backend, upstream, stream
    )


def _shared(
    face: str,
    tensors: tuple[Any, ...],
    window: tuple[Any, ...],
    scale: Any,
    processes: tuple[Any, ...],
    axis: Any,
    wrap: Any,
    return_lse: Any,
    backend: Any,
    upstream: dict[str, Any],
    stream: Any = None,
    rpb_of_module: bool = False,
) -> Any:
    given = (tensors, window, scale, axis, wrap, return_lse, backend, upstream)
    return bodies.fused(
        _framework, face, Processes(face, *processes), *given, _shards.run, stream=stream, rpb_of_module=rpb_of_module
    )


def share_attention(
    module: nn.Module, group: Any = None, axis: Ints = 0, grid: Ints | None = None, timeout: float = TIMEOUT
) -> nn.Module:
    """Let the neighborhood attention of ``module``, and of the modules in it, work on the shard of its process.

    Args:
        module: any module; its :class:`natten_mlx.NeighborhoodAttention1D` (2D, 3D) are changed in place, and attend
            across processes from now on. Layers that work token by token need no change.
        group, axis, grid, timeout: as in :func:`na1d`; axis counts from the first axis of tokens.

    Returns:
        ``module``.

    Gradients of parameters, rpb included, are those of the process's own shard: see :func:`sum_gradients`.
    """
    each: Any
    for each in module.modules():
        if isinstance(each, module_bodies.NeighborhoodAttention):
            each.shared = partial(_attend_module, (group, grid, timeout), axis)
    return module


def _attend_module(
    processes: Any, axis: Any, face: str, tensors: Any, window: Any, scale: Any, wrap: Any, backend: Any
) -> Any:
    return _shared(face, tensors, window, scale, processes, axis, wrap, False, backend, {}, rpb_of_module=True)


def sum_gradients(gradients: Any, group: Any = None) -> Any:
    """The sums of the gradients of parameters over the processes: those of the whole problem.

    For a loss that is a sum over tokens, of which each process adds up those of its shard (divided by the tokens of the
    whole problem, for a mean).

    Args:
        gradients: a tree, as ``nn.value_and_grad`` returns it.
        group: as in :func:`na1d`.

    Returns:
        A tree of the same structure.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`na1d`.
    """
    named: Any = tree_flatten(gradients)
    sums = Processes("sum_gradients", group, None, TIMEOUT).total(tuple(each for _, each in named))
    return tree_unflatten(list(zip((name for name, _ in named), sums, strict=True)))
