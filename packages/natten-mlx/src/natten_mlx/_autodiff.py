"""The kernels' place in MLX: nodes of its graph that carry derivatives and vmap.

Each call of an op is two nodes, :class:`Forward` and :class:`Backward`: primitives of the C++ extension where it
takes the problem, ``mx.custom_function`` s otherwise. The fused ops' backward has no derivative of its own (the dense
path has); the split ops' derivatives are the two nodes again (:mod:`natten_metal.problem.bilinear`). Both run on the
stream of the call, wherever MLX transforms them. ``mx.compile(shapeless=True)`` raises: they cannot infer shapes.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NoReturn, TypeVar

import mlx.core as mx

from ._config import TIERS
from ._device import device_of
from ._launch import fast_metal, nanobind
from ._metal.api.recall import Signature
from ._metal.plan import backends
from ._metal.plan.plan import Plan, plan
from ._metal.problem import checks
from ._metal.problem.bilinear import SPLIT, Split
from ._metal.problem.mask import slot_keys
from ._metal.problem.problem import INPUTS, OUTPUTS, Problem
from ._plain import pure, pure_split
from ._tensors import MlxTables, compute_dtype

Arrays = tuple[mx.array, ...]
Axes = tuple[int | None, ...]  # of mx.vmap: which axis of each array is mapped, if any
T = TypeVar("T")
# None for an array that does not change.
Tangents = tuple[mx.array | None, ...]
_plain: ContextVar[bool] = ContextVar("plain", default=False)


@contextmanager
def as_plain_operations() -> Iterator[None]:
    """Within, and in this thread only, the pure path is no node of its own: MLX sees the operations it consists of."""
    before = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(before)


def seen_through() -> bool:
    """Whether :func:`as_plain_operations` is in force."""
    return _plain.get()


def run(
    problem: Problem, backend: str, stream: mx.Stream, inputs: Sequence[mx.array | None],
    signature: Signature | None = None,
) -> Arrays:  # fmt: skip
    """The op's outputs, differentiable once in reverse; inputs in the order of ``INPUTS[problem.op]``.

    signature: under which the C++ extension's plan is kept for calls like this one.
    """
    names = zip(INPUTS[problem.op], inputs, strict=True)
    given = {name: tensor for name, tensor in names if tensor is not None}
    node = Forward(problem, backend, stream, tuple(given))
    if backend == "auto" and stream.device == mx.cpu and (reason := nanobind.missing(stream)):
        backends.warn_of_missing_kernels("natten-mlx", problem.name, reason)
    outputs = node(tuple(given.values()))
    if signature is not None and problem.batch and node.planned().path == "nanobind":
        nanobind.remember(signature, node, given)
    return outputs


@dataclass(frozen=True)
class _Custom:
    """One call, all but its arrays. names: the inputs that are given, in order.

    Two calls are equal whatever their streams: MLX hands out a new object, with a hash of its own, each time.
    """

    problem: Problem
    backend: str
    stream: mx.Stream = field(compare=False)
    names: tuple[str, ...]

    def __call__(self, arrays: Arrays) -> Arrays:
        """The node's outputs."""
        if self.problem.batch and self.planned().path == "nanobind":
            try:
                return self.launch_primitive(arrays)
            except backends.KernelFailure as failure:
                self.accept(failure)
                return replace(self, backend="pure")(arrays)
        with mx.stream(self.stream):  # for a custom function is a node of its own, besides what it does inside
            return self.launch(arrays) if _plain.get() else self.launch_custom_function(arrays)

    def launch_custom_function(self, arrays: Arrays) -> Arrays:
        """:meth:`launch` as a node, on the current stream, that MLX transforms by the functions given here."""

        @mx.custom_function
        def function(*arrays: mx.array) -> Arrays:
            # MLX also differentiates what a custom function does inside, unless it is cut off, and drops it.
            return self.launch(tuple(map(mx.stop_gradient, arrays)))

        @function.vjp
        def vjp(primals: Arrays, cotangents: Arrays, outputs: Arrays) -> Arrays:
            return self.differentiate(primals, cotangents, outputs)

        @function.jvp
        def jvp(primals: Arrays, tangents: Tangents) -> Arrays:
            return self.tangents(primals, tangents)

        @function.vmap
        def vmap(inputs: Arrays, axes: Axes) -> tuple[Arrays, tuple[int, ...]]:
            outputs = self.map(inputs, axes)
            return outputs, (0,) * len(outputs)

        outputs: Any = function(*arrays)
        return tuple(outputs)

    def launch(self, arrays: Arrays) -> Arrays:
        """What the function computes."""
        if self.problem.batch == 0:
            return self.launch_nothing(arrays)
        planned = self.planned()
        if planned.failed is not None:
            self.accept(planned.failed)
        if planned.path == "fast_metal":
            try:
                return self.launch_metal(planned, self.not_to_be_mapped(arrays))
            except backends.KernelFailure as failure:
                self.accept(failure)
                planned = replace(self, backend="pure").planned()
        return self.launch_pure(planned, arrays)

    def accept(self, failure: backends.KernelFailure) -> None:
        """Warn that the pure path runs instead, or raise."""
        backends.accept_failure("natten-mlx", self.problem.name, self.backend, failure)

    def not_to_be_mapped(self, arrays: Arrays) -> Arrays:
        """The same arrays; vmap over them raises.

        MLX also maps what a custom function does inside, whatever the function's own vmap, and would stop at the
        kernel without a word of help. Another path cannot be taken in its place: while MLX traces, arrays under
        mx.vmap look as they do under mx.compile, and once it maps, the kernel is already part of the graph.
        """

        @mx.custom_function
        def same(*arrays: mx.array) -> Arrays:
            return arrays

        @same.vmap
        def vmap(inputs: Arrays, axes: Axes) -> NoReturn:
            checks.reject_vmap(self.problem.name)

        outputs: Any = same(*arrays)
        return tuple(outputs)

    def planned(self) -> Plan:
        """The call's plan."""
        return plan(self.problem, device_of(self.stream), self.backend, TIERS)

    def launch_nothing(self, arrays: Arrays) -> Arrays:
        """:meth:`launch` of a batch of none."""
        raise NotImplementedError

    def launch_primitive(self, arrays: Arrays) -> Arrays:
        """The outputs of the C++ extension's primitive; KernelFailure if its Metal kernels do not run here."""
        raise NotImplementedError

    def launch_metal(self, planned: Plan, arrays: Arrays) -> Arrays:
        """:meth:`launch` through the Metal kernels; KernelFailure if they do not run here."""
        raise NotImplementedError

    def launch_pure(self, planned: Plan, arrays: Arrays) -> Arrays:
        """:meth:`launch` in MLX's own operations."""
        raise NotImplementedError

    def differentiate(self, primals: Arrays, cotangents: Arrays, outputs: Arrays) -> Arrays:
        """Gradients of ``primals``."""
        raise NotImplementedError

    def tangents(self, primals: Arrays, tangents: Tangents) -> Arrays:
        """Tangents of the outputs."""
        raise NotImplementedError

    def told(self) -> bytes:
        """The call in bytes, all but its stream: what a primitive of the C++ extension keeps of it."""
        return pickle.dumps((type(self), self.problem, self.backend, self.names))

    def split_op(self) -> Split:
        """A split op's two nodes, as functions that are differentiable in turn."""
        problem, names = self.problem, INPUTS[self.problem.op]

        def node(kind: type[_Custom], bias: mx.array | None) -> _Custom:
            given = tuple(name for name in names if name != "rpb" or bias is not None)
            return kind(replace(problem, has_rpb=bias is not None), self.backend, self.stream, given)

        def op(x: mx.array, y: mx.array, bias: mx.array | None) -> mx.array:
            (found,) = node(Forward, bias)((x, y) if bias is None else (x, y, bias))
            if problem.op == "av" or not any(problem.is_causal):
                return found
            held = slot_keys(problem, MlxTables())[1].reshape(1, *problem.query_shape, 1, problem.slots)
            return mx.where(held, found, mx.zeros((), found.dtype))

        def gradients(grad: mx.array, x: mx.array, y: mx.array, bias: mx.array | None) -> Arrays:
            return node(Backward, bias)((grad, x, y, *(() if bias is None else (bias,)), grad))

        return Split(op, gradients, mx.zeros_like)

    def shares_batch(self, places_mapped: set[int]) -> bool:
        """Whether mapped problems can be one problem with a larger batch."""
        raise NotImplementedError

    def map(self, arrays: Arrays, axes: Axes) -> Arrays:
        """The outputs for every index of the mapped axes (None: not mapped), stacked first."""
        with mx.stream(self.stream):
            return self.map_here(arrays, axes)

    def map_here(self, arrays: Arrays, axes: Axes) -> Arrays:
        """:meth:`map` on the current stream."""
        size = mapped_size(arrays, axes)
        if not self.shares_batch({place for place, axis in enumerate(axes) if axis is not None}):
            return map_each(self, arrays, axes)
        batch = self.problem.batch
        larger = replace(self, problem=replace(self.problem, batch=size * batch))
        folded = [
            a if self.is_bias(place) else _fold(a, axis, size)
            for place, (a, axis) in enumerate(zip(arrays, axes, strict=True))
        ]
        return tuple(result.reshape(size, batch, *result.shape[1:]) for result in larger(tuple(folded)))

    def is_bias(self, place: int) -> bool:
        """Whether the array at ``place`` is the bias table, which has no batch."""
        raise NotImplementedError


