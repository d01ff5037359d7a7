"""The kernels as MLX sees them: nodes of its graph with derivatives and vmap.

Each call of an op is two nodes, :class:`Forward` and :class:`Backward`: primitives of the C++ extension where it
takes the problem, ``mx.custom_function`` s otherwise. The fused ops' backward has no derivative of its own (the dense
backend has); the split ops' derivatives are the two nodes again (:mod:`natten_metal.problem.bilinear`). Both run on the
stream of the call, wherever MLX transforms them. ``mx.compile(shapeless=True)`` raises: they cannot infer shapes.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

import mlx.core as mx

from ._device import machine
from ._launch import nanobind
from ._launch.extension import DTYPES
from ._metal.api.recall import Signature
from ._metal.caches import Cache
from ._metal.plan.backend import NANOBIND
from ._metal.plan.plan import Plan
from ._metal.plan.programs import Blank, MetalLaunches, Program, Walks, gradient_tensors
from ._metal.problem import checks
from ._metal.problem.bilinear import Split
from ._metal.problem.mask import slot_keys
from ._metal.problem.ops import KEY, KEY_MASK, RPB
from ._metal.problem.problem import Problem
from ._tensors import MlxTables

Arrays = tuple[mx.array, ...]
Axes = tuple[int | None, ...]  # of mx.vmap: which axis of each array is mapped, if any
T = TypeVar("T")
N = TypeVar("N", bound="_Custom")
# None for a constant array.
Tangents = tuple[mx.array | None, ...]
_plain: ContextVar[bool] = ContextVar("plain", default=False)


@contextmanager
def as_plain_operations() -> Iterator[None]:
    """Within, and in this thread only, MLX sees the operations of the pure backend instead of a node of its own."""
    before = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(before)


def seen_through() -> bool:
    """Whether :func:`as_plain_operations` is in force."""
    return _plain.get()


def run(
    planned: Plan, stream: mx.Stream, inputs: Sequence[mx.array | None], signature: Signature | None = None
) -> Arrays:
    """The op's outputs, differentiable once in reverse; inputs in the order of the op's record.

    signature: the key under which the C++ extension's plan is kept for calls like this one.
    """
    names = zip(planned.record.input_names, inputs, strict=False)
    given = {name: tensor for name, tensor in names if tensor is not None}
    node = Forward(planned, stream, tuple(given))
    outputs = node(tuple(given.values()))
    if signature is not None:
        machine().nanobind.remember(signature, node, given)
    return outputs


class _Custom:
    """One call without its arrays. names: the given inputs, in order."""

    def __init__(self, plan: Plan, stream: mx.Stream, names: tuple[str, ...]) -> None:
        self.plan, self.stream, self.names = plan, stream, names

    def by(self: N, plan: Plan) -> N:
        """The same call by another plan."""
        return type(self)(plan, self.stream, self.names)

    @property
    def problem(self) -> Problem:
        """What is computed, or differentiated."""
        return self.plan.problem

    @property
    def program(self) -> Program:
        """The plan's program for this node."""
        raise NotImplementedError

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for calls that differ only in the stream, for which MLX makes a new object each time."""
        return type(self), self.plan, self.names

    def __call__(self, arrays: Arrays) -> Arrays:
        """The node's outputs."""
        return machine().run(self.plan, lambda plan: self.by(plan).launch(arrays))

    def launch(self, arrays: Arrays) -> Arrays:
        """The node, by this plan: a primitive of the extension, or a custom function."""
        if self.program.backend == NANOBIND.name and not isinstance(self.program, Blank):
            machine().announce(self.program)
            return self.results(nanobind.run(self, self.tensors(arrays), machine().nanobind), arrays)
        with mx.stream(self.stream):  # a custom function is a node itself, besides its contents
            arrays = self.unpacked(arrays)
            return self.compute(arrays) if _plain.get() else self.launch_custom_function(arrays)

    def unpacked(self, arrays: Arrays) -> Arrays:
        """The same arrays, with the key mask as bools: a primitive passes its derivatives the words that it read."""
        if KEY_MASK.name not in self.names or all(array.dtype != mx.int32 for array in arrays):
            return arrays
        # Imported here, because it imports what describes the Metal kernels, which a CPU never needs.
        from . import _operations
        from ._metal.api.key_words import key_bools

        length = self.problem.key_shape[-1]
        return tuple(key_bools(_operations, a, length) if a.dtype == mx.int32 else a for a in arrays)

    def launch_custom_function(self, arrays: Arrays) -> Arrays:
        """:meth:`compute` as a node, on the current stream, that MLX transforms by the functions given here."""

        @mx.custom_function
        def function(*arrays: mx.array) -> Arrays:
            # MLX would also differentiate the contents of a custom function, only to drop the result; this prevents it.
            cut = tuple(map(mx.stop_gradient, arrays))
            return machine().run(self.plan, lambda plan: self.by(plan).compute(cut))

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

    def compute(self, arrays: Arrays) -> Arrays:
        """What the function computes."""
        program, here = self.program, machine()
        here.announce(program)
        if isinstance(program, Blank):
            made = {o.name: mx.zeros(o.shape, DTYPES[o.dtype]) for o in program.outputs}
        elif isinstance(program, MetalLaunches):
            # Imported here, because it imports what describes the Metal kernels, which a CPU never needs.
            from ._launch import fast_metal

            made = fast_metal.run(program, self.tensors(self.not_to_be_mapped(arrays)), here.fast_metal)
        else:
            # Kernels run most calls: the walks of the pure backend are imported by the first call that needs them.
            from ._launch import pure

            assert isinstance(program, Walks), program
            made = pure.run(program, self.tensors(arrays))
        return self.results(made, arrays)

    def not_to_be_mapped(self, arrays: Arrays) -> Arrays:
        """The same arrays; vmap over them raises.

        MLX also maps the contents of a custom function, whatever the function's own vmap, and would stop at the
        kernel with an unhelpful error. Another backend cannot take over: while MLX traces, arrays under
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

    def tensors(self, arrays: Arrays) -> dict[str, mx.array]:
        """The node's arrays by the names that programs have for them."""
        raise NotImplementedError

    def results(self, made: dict[str, mx.array], arrays: Arrays) -> Arrays:
        """The node's outputs out of a program's."""
        raise NotImplementedError

    def differentiate(self, primals: Arrays, cotangents: Arrays, outputs: Arrays) -> Arrays:
        """Gradients of ``primals``."""
        raise NotImplementedError

    def tangents(self, primals: Arrays, tangents: Tangents) -> Arrays:
        """Tangents of the outputs."""
        raise NotImplementedError

    def encoded(self) -> bytes:
        """The call as bytes, without its stream, for a primitive of the C++ extension to keep."""
        encoded = pickle.dumps((type(self), self.problem, self.plan.requested, self.names))
        _calls.keep(encoded, self)
        return encoded

    def split_op(self) -> Split:
        """A split op's two nodes, as functions that are differentiable in turn."""
        problem, has_key = self.problem, self.problem.record.reads(KEY)

        def node(kind: type[_Custom], rpb: mx.array | None) -> _Custom:
            given = tuple(name for name in problem.record.input_names if name != RPB.name or rpb is not None)
            return kind(self.plan_for(replace(problem, has_rpb=rpb is not None)), self.stream, given)

        def op(x: mx.array, y: mx.array, rpb: mx.array | None) -> mx.array:
            (found,) = node(Forward, rpb)((x, y) if rpb is None else (x, y, rpb))
            if not has_key or not any(problem.is_causal):
                return found
            held = slot_keys(problem, MlxTables())[1].reshape(1, *problem.query_shape, 1, problem.slots)
            return mx.where(held, found, mx.zeros((), found.dtype))

        def gradients(grad: mx.array, x: mx.array, y: mx.array, rpb: mx.array | None) -> Arrays:
            return node(Backward, rpb)((grad, x, y, *(() if rpb is None else (rpb,)), grad))

        return Split(op, gradients, mx.zeros_like)

    def plan_for(self, problem: Problem) -> Plan:
        """The plan of a problem with the backend requested for this one."""
        if problem == self.problem:
            return self.plan
        return machine().plan(problem, self.plan.device, self.plan.requested)

    def shares_batch(self, mapped: set[int]) -> bool:
        """Whether mapped problems can be one problem with a larger batch."""
        raise NotImplementedError

    def map(self, arrays: Arrays, axes: Axes) -> Arrays:
        """The outputs for every index of the mapped axes (None: not mapped), stacked first."""
        with mx.stream(self.stream):
            return self.map_here(arrays, axes)

    def map_here(self, arrays: Arrays, axes: Axes) -> Arrays:
        """:meth:`map` on the current stream."""
        size = mapped_size(arrays, axes)
        if not self.shares_batch({index for index, axis in enumerate(axes) if axis is not None}):
            return map_each(self, arrays, axes)
        batch = self.problem.batch
        larger = self.by(self.plan_for(replace(self.problem, batch=size * batch)))
        folded = [
            a if self.is_rpb(index) else _fold(a, axis, size)
            for index, (a, axis) in enumerate(zip(arrays, axes, strict=True))
        ]
        return tuple(result.reshape(size, batch, *result.shape[1:]) for result in larger(tuple(folded)))

    def is_rpb(self, index: int) -> bool:
        """Whether the array at ``index`` is rpb, which has no batch axis."""
        raise NotImplementedError


