"""Neighborhood attention over shards: several processes share one problem, each with a shard of its tokens.

A call of one process, in the order in which it happens:

1. all processes exchange what they were called with, and raise the same error if that does not fit together;
2. they start to send the keys and values of the halos (:meth:`ShardCall.post`);
3. meanwhile they compute the interior: queries that see only keys of their own shard;
4. once the halo has arrived (:meth:`ShardCall.extended`), they compute the border: all other queries.

The backward pass computes the border's gradients first, sends the halo's share of them back to its owners, and
meanwhile computes the interior's. Each part of the queries is a piece of the whole problem (``full_shape``).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..plan import backends
from ..problem import checks, faces
from ..problem.checks import shards as rules
from ..problem.ops import UNMASKED_INPUTS
from ..problem.problem import Problem, TensorSpec
from ..problem.shards import Box, Range, Shards, tokens
from . import attention
from .framework import Framework, Stream, optional_spec, specs
from .operations import Tensor, Tensors, compute_dtype

Ends = tuple[int, int]
# The tensors of a call: all of the fused op's but key_mask.
INPUTS = tuple(operand.name for operand in UNMASKED_INPUTS)
# A shard by its coordinate and the turn that it is on, on each axis.
Held = tuple[tuple[int, int], ...]
# Waits for the messages to this process and returns them by index, as flat tensors.
Arrival = Callable[[], dict[int, Tensor]]
_TEXT = 1024


class Transport(Protocol):
    """What the bodies need from a framework's own communication; all processes call each method together."""

    index: int  # of this process
    grid: tuple[int, ...]  # how many processes lie along each axis that is cut

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        """The 64-bit ints that every process passes, equally many in each."""

    def post(self, ends: Sequence[Ends], sizes: Sequence[int], outgoing: dict[int, Tensor], like: Tensor) -> Arrival:
        """Send messages without waiting for them.

        ends: source and target of each message; sizes: their elements; outgoing: those of this process, flat tensors
        with the dtype and device of ``like``.
        """

    def total(self, tensors: Tensors) -> Tensors:
        """The sums of every process's tensors."""