# --- what the C++ primitives ask for: the call in bytes, and on which stream it is now -------------------


@lru_cache(maxsize=1024)
def _read(told: bytes) -> Any:
    return pickle.loads(told)


def _call(told: bytes, stream: mx.Stream) -> _Custom:
    kind, problem, backend, names = _read(told)
    call: _Custom = kind(problem, backend, stream, names)
    return call


def primitive_vjp(told: bytes, stream: mx.Stream, primals: Any, cotangents: Any, outputs: Any) -> Arrays:
    """:meth:`_Custom.differentiate`."""
    return _call(told, stream).differentiate(primals, cotangents, outputs)


def primitive_vmap(told: bytes, stream: mx.Stream, arrays: Any, axes: Sequence[int]) -> Arrays:
    """:meth:`_Custom.map`; -1 for axes that are not mapped."""
    return _call(told, stream).map(tuple(arrays), tuple(None if axis < 0 else axis for axis in axes))


def primitive_jvp(told: bytes, stream: mx.Stream, primals: Any, tangents: Any, places: Sequence[int]) -> Arrays:
    """:meth:`_Custom.tangents`; given are those of the arrays at ``places``."""
    given = dict(zip(places, tangents, strict=True))
    return _call(told, stream).tangents(tuple(primals), tuple(given.get(place) for place in range(len(primals))))


