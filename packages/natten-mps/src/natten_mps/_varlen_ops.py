"""Items of different sizes as one custom op, forward and backward: one launch per kind of item.

``natten_mps::varlen_forward`` takes queries, keys and values (one tensor each, or lists), rpb or None, and the
table of :mod:`._metal.problem.ragged` as a tensor on the CPU, which it reads when it runs: torch.compile need not
know the sizes. ``natten_mps::varlen_table`` makes the table from tensors that have values only then.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _operations
from ._autodiff import BATCHED, DIFFERENTIATED, Backward, Forward
from ._call import Call, plan_of
from ._items import blank_outputs, put, take, targets
from ._kernels import run_backward, run_forward
from ._metal.api.operations import compute_dtype
from ._metal.problem import checks, ragged
from ._metal.problem.checks import reject_batched
from ._metal.problem.ops import OPS, Op
from ._metal.problem.ragged import KEYS, QUERIES
from ._private import below_autograd, speed_up_registration
from ._recording import recording

# Queries, keys, values, rpb.
Parts = tuple[list[Tensor], list[Tensor], list[Tensor], Tensor | None]


class Ragged(NamedTuple):
    """The ops' static arguments. op: the op of each item; name: the face, for messages."""

    kind: str
    op: str
    rank: int
    is_causal: tuple[bool, ...]
    scale: float
    backend: str
    name: str

    @property
    def record(self) -> Op:
        """The record of the op that each item is a problem of."""
        return OPS[self.op]

    def of(self, group: ragged.Group) -> Call:
        """The call of one launch."""
        window = (group.kernel_size, group.stride, group.dilation)
        if not self.record.has_window:
            window = ((), (1,), (1,))
        return Call(self.op, *window, self.is_causal, self.scale, self.backend)


def groups_of(call: Ragged, table: ragged.Table, device: torch.device) -> tuple[ragged.Group, ...]:
    """The launches of a call on ``device``."""
    return ragged.groups(table, call.rank, call.kind, ragged.TOGETHER if device.type == "cpu" else None)


def read(call: Ragged, table: Tensor, queries: list[Tensor]) -> ragged.Table:
    """The table's numbers. A table that was made without the packed tensors is checked against them now."""
    rows = tuple(map(tuple, table.tolist()))
    if call.kind == "packed" and call.record.has_window:
        checks.varlen.packed_total(call.name, rows, call.rank, queries[0].shape[1])
    return rows


def _inputs(inputs: list[Any]) -> Parts:
    """Queries, keys, values and rpb from the op's list. Done once per call: the cost grows with the number of items."""
    count = (len(inputs) - 1) // 3
    return inputs[:count], inputs[count : 2 * count], inputs[2 * count : -1], inputs[-1]


def _given(call: Ragged, group: ragged.Group, parts: Parts) -> list[Any]:
    """The inputs of one launch."""
    queries, keys, values, rpb = parts
    own: list[Any] = [take(call.kind, queries, group, QUERIES)]
    own += [take(call.kind, each, group, KEYS) for each in (keys, values)]
    return [*own, None, None, rpb][: len(call.record.inputs)]


def _run_forward(call: Ragged, table: Tensor, inputs: list[Any]) -> list[Tensor]:
    parts = _inputs(inputs)
    queries, _, values, _ = parts
    outs, lses = blank_outputs(queries, values)
    for group in groups_of(call, read(call, table, queries), queries[0].device):
        into = targets(call.kind, group, (outs, QUERIES), (lses, QUERIES))
        given = _given(call, group, parts)
        found = run_forward(plan_of(call.of(group), given), given, into)
        _put_all(call, group, into, found, (outs, QUERIES), (lses, QUERIES))
    return outs + lses


def _put_all(
    call: Ragged, group: ragged.Group, into: list[Tensor] | None, found: list[Tensor], *made: tuple[list[Tensor], int]
) -> None:
    """Copy the results of a launch to where they belong, unless it wrote them there itself."""
    for index, (tensors, side) in enumerate(made):
        if into is None or found[index] is not into[index]:
            put(call.kind, tensors, group, side, found[index])