@dataclass(frozen=True)
class ShardCall:
    """One call on one process, after its checks."""

    fw: Framework
    face: str
    transport: Transport
    shards: Shards
    scale: float
    backend: str
    stream: Stream
    # Indices of the inputs that are the same in every process, and whose gradients are summed over all processes.
    replicated: tuple[int, ...]

    @property
    def own(self) -> Box:
        return self.shards.own(self.transport.index)

    @property
    def reach(self) -> Box:
        return self.shards.reach(self.transport.index)

    # --- the parts of the queries ------------------------------------------------------------------

    @property
    def interior(self) -> list[Box]:
        """The queries that need no halo: one box, or none."""
        found = self.shards.interior(self.transport.index)
        return [] if found is None else [found]

    @property
    def border(self) -> list[Box]:
        """All other queries, in boxes."""
        return [box for box in _boxes(self.own, self.interior) if box not in self.interior]

    def attend(self, queries: Box, tensors: Sequence[Any], keys: Box) -> Tensors:
        """Output and lse of a box of queries; key and value among ``tensors`` hold the tokens of ``keys``."""
        query, key, value, *others = tensors
        needed = self.shards.keys_of(queries)
        given = (_cut(query, queries, self.own), _cut(key, needed, keys), _cut(value, needed, keys), *others)
        full_shape, query_start = self.shards.on_longer_axes(queries)
        piece = (full_shape, query_start, self.shards.on_longer_axes(needed)[1], False)
        found: Tensors = attention.fused(
            self.fw, self.face, given, self.shards.window, self.scale, piece, True, self.backend, {}, self.stream
        )
        return found

    def joined(self, parts: dict[Box, Tensor]) -> Tensor:
        """The tensor of all queries, joined from those of the boxes."""
        xp = self.fw.operations

        def along(axes: list[int], box: Box) -> Tensor:
            if box in parts:
                return parts[box]
            axis, *rest = axes
            cut = [along(rest, _with(box, axis, each)) for each in _ranges(box, self.interior, axis)]
            return cut[0] if len(cut) == 1 else xp.concatenate(cut, 1 + axis)

        return along(list(range(len(self.own))), self.own)

    def of_queries(self, tensor: Tensor, box: Box) -> Tensor:
        """The part of a tensor of all own queries."""
        return _cut(tensor, box, self.own)

    # --- messages ----------------------------------------------------------------------------------

    def post(self, key: Tensor, value: Tensor) -> Arrival:
        """Send the keys and values that other processes need."""
        return self._post((key, value), self.own, back=False)

    def post_gradients(self, key_grad: Tensor, value_grad: Tensor) -> Arrival:
        """Return the gradients of the halo to the processes that hold it."""
        return self._post((key_grad, value_grad), self.reach, back=True)

    def _post(self, pair: Tensors, at_hand: Box, back: bool) -> Arrival:
        messages, xp, here = self.shards.messages(), self.fw.operations, self.transport.index
        ends = [(each.target, each.source) if back else (each.source, each.target) for each in messages]
        widths = sum(_width(tensor) for tensor in pair)
        outgoing = {}
        for index, message in enumerate(messages):
            if ends[index][0] == here:
                flat = [
                    _cut(tensor, message.box if back else message.at_source, at_hand).reshape(-1) for tensor in pair
                ]
                outgoing[index] = xp.concatenate(flat, 0)
        return self.transport.post(ends, [tokens(each.box) * widths for each in messages], outgoing, pair[0])

    def _parts(self, index: int, flat: Tensor, like: Tensors) -> Tensors:
        """The two tensors of a message."""
        found, begin = [], 0
        shape = tuple(high - low for low, high in self.shards.messages()[index].box)
        for tensor in like:
            size = tokens(self.shards.messages()[index].box) * _width(tensor)
            found.append(flat[begin : begin + size].reshape(tensor.shape[0], *shape, *tensor.shape[-2:]))
            begin += size
        return tuple(found)

    def extended(self, key: Tensor, value: Tensor, received: dict[int, Tensor]) -> Tensors:
        """Key and value of :attr:`reach`: the own ones with the halo around them."""
        shards, xp = self.shards, self.fw.operations
        parts = {self._held(self.transport.index, (0,) * len(self.own)): (key, value)}
        for each in shards.copies(self.transport.index):
            parts[self._held(each.source, each.turn)] = tuple(_cut(t, each.at_source, self.own) for t in (key, value))
        for index, flat in received.items():
            message = shards.messages()[index]
            parts[self._held(message.source, message.turn)] = self._parts(index, flat, (key, value))
        holders = shards.holders(self.reach)

        def along(held: Held, which: int) -> Tensor:
            if len(held) == len(holders):
                return parts[held][which]
            cut = [along((*held, at), which) for at in holders[len(held)]]
            return cut[0] if len(cut) == 1 else xp.concatenate(cut, 1 + len(held))

        return along((), 0), along((), 1)

    def _held(self, process: int, turn: tuple[int, ...]) -> Held:
        return tuple(zip(self.shards.coordinates(process), turn, strict=True))

    def own_gradients(self, extended: Tensors, interior: tuple[Any, ...], received: dict[int, Tensor]) -> Tensors:
        """Gradients of this process's key and value.

        extended: of :attr:`reach`, from the border; interior: from the interior, 0 without one; received: from others.
        """
        xp = self.fw.operations
        sums = []
        for which, tensor in enumerate(extended):
            found = xp.astype(_cut(tensor, self.own, self.reach), compute_dtype(xp, tensor))
            sums.append(found + interior[which])
        given = [
            (each, tuple(_cut(tensor, each.box, self.reach) for tensor in extended))
            for each in self.shards.copies(self.transport.index)
        ]
        for index in sorted(received):  # one order, so that results repeat to the bit
            given.append((self.shards.messages()[index], self._parts(index, received[index], extended)))
        for message, parts in given:
            where = _slices(message.at_source, self.own)
            sums = [
                xp.add_at(total, where, xp.astype(part, total.dtype)) for total, part in zip(sums, parts, strict=True)
            ]
        return tuple(xp.astype(total, tensor.dtype) for total, tensor in zip(sums, extended, strict=True))