def mapped_size(arrays: Arrays, axes: Axes) -> int:
    """The length of the mapped axes."""
    return next(array.shape[axis] for array, axis in zip(arrays, axes, strict=True) if axis is not None)


def map_each(one: Callable[[Arrays], Arrays], arrays: Arrays, axes: Axes) -> Arrays:
    """The outputs of one problem after another, stacked first."""
    moved = [array if axis is None else mx.moveaxis(array, axis, 0) for array, axis in zip(arrays, axes, strict=True)]

    def at(index: int) -> Arrays:
        return one(tuple(a if axis is None else a[index] for a, axis in zip(moved, axes, strict=True)))

    size = mapped_size(arrays, axes)
    if size == 0:  # shapes alone, of a problem that is never evaluated
        moved = [
            a if axis is None else mx.zeros((1, *a.shape[1:]), a.dtype) for a, axis in zip(moved, axes, strict=True)
        ]
        return tuple(mx.zeros((0, *each.shape), each.dtype) for each in at(0))
    return tuple(mx.stack(list(part)) for part in zip(*map(at, range(size)), strict=True))


def _fold(array: mx.array, axis: int | None, size: int) -> mx.array:
    """The mapped axis, or ``size`` repetitions, folded into the batch."""
    mapped = mx.broadcast_to(array, (size, *array.shape)) if axis is None else mx.moveaxis(array, axis, 0)
    return mapped.reshape(size * mapped.shape[1], *mapped.shape[2:])


class Forward(_Custom):
    """``Forward(...)(inputs)`` -> the op's outputs; differentiable once, in reverse."""

    def launch_nothing(self, arrays: Arrays) -> Arrays:
        return _empty_outputs(self.problem, arrays[-1] if self.problem.op == "av" else arrays[0])

    def launch_primitive(self, arrays: Arrays) -> Arrays:
        return tuple(nanobind.forward(self, dict(zip(self.names, arrays, strict=True))))

    def launch_metal(self, planned: Plan, arrays: Arrays) -> Arrays:
        return fast_metal.forward(planned, dict(zip(self.names, arrays, strict=True)))

    def launch_pure(self, planned: Plan, arrays: Arrays) -> Arrays:
        problem, named = self.problem, dict(zip(self.names, arrays, strict=True))
        if problem.op == "qk":
            return (pure_split.qk(planned, **named),)
        if problem.op == "av":
            return (pure_split.av(planned, **named),)
        return pure.forward(planned, **named)

    def differentiate(self, primals: Arrays, cotangents: Arrays, outputs: Arrays) -> Arrays:
        backward = Backward(self.problem, self.backend, self.stream, self.names)
        # A split op's gradients do not read its output.
        return backward((*cotangents, *primals, *(cotangents if self.problem.op in SPLIT else outputs)))

    def tangents(self, primals: Arrays, tangents: Tangents) -> Arrays:
        if self.problem.op not in SPLIT:
            checks.reject_forward_mode(self.problem.name)
        with mx.stream(self.stream):
            return (self.split_op().tangent(primals, tangents),)

    def is_bias(self, place: int) -> bool:
        return self.names[place] == "rpb"

    def shares_batch(self, places_mapped: set[int]) -> bool:
        return not any(self.is_bias(place) for place in places_mapped)