def _run_backward(
    call: Ragged, table: Tensor, grads: list[Any], inputs: list[Any], outputs: list[Tensor]
) -> list[Tensor]:
    queries, keys, values, rpb = _inputs(inputs)
    made = [
        [torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in each]
        for each in (queries, keys, values)
    ]
    grads = [torch.zeros_like(like) if grad is None else grad for grad, like in zip(grads, outputs, strict=True)]
    # Summed over the launches in the dtype of sums, and rounded once.
    own_rpb = None if rpb is None else rpb.to(compute_dtype(_operations, rpb))
    total = None if own_rpb is None else torch.zeros_like(own_rpb)
    half = len(outputs) // 2
    for group in groups_of(call, read(call, table, queries), queries[0].device):
        given = _given(call, group, (queries, keys, values, own_rpb))
        out_grad, lse_grad, out, lse = (
            take(call.kind, each, group, QUERIES)
            for each in (grads[:half], grads[half:], outputs[:half], outputs[half:])
        )
        sided = list(zip(made, (QUERIES, KEYS, KEYS), strict=True))
        into = targets(call.kind, group, *sided)
        found = run_backward(plan_of(call.of(group), given), [out_grad, lse_grad], given, [out, lse], into)
        _put_all(call, group, into, found, *sided)
        if total is not None:
            total += found[3]
    flat = [tensor for tensors in made for tensor in tensors]
    return flat if rpb is None or total is None else [*flat, total.to(rpb.dtype)]


def _fake_forward(inputs: list[Any]) -> list[Tensor]:
    queries, _, values, _ = _inputs(inputs)
    outs = [q.new_empty((*q.shape[:-1], v.shape[-1])) for q, v in zip(queries, values, strict=True)]
    return outs + [q.new_empty(q.shape[:-1], dtype=compute_dtype(_operations, q)) for q in queries]


def _fake_backward(inputs: list[Any]) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in inputs if tensor is not None]


def _make_table(numbers: list[Tensor], face: str, kind: str, limits: list[int], window: list[int]) -> Tensor:
    """The table from numbers that are read now. kind: what they are, or the name of the sizes of a padded batch."""
    values = [checks.varlen.as_numbers(face, kind, each) for each in numbers]
    if kind in ("lengths", "cumulative"):
        given = (tuple(values), (None,) * 4) if kind == "lengths" else ((None, None), (*values, *limits[2:]))
        return as_tensor(checks.varlen.packed_table(face, (limits[0], limits[1]), *given))
    rank = len(limits) - 1
    ks, s, d = (tuple(window[rank * part : rank * (part + 1)]) for part in range(3))
    rows = checks.varlen.padded_table(face, kind, values[0], limits[0], tuple(limits[1:]), (ks, s, d, (False,) * rank))
    return as_tensor(rows, rank)


def as_tensor(table: ragged.Table, rank: int = 1) -> Tensor:
    """A table as the ops take it."""
    numbers = [number for row in table for number in row]
    return torch.tensor(numbers, dtype=torch.int64, device="cpu").view(-1, ragged.columns(rank))


_LIBRARY = torch.library.Library("natten_mps", "FRAGMENT")
_STATIC = "str kind, str op, int rank, bool[] is_causal, float scale, str backend, str name"


def _call(kind: str, op: str, rank: int, is_causal: Any, *rest: Any) -> Ragged:
    return Ragged(kind, op, rank, tuple(is_causal), *rest)


class VarlenForward(Forward):
    """``apply(call, table, *inputs)`` -> outs and lses."""

    @staticmethod
    def forward(call: Ragged, table: Tensor, *inputs: Tensor | None) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(below_autograd(_forward_op, call, table, list(inputs)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        inputs = saved[1 : len(saved) - len(grads)]
        if all(grad is None for grad in grads):
            return (None,) * (2 + len(inputs))
        found = iter(VarlenBackward.apply(ctx.call, len(grads), *grads, *saved))
        return (None, None, *(None if tensor is None else next(found) for tensor in inputs))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: Ragged, table: Tensor, *inputs: Tensor | None) -> Any:  # type: ignore[override]
        return _mapped(lambda own: _forward_op(call, table, own), info.batch_size, in_dims[2:], inputs)


class VarlenBackward(Backward):
    """``apply(call, outputs, *grads, table, *inputs, *outs and lses)`` -> gradients of the inputs that are given."""

    @staticmethod
    def forward(call: Ragged, outputs: int, *tensors: Tensor | None) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(below_autograd(_backward_op, call, outputs, list(tensors)))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: Ragged, outputs: int, *tensors: Tensor | None) -> Any:  # type: ignore[override]
        return _mapped(lambda own: _backward_op(call, outputs, own), info.batch_size, in_dims[2:], tensors)