# --- boxes -------------------------------------------------------------------------------------------


def _width(tensor: Tensor) -> int:
    """Elements of one token of a whole batch."""
    return int(tensor.shape[0] * tensor.shape[-2] * tensor.shape[-1])


def _slices(box: Box, origin: Box) -> tuple[slice, ...]:
    """``box`` in a tensor ``[B, *shape, ...]`` that holds the tokens of ``origin``."""
    inner = (slice(low - first, high - first) for (low, high), (first, _) in zip(box, origin, strict=True))
    return (slice(None), *inner)


def _cut(tensor: Tensor, box: Box, origin: Box) -> Tensor:
    return tensor if box == origin else tensor[_slices(box, origin)]


def _with(box: Box, axis: int, part: Range) -> Box:
    return (*box[:axis], part, *box[axis + 1 :])


def _ranges(box: Box, interior: list[Box], axis: int) -> list[Range]:
    """A range of ``box`` before, inside and after the interior."""
    if not interior:
        return [box[axis]]
    (low, high), (first, last) = box[axis], interior[0][axis]
    return [each for each in ((low, first), (first, last), (last, high)) if each[0] < each[1]]


def _boxes(own: Box, interior: list[Box]) -> list[Box]:
    """The interior and what is around it: strips along the first axes are as wide as the shard."""
    found, middle = [], own
    for axis in range(len(own) if interior else 0):
        found += [_with(middle, axis, each) for each in _ranges(own, interior, axis) if each != interior[0][axis]]
        middle = _with(middle, axis, interior[0][axis])
    return [*found, middle]


# --- the body ----------------------------------------------------------------------------------------


def fused(
    fw: Framework,
    face: str,
    transport: Transport,
    tensors: tuple[Any, ...],
    window: tuple[Any, ...],
    scale: Any,
    axis: Any,
    wrap: Any,
    return_lse: Any,
    backend: Any,
    upstream: dict[str, Any],
    node: Callable[[ShardCall, tuple[Any, ...]], Tensors],
    about: str = "",
    stream: Any = None,
    rpb_of_module: bool = False,
) -> Any:
    """``distributed.na{1,2,3}d``. node: runs a :class:`ShardCall` with the framework's derivatives around it.

    tensors: as in :data:`INPUTS`; about: what else the processes must agree on. rpb_of_module: do not sum rpb's
    gradient over the processes, because the caller sums those of all parameters.
    """
    failure: Exception | None = None
    call: _Arguments | None = None
    lengths: tuple[int, ...] = (0,) * 6
    try:
        backends.accept_knobs(face, upstream)
        chosen, where = fw.BACKENDS.resolve(face, backend), fw.stream_of(face, stream)
        tensors = fw.cast(tensors)
        call = _Arguments.of(fw, face, transport, tensors, window, scale, axis, wrap)
        text = f"{call}, return_lse={checks.flag(face, 'return_lse', return_lse)}{about}"
        lengths = call.lengths
    except (TypeError, ValueError, NotImplementedError) as error:
        failure, text = error, f"{type(error).__name__}: {error}"
    everyone = _agree(face, transport, failure, text, lengths)
    assert call is not None
    shards = call.cut(everyone)
    whole = call.whole(shards)
    if shards.count == 1:
        alone = shards.window, whole.scale, (*faces.WHOLE[:3], wrap), return_lse
        return attention.fused(fw, face, tensors, *alone, chosen, {}, where)
    replicated = (3, 4) if rpb_of_module else (3, 4, 5)
    out, lse = node(ShardCall(fw, face, transport, shards, whole.scale, chosen, where, replicated), tensors)
    return (out, lse) if return_lse else out


def _agree(
    face: str, transport: Transport, failure: Exception | None, text: str, lengths: Sequence[int]
) -> list[list[int]]:
    """The lengths of every process's shard; the same error in each if one failed or was called with other arguments."""
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2
    everyone = transport.gather([failure is not None, digest, *lengths])
    if any(each[0] or each[1] != everyone[0][1] for each in everyone):
        encoded = transport.gather(text.encode()[:_TEXT].ljust(_TEXT, b"\0"))
        texts = [bytes(each).rstrip(b"\0").decode(errors="ignore") for each in encoded]
        if failure is not None:
            raise failure
        for process, (failed, *_) in enumerate(everyone):
            if failed:
                rules.failed_elsewhere(face, process, texts[process])
        rules.same_call(face, texts)
    return [each[2:] for each in everyone]


