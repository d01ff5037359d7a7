"""MLX, as :class:`natten_metal.api.framework.Framework` describes it for the shared bodies."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import mlx.core as mx

from . import _autodiff, _device, _operations, _run
from ._autodiff import Arrays
from ._backends import BACKENDS as BACKENDS
from ._backends import ORDER as ORDER
from ._device import machine as machine
from ._launch import nanobind
from ._metal.api.recall import Signature
from ._metal.api.varlen import padded_table as padded_table
from ._metal.plan.backend import DENSE
from ._metal.plan.device import Device
from ._metal.plan.plan import Plan
from ._metal.problem import checks, ragged
from ._metal.problem.ops import ADDITIONAL_KEYS
from ._metal.problem.problem import Problem
from ._tensors import spec as spec
from ._tensors import stream_of as stream_of

operations = _operations

# --- tensors -----------------------------------------------------------------------------------------


def is_tensor(value: Any) -> bool:
    return isinstance(value, mx.array)


def traits(tensor: Any) -> Any:
    return (tensor.shape, tensor.dtype) if type(tensor) is mx.array else None


def cast(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    """MLX has no autocast."""
    return tensors


# --- where and how a call runs -----------------------------------------------------------------------


def on(stream: mx.Stream) -> AbstractContextManager[Any]:
    return mx.stream(stream)


def device_of(tensor: mx.array, stream: mx.Stream) -> Device:
    return _device.device_of(stream)


def plan_on(tensor: mx.array, stream: mx.Stream, problem: Problem, backend: str) -> Plan:
    return machine().plan_on(stream, problem, backend)


def traced() -> bool:
    """MLX traces arrays, not Python code."""
    return False


def signature(face: str, backend: str, stream: mx.Stream, tensors: tuple[Any, ...], arguments: Any) -> Any:
    return machine().nanobind.signature(face, backend, stream, tensors, arguments)


def repeat(signature: Signature | None, tensors: tuple[Any, ...], stream: mx.Stream) -> Any:
    extension = machine().nanobind
    known = extension.remembered.get(signature)
    return None if known is None else nanobind.repeat(known, tensors[:3], stream, extension)


def run(
    problem: Problem, backend: str, stream: mx.Stream, tensors: tuple[Any, ...], signature: Signature | None = None
) -> tuple[mx.array, ...]:
    if ADDITIONAL_KEYS.name in problem.record.input_names and not problem.additional:
        # MLX gathers nothing from arrays without elements.
        tensors = (*tensors[:3], None, None, *tensors[5:])
    return _run.run(problem, backend, stream, tensors, signature)


# --- items of different sizes ------------------------------------------------------------------------


def require_values(face: str, name: str, *given: Any) -> None:
    """MLX itself refuses to read the numbers of an array that it traces."""


def attend(
    kind: str,
    face: str,
    problem: Problem,
    backend: str,
    stream: mx.Stream,
    table: ragged.Table,
    tensors: tuple[Any, ...],
    rpb: mx.array | None = None,
) -> tuple[Arrays, Arrays]:
    # Most programs have no items of different sizes: what runs them is imported when first needed.
    from ._plain import varlen as _plain_varlen
    from ._varlen_nodes import Ragged

    if kind == "packed" and problem.record.has_window:
        checks.varlen.packed_total(face, table, problem.rank, problem.query_shape[0])
    arrays = [array for each in tensors for array in each] + ([] if rpb is None else [rpb])
    call = Ragged(face, kind, problem, backend, stream, table)
    if kind == "listed" or backend == DENSE.name or _autodiff.seen_through():
        return _plain_varlen.attend(call, *arrays)
    return call(*arrays)


def packed_table(
    face: str, shapes: Sequence[tuple[int, ...]], lengths: tuple[Any, Any], packed: tuple[Any, ...]
) -> ragged.Table:
    return checks.varlen.packed_call(face, shapes, lengths, packed)


def kept_table(table: ragged.Table, rank: int) -> ragged.Table:
    return table