def _mapped(launch: Any, size: int, dims: tuple[Any, ...], tensors: tuple[Any, ...]) -> tuple[Any, Any]:
    """One mapped problem after another, because each may have its own rpb."""
    moved = [t if d is None else t.movedim(d, 0) for t, d in zip(tensors, dims, strict=True)]
    if size == 0:  # no problem to run: take the shapes from one of zeros
        own = [t if d is None else t.new_zeros(t.shape[1:]) for t, d in zip(moved, dims, strict=True)]
        stacked = tuple(part.new_zeros((0, *part.shape)) for part in launch(own))
        return stacked, (0,) * len(stacked)
    parts = [launch([t if d is None else t[i] for t, d in zip(moved, dims, strict=True)]) for i in range(size)]
    stacked = tuple(torch.stack(part) for part in zip(*parts, strict=True))
    return stacked, (0,) * len(stacked)


def _forward_op(call: Ragged, table: Tensor, inputs: list[Any]) -> list[Tensor]:
    found: list[Tensor] = torch.ops.natten_mps.varlen_forward.default(inputs, table, *call)
    return found


def _backward_op(call: Ragged, outputs: int, tensors: list[Any]) -> list[Tensor]:
    grads, table, rest = tensors[:outputs], tensors[outputs], tensors[outputs + 1 :]
    found: list[Tensor] = torch.ops.natten_mps.varlen_backward.default(
        grads, table, rest[: len(rest) - outputs], rest[len(rest) - outputs :], *call
    )
    return found


def run(call: Ragged, table: Tensor, *inputs: Tensor | None) -> tuple[Tensor, ...]:
    """Outs and lses, differentiable once in reverse. inputs: queries, keys, values, and rpb or None."""
    if recording(call.name):
        return tuple(_forward_op(call, table, list(inputs)))
    results: tuple[Tensor, ...] = VarlenForward.apply(call, table, *inputs)
    return results


def _register() -> None:
    define, implement = _LIBRARY.define, _LIBRARY.impl
    define("varlen_table(Tensor[] numbers, str face, str kind, SymInt[] limits, int[] window) -> Tensor")
    define(f"varlen_forward(Tensor?[] inputs, Tensor table, {_STATIC}) -> Tensor[]")
    define(f"varlen_backward(Tensor?[] grads, Tensor table, Tensor?[] inputs, Tensor[] outputs, {_STATIC}) -> Tensor[]")
    eager = "CompositeExplicitAutograd"
    implement("varlen_table", _make_table, eager)
    implement("varlen_forward", lambda i, t, *a: _run_forward(_call(*a), t, i), eager)
    implement("varlen_backward", lambda g, t, i, o, *a: _run_backward(_call(*a), t, g, i, o), eager)
    implement("varlen_forward", lambda i, t, *a: reject_batched(_call(*a).name), BATCHED)
    implement("varlen_backward", lambda g, t, i, o, *a: reject_batched(_call(*a).name), BATCHED)
    for key in DIFFERENTIATED:
        implement("varlen_forward", lambda i, t, *a: list(VarlenForward.apply(_call(*a), t, *i)), key)
        implement(
            "varlen_backward",
            lambda g, t, i, o, *a: list(VarlenBackward.apply(_call(*a), len(g), *g, t, *i, *o)),
            key,
        )

    def fake_table(numbers: Any, face: str, kind: str, limits: Any, window: Any) -> Tensor:
        rank = 1 if kind in ("lengths", "cumulative") else len(limits) - 1
        return torch.empty((numbers[0].shape[0] - (kind == "cumulative"), ragged.columns(rank)), dtype=torch.int64)

    speed_up_registration(__name__)
    torch.library.register_fake("natten_mps::varlen_table", fake_table, lib=_LIBRARY)
    torch.library.register_fake("natten_mps::varlen_forward", lambda i, *_: _fake_forward(i), lib=_LIBRARY)
    torch.library.register_fake("natten_mps::varlen_backward", lambda g, t, i, *_: _fake_backward(i), lib=_LIBRARY)


_register()