# --- called by the C++ primitives, with the call in bytes and its current stream -------------------


_calls = Cache("calls of primitives", 1024)


def _call(encoded: bytes, stream: mx.Stream) -> _Custom:
    device = machine().device_of(stream)
    known: _Custom | None = _calls.get(encoded)
    if known is None or known.plan.device != device:
        kind, problem, backend, names = pickle.loads(encoded)
        known = kind(machine().plan(problem, device, backend), stream, names)
    return type(known)(known.plan, stream, known.names)


def primitive_vjp(encoded: bytes, stream: mx.Stream, primals: Any, cotangents: Any, outputs: Any) -> Arrays:
    """:meth:`_Custom.differentiate`."""
    return _call(encoded, stream).differentiate(primals, cotangents, outputs)


def primitive_vmap(encoded: bytes, stream: mx.Stream, arrays: Any, axes: Sequence[int]) -> Arrays:
    """:meth:`_Custom.map`; -1 for axes that are not mapped."""
    return _call(encoded, stream).map(tuple(arrays), tuple(None if axis < 0 else axis for axis in axes))


def primitive_jvp(encoded: bytes, stream: mx.Stream, primals: Any, tangents: Any, indices: Sequence[int]) -> Arrays:
    """:meth:`_Custom.tangents`; tangents: of the arrays at ``indices``."""
    given = dict(zip(indices, tangents, strict=True))
    return _call(encoded, stream).tangents(tuple(primals), tuple(given.get(index) for index in range(len(primals))))


