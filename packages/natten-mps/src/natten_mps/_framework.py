"""torch, as :class:`natten_metal.api.framework.Framework` describes it for the shared bodies."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from . import _device, _operations, _run, _varlen_ops
from ._backends import BACKENDS as BACKENDS
from ._backends import ORDER as ORDER
from ._device import machine as machine
from ._metal.api import varlen
from ._metal.plan import backends
from ._metal.plan.backend import DENSE
from ._metal.plan.device import Device
from ._metal.plan.plan import Plan
from ._metal.problem import checks, ragged
from ._metal.problem.problem import Problem, TensorSpec
from ._plain import varlen as _dense_varlen
from ._private import is_fake
from ._run import traced as traced
from ._tensors import spec as spec

backends.tracing = torch.compiler.is_compiling
_PLAIN = (Tensor, torch.nn.Parameter)
Listed = tuple[list[Tensor], list[Tensor]]


operations = _operations

# --- tensors -----------------------------------------------------------------------------------------


def is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def traits(tensor: Any) -> Any:
    if type(tensor) in _PLAIN and tensor.layout == torch.strided and not tensor.is_nested:
        return tensor.shape, tensor.dtype, tensor.device
    return None


def cast(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    """Under ``torch.autocast`` every float tensor (but float64) in the autocast dtype."""
    device = next((t.device.type for t in tensors if isinstance(t, Tensor)), "cpu")
    if device == "meta" or not torch.is_autocast_enabled(device):  # autocast does not know meta
        return tensors
    dtype = torch.get_autocast_dtype(device)

    def one(tensor: Any) -> Any:
        wanted = isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(dtype) if wanted else tensor

    return tuple(one(tensor) for tensor in tensors)


# --- where and how a call runs -----------------------------------------------------------------------


def stream_of(face: str, stream: Any) -> None:
    """Torch runs on its current stream."""


def on(stream: None) -> AbstractContextManager[None]:
    return nullcontext()


def device_of(tensor: Tensor, stream: None) -> Device:
    return _device.device_of(tensor.device)


def plan_on(tensor: Tensor, stream: None, problem: Problem, backend: str) -> Plan:
    return machine().plan_on(tensor.device, problem, backend)


def signature(face: str, backend: str, stream: None, tensors: tuple[Any, ...], arguments: Any) -> None:
    """No launch is kept: torch's dispatcher takes a call to its autograd function each time."""


def repeat(signature: None, tensors: tuple[Any, ...], stream: None) -> None:
    """None is kept."""


def run(
    problem: Problem, backend: str, stream: None, tensors: tuple[Any, ...], signature: None = None
) -> tuple[Tensor, ...]:
    return _run.run(problem, backend, tensors)


# --- items of different sizes ------------------------------------------------------------------------


def _traced_values(*given: Any) -> bool:
    """Whether numbers on tensors are known only when a traced graph runs."""
    return any(isinstance(each, Tensor) for each in given) and (traced() or any(is_fake(each) for each in given))


def require_values(face: str, name: str, *given: Any) -> None:
    if _traced_values(*given):
        checks.varlen.reject_traced(face, name)


def attend(
    kind: str,
    face: str,
    problem: Problem,
    backend: str,
    stream: None,
    table: Any,
    tensors: tuple[Any, ...],
    rpb: Tensor | None = None,
) -> Listed:
    rank = len(problem.query_shape)
    call = _varlen_ops.Ragged(kind, problem.op, rank, problem.is_causal, problem.scale, backend, face)
    if backend == DENSE.name:
        if isinstance(table, Tensor):
            require_values(face, "sizes", table)
            table = _varlen_ops.read(call, table, tensors[0])
        return _dense_varlen.attend(kind, table, problem, tensors, rpb)
    if not isinstance(table, Tensor):
        table = _varlen_ops.as_tensor(table, rank)
    found = _varlen_ops.run(call, table, *(tensor for each in tensors for tensor in each), rpb)
    return list(found[: len(found) // 2]), list(found[len(found) // 2 :])


def padded_table(face: str, name: str, sizes: Any, query: TensorSpec, window: Any) -> Any:
    if not _traced_values(sizes):
        return varlen.padded_table(face, name, sizes, query, window)
    flat = [number for each in window[:3] for number in each]
    return torch.ops.natten_mps.varlen_table([sizes], face, name, query.shape[:-2], flat)


def packed_table(
    face: str, shapes: Sequence[tuple[int, ...]], lengths: tuple[Any, Any], packed: tuple[Any, ...]
) -> Any:
    by_length = any(each is not None for each in lengths)
    numbers = lengths if by_length else packed[:2]
    if not _traced_values(*numbers):
        return checks.varlen.packed_call(face, shapes, lengths, packed)
    checks.varlen.one_batch_item(face, shapes)
    names = checks.varlen.LENGTHS if by_length else checks.varlen.PACKED
    checks.varlen.together(face, names, numbers if by_length else packed)
    limits = [shapes[0][1], shapes[1][1], *(() if by_length else packed[2:])]
    kind = "lengths" if by_length else "cumulative"
    return torch.ops.natten_mps.varlen_table([torch.as_tensor(each) for each in numbers], face, kind, limits, [])


def kept_table(table: ragged.Table, rank: int) -> Tensor:
    """A tensor, which a function compiled by ``torch.compile`` can take as an argument."""
    return _varlen_ops.as_tensor(table, rank)