class Backward(_Custom):
    """``Backward(...)((*cotangents, *inputs, *outputs))`` -> gradients of the inputs that are given."""

    def split(self, arrays: tuple[T, ...]) -> tuple[tuple[T, ...], tuple[T, ...], tuple[T, ...]]:
        """Cotangents, inputs and outputs out of the flat arguments. A split op's primitive knows no outputs."""
        count = OUTPUTS[self.problem.op]
        inputs = count + len(self.names)
        return arrays[:count], arrays[count:inputs], arrays[inputs:]

    def launch_nothing(self, arrays: Arrays) -> Arrays:
        return tuple(mx.zeros_like(tensor) for tensor in self.split(arrays)[1])

    def launch_primitive(self, arrays: Arrays) -> Arrays:
        grads, inputs, outputs = self.split(arrays)
        return tuple(nanobind.backward(self, grads, dict(zip(self.names, inputs, strict=True)), outputs))

    def launch_metal(self, planned: Plan, arrays: Arrays) -> Arrays:
        grads, inputs, outputs = self.split(arrays)
        return fast_metal.backward(planned, grads, dict(zip(self.names, inputs, strict=True)), outputs)

    def launch_pure(self, planned: Plan, arrays: Arrays) -> Arrays:
        problem = self.problem
        grads, inputs, outputs = self.split(arrays)
        given = dict(zip(self.names, inputs, strict=True))
        tensors: list[Any] = [given.get(name) for name in INPUTS[problem.op]]
        found: tuple[mx.array | None, ...]
        if problem.op == "qk":
            found = pure_split.qk_backward(planned, *grads, *tensors)
        elif problem.op == "av":
            found = pure_split.av_backward(planned, *grads, *tensors)
        else:
            tensors += [None] * (len(INPUTS["na"]) - len(tensors))
            found = pure.backward(planned, *grads, *tensors, *outputs)
        return tuple(gradient for gradient in found if gradient is not None)

    def differentiate(self, primals: Arrays, cotangents: Arrays, outputs: Arrays) -> Arrays:
        if self.problem.op not in SPLIT:
            checks.reject_second_derivative(self.problem.name)
        (grad,), inputs, rest = self.split(primals)
        with mx.stream(self.stream):
            found = self.split_op().gradients_of_gradients(grad, inputs, cotangents)
            # On the bias, and on the output that is not read, nothing depends.
            return (*found, *map(mx.zeros_like, (*inputs[2:], *rest)))

    def tangents(self, primals: Arrays, tangents: Tangents) -> Arrays:
        if self.problem.op not in SPLIT:
            checks.reject_forward_mode(self.problem.name)
        (grad,), inputs, _ = self.split(primals)
        (of_grad,), of_inputs, _ = self.split(tangents)
        with mx.stream(self.stream):
            return tuple(self.split_op().tangents_of_gradients(grad, inputs, of_grad, of_inputs))

    def is_bias(self, place: int) -> bool:
        place -= OUTPUTS[self.problem.op]
        return 0 <= place < len(self.names) and self.names[place] == "rpb"

    def shares_batch(self, places_mapped: set[int]) -> bool:
        # The bias's gradient sums over the batch.
        return "rpb" not in self.names


def _empty_outputs(problem: Problem, like: mx.array) -> Arrays:
    """The outputs of a batch of none."""
    lead = (0, *problem.query_shape, problem.heads)
    if problem.op == "qk":
        return (mx.zeros((*lead, problem.slots), like.dtype),)
    out = mx.zeros((*lead, problem.head_dim_v), like.dtype)
    return (out,) if problem.op == "av" else (out, mx.zeros(lead, compute_dtype(like)))