def mapped_size(arrays: Arrays, axes: Axes) -> int:
    """The length of the mapped axes."""
    return next(array.shape[axis] for array, axis in zip(arrays, axes, strict=True) if axis is not None)


def map_each(one: Callable[[Arrays], Arrays], arrays: Arrays, axes: Axes) -> Arrays:
    """The outputs of one problem after another, stacked first."""
    moved = [array if axis is None else mx.moveaxis(array, axis, 0) for array, axis in zip(arrays, axes, strict=True)]

    def at(index: int) -> Arrays:
        return one(tuple(a if axis is None else a[index] for a, axis in zip(moved, axes, strict=True)))

    size = mapped_size(arrays, axes)
    if size == 0:  # no problem to run: take the shapes from one that is never evaluated
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

    @property
    def program(self) -> Program:
        return self.plan.forward

    def tensors(self, arrays: Arrays) -> dict[str, mx.array]:
        return dict(zip(self.names, arrays, strict=True))

    def results(self, made: dict[str, mx.array], arrays: Arrays) -> Arrays:
        return tuple(made[name] for name in self.problem.record.output_names)

    def differentiate(self, primals: Arrays, cotangents: Arrays, outputs: Arrays) -> Arrays:
        backward = Backward(self.plan, self.stream, self.names)
        # A split op's gradients do not read its output.
        found = backward((*cotangents, *primals, *(cotangents if self.problem.record.bilinear else outputs)))
        if KEY_MASK.name not in self.names:
            return found
        with mx.stream(self.stream):
            return (*found, mx.zeros_like(primals[-1]))

    def tangents(self, primals: Arrays, tangents: Tangents) -> Arrays:
        if not self.problem.record.bilinear:
            checks.reject_forward_mode(self.problem.name)
        with mx.stream(self.stream):
            return (self.split_op().tangent(primals, tangents),)

    def is_rpb(self, index: int) -> bool:
        return self.names[index] == RPB.name

    def shares_batch(self, mapped: set[int]) -> bool:
        return not any(self.is_rpb(index) for index in mapped)