@dataclass(frozen=True)
class _Arguments:
    """The arguments of one process, checked as far as they can be without those of the others."""

    face: str
    specs: tuple[Any, ...]  # of the tensors, None for those not given
    window: checks.Window
    scale: float
    axes: tuple[int, ...]
    grid: tuple[int, ...]
    wraps: tuple[bool, ...]

    @staticmethod
    def of(
        fw: Framework,
        face: str,
        transport: Transport,
        tensors: tuple[Any, ...],
        window: Any,
        scale: Any,
        axis: Any,
        wrap: Any,
    ) -> "_Arguments":
        names = INPUTS
        given = specs(fw, face, names[:3], tensors[:3])
        more = [optional_spec(fw, face, *pair) for pair in zip(names[3:], tensors[3:], strict=True)]
        rank = checks.tensor_rank(face, "query", given[0], faces.rank_of(face))
        for name, each in zip(names[:3], given, strict=True):
            checks.tensor_rank(face, name, each, rank)
        arguments = checks.window_arguments(face, rank, *window)
        factor = checks.scale_or_default(face, scale, given[0].shape[-1])
        axes = rules.cut_axes(face, axis, rank, transport.grid)
        wraps = checks.bools_per_axis(face, "wrap", wrap, rank)
        return _Arguments(face, (*given, *more), arguments, factor, axes, transport.grid, wraps)

    def __str__(self) -> str:
        shown: list[str] = []
        for name, spec in zip(INPUTS, self.specs, strict=True):
            if spec is not None:
                cut = [1 + axis for axis in self.axes] if len(shown) < 3 else []
                shape = ", ".join(":" if at in cut else str(length) for at, length in enumerate(spec.shape))
                shown.append(f"{name} ({shape}) {spec.dtype}")
        names = ("kernel_size", "stride", "dilation", "is_causal")
        shown += [f"{name}={value}" for name, value in zip(names, self.window, strict=True)]
        return ", ".join([*shown, f"scale={self.scale}", f"axis={self.axes}", f"wrap={self.wraps}"])

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of query, key and value along the axes that are cut: six numbers, 0 for a second axis that is not."""
        sizes = [[spec.shape[1 + axis] for axis in self.axes] for spec in self.specs[:3]]
        return tuple(size for each in sizes for size in (*each, 0)[:2])

    def cut(self, everyone: list[list[int]]) -> Shards:
        """The shards of all processes, whose lengths are given."""
        lengths = [[each[at : at + len(self.axes)] for at in (0, 2, 4)] for each in everyone]
        bounds: list[tuple[int, ...]] = [(0, length) for length in self.specs[0].shape[1:-2]]
        for axis, found in zip(self.axes, rules.bounds_of(self.face, self.axes, self.grid, lengths), strict=True):
            bounds[axis] = found
        wrap = tuple(axis for axis, wraps in enumerate(self.wraps) if wraps)
        return Shards(tuple(bounds), self.axes, self.window, wrap)

    def whole(self, shards: Shards) -> Problem:
        """The whole problem, or the error if it is not legal: the same in every process, as the arguments are."""

        def whole(spec: TensorSpec) -> TensorSpec:
            lengths = list(spec.shape)
            for axis in self.axes:
                lengths[1 + axis] = shards.full_shape[axis]
            return replace(spec, shape=tuple(lengths))

        query, key, value = map(whole, self.specs[:3])
        if any(self.wraps):
            checks.check_axes(self.face, shards.full_shape, *self.window[:3])
            shapes = {"query": shards.full_shape, "key": shards.full_shape}
            checks.check_wrap(self.face, self.wraps, self.window, shapes, shards.full_shape)
        return faces.fused(self.face, query, key, value, *self.window, self.scale, *self.specs[3:])