class Backward(_Custom):
    """``Backward(...)((*cotangents, *inputs, *outputs))`` -> gradients of the inputs that are given."""

    def split(self, arrays: tuple[T, ...]) -> tuple[tuple[T, ...], tuple[T, ...], tuple[T, ...]]:
        """Cotangents, inputs and outputs out of the flat arguments. A split op's primitive knows no outputs."""
        count = len(self.problem.record.outputs)
        inputs = count + len(self.names)
        return arrays[:count], arrays[count:inputs], arrays[inputs:]

    @property
    def program(self) -> Program:
        return self.plan.backward  # MLX gives a cotangent for every output

    def tensors(self, arrays: Arrays) -> dict[str, mx.array]:
        grads, inputs, outputs = self.split(arrays)
        return gradient_tensors(self.problem.record, grads, dict(zip(self.names, inputs, strict=True)), outputs)

    def results(self, made: dict[str, mx.array], arrays: Arrays) -> Arrays:
        given = zip(self.names, self.split(arrays)[1], strict=True)
        own = ((f"{name}_grad", array) for name, array in given if name != KEY_MASK.name)
        return tuple(made[name].astype(array.dtype, stream=self.stream) for name, array in own)

    def differentiate(self, primals: Arrays, cotangents: Arrays, outputs: Arrays) -> Arrays:
        if not self.problem.record.bilinear:
            checks.reject_second_derivative(self.problem.name)
        (grad,), inputs, rest = self.split(primals)
        with mx.stream(self.stream):
            found = self.split_op().gradients_of_gradients(grad, inputs, cotangents)
            # Nothing depends on rpb, nor on the output, which is not read.
            return (*found, *map(mx.zeros_like, (*inputs[2:], *rest)))

    def tangents(self, primals: Arrays, tangents: Tangents) -> Arrays:
        if not self.problem.record.bilinear:
            checks.reject_forward_mode(self.problem.name)
        (grad,), inputs, _ = self.split(primals)
        (of_grad,), of_inputs, _ = self.split(tangents)
        with mx.stream(self.stream):
            return tuple(self.split_op().tangents_of_gradients(grad, inputs, of_grad, of_inputs))

    def is_rpb(self, index: int) -> bool:
        index -= len(self.problem.record.outputs)
        return 0 <= index < len(self.names) and self.names[index] == RPB.name

    def shares_batch(self, mapped: set[int]) -> bool:
        # The gradient of rpb sums over the batch.
        return RPB.name not in self.names
