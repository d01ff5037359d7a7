"""Items of different sizes as one node of MLX's graph: one launch per kind of item, forward and backward.

The node has a derivative of its own, so that MLX does not add up a whole array of zeros for every slice. Lists,
and calls that MLX must see through (the dense backend, exported graphs), are made of plain operations in
:mod:`natten_mlx._plain.varlen`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import mlx.core as mx

from . import _autodiff as _transforms
from . import _operations
from ._device import machine
from ._items import put, take
from ._launch import nanobind
from ._metal.api.operations import compute_dtype
from ._metal.problem import checks, ragged
from ._metal.problem.problem import Problem
from ._metal.problem.ragged import KEYS, QUERIES
from ._run import run

Arrays = tuple[mx.array, ...]
# Queries, keys, values, and rpb or nothing.
Parts = tuple[Arrays, Arrays, Arrays, Arrays]
# As ragged.TOGETHER, on a CPU: MLX launches faster than it gathers and scatters, so items are not brought together.
TOGETHER = 0


class Launch(NamedTuple):
    """The arguments in which launches on arrays of equal shapes differ."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    is_causal: tuple[bool, ...]
    scale: float


class Ragged(NamedTuple):
    """One call without its arrays. face: for messages. problem: what all items share."""

    face: str
    kind: str
    problem: Problem
    backend: str
    stream: mx.Stream
    table: ragged.Table

    @property
    def groups(self) -> tuple[ragged.Group, ...]:
        """The launches."""
        together = None if self.stream.device != mx.cpu else TOGETHER
        return ragged.groups(self.table, len(self.problem.query_shape), self.kind, together)

    def split(self, arrays: Arrays) -> Parts:
        """Queries, keys, values, and rpb or nothing."""
        count = len(arrays) // 3
        return arrays[:count], arrays[count : 2 * count], arrays[2 * count : 3 * count], arrays[3 * count :]

    def given(self, group: ragged.Group, parts: Parts) -> Arrays:
        """The inputs of one launch. parts: from :meth:`split`, once per call: its cost grows with the items."""
        queries, keys, values, rpb = parts
        own = take(self.kind, queries, group, QUERIES)
        return (own, *(take(self.kind, each, group, KEYS) for each in (keys, values)), *rpb)

    def __call__(self, *arrays: mx.array) -> tuple[Arrays, Arrays]:
        """Outs and lses. arrays: queries, keys, values, and rpb if there is one."""

        @mx.custom_function
        def function(*arrays: mx.array) -> Arrays:
            # MLX would also differentiate the contents of a custom function, only to drop the result; this prevents it.
            return self.forward(tuple(map(mx.stop_gradient, arrays)))

        @function.vjp
        def vjp(primals: Any, cotangents: Any, outputs: Any) -> Arrays:
            return self.backward(*map(_listed, (primals, cotangents, outputs)))

        @function.jvp
        def jvp(primals: Any, tangents: Any) -> NoReturn:
            checks.reject_forward_mode(self.face)

        @function.vmap
        def vmap(inputs: Any, axes: Any) -> tuple[Arrays, tuple[int, ...]]:
            return _mapped(lambda own: sum(self(*own), ()), _listed(inputs), _axes(axes))

        with mx.stream(self.stream):
            found = _listed(function(*arrays))
        return found[: len(found) // 2], found[len(found) // 2 :]

    def forward(self, arrays: Arrays) -> Arrays:
        """What the node computes."""
        parts = self.split(arrays)
        queries, _, values, _ = parts
        with mx.stream(self.stream):
            outs, lses = blank_outputs(queries, values)
            for group in self.groups:
                out, lse = self.launch(group, self.given(group, parts))
                put(self.kind, outs, group, QUERIES, out)
                put(self.kind, lses, group, QUERIES, lse)
            return (*outs, *lses)

    def launch(self, group: ragged.Group, given: Arrays) -> Arrays:
        """Out and lse of one launch; repeated launches skip the plan, as in the fused faces."""
        rpb = given[3] if self.problem.has_rpb else None
        inputs = (*given[:3], None, None, rpb)
        kind = Launch(group.kernel_size, group.stride, group.dilation, self.problem.is_causal, self.problem.scale)
        extension = machine().nanobind
        signature = extension.signature(self.face, self.backend, self.stream, inputs, kind)
        known = extension.remembered.get(signature)
        if known is not None:
            return tuple(nanobind.repeat(known, given[:3], self.stream, extension))
        problem = ragged.problem_of(self.problem, group)
        inputs = inputs[: len(problem.record.inputs)]
        return run(problem, self.backend, self.stream, inputs, signature)

    def backward(self, arrays: Arrays, cotangents: Arrays, outputs: Arrays) -> Arrays:
        """Gradients of the inputs, through a node without a derivative."""
        counts = len(arrays), len(cotangents)

        @mx.custom_function
        def function(*flat: mx.array) -> Arrays:
            cut = tuple(map(mx.stop_gradient, flat))
            return self.gradients(cut[: counts[0]], cut[counts[0] : sum(counts)], cut[sum(counts) :])

        @function.vjp
        def vjp(primals: Any, cotangents: Any, outputs: Any) -> NoReturn:
            checks.reject_second_derivative(self.face)

        @function.jvp
        def jvp(primals: Any, tangents: Any) -> NoReturn:
            checks.reject_forward_mode(self.face)

        @function.vmap
        def vmap(inputs: Any, axes: Any) -> tuple[Arrays, tuple[int, ...]]:
            def one(own: Arrays) -> Arrays:
                return self.backward(own[: counts[0]], own[counts[0] : sum(counts)], own[sum(counts) :])

            return _mapped(one, _listed(inputs), _axes(axes))

        with mx.stream(self.stream):
            return _listed(function(*arrays, *cotangents, *outputs))

    def gradients(self, arrays: Arrays, cotangents: Arrays, outputs: Arrays) -> Arrays:
        """What the backward node computes."""
        *parts, rpb = self.split(arrays)
        half = len(outputs) // 2
        with mx.stream(self.stream):
            made = [[mx.zeros(array.shape, array.dtype) for array in each] for each in parts]
            # Summed over the launches in the dtype of sums, and rounded once.
            own_rpb = tuple(each.astype(compute_dtype(_operations, each)) for each in rpb)
            totals = [mx.zeros_like(each) for each in own_rpb]
            queries, keys, values = parts
            for group in self.groups:
                planned = machine().plan_on(self.stream, ragged.problem_of(self.problem, group), self.backend)
                backward = _transforms.Backward(planned, self.stream, self.names)
                around = [
                    take(self.kind, each, group, QUERIES)
                    for each in (cotangents[:half], cotangents[half:], outputs[:half], outputs[half:])
                ]
                given = self.given(group, (queries, keys, values, own_rpb))
                found = backward((*around[:2], *given, *around[2:]))
                for targets, side, gradient in zip(made, (QUERIES, KEYS, KEYS), found, strict=False):
                    put(self.kind, targets, group, side, gradient)
                totals = [total + gradient for total, gradient in zip(totals, found[3:], strict=True)]
            flat = [array for each in made for array in each]
            return (*flat, *(total.astype(each.dtype) for total, each in zip(totals, rpb, strict=True)))

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs of a launch."""
        return ("query", "key", "value", *(("rpb",) if self.problem.has_rpb else ()))


def blank_outputs(queries: Sequence[mx.array], values: Sequence[mx.array]) -> tuple[list[mx.array], list[mx.array]]:
    """Out and lse of tokens that belong to no item: 0 and -inf."""
    outs = [mx.zeros((*q.shape[:-1], v.shape[-1]), q.dtype) for q, v in zip(queries, values, strict=True)]
    return outs, [mx.full(q.shape[:-1], -mx.inf, compute_dtype(_operations, q)) for q in queries]


def _listed(found: Any) -> Arrays:
    """MLX returns a single array instead of a tuple of one."""
    return (found,) if isinstance(found, mx.array) else tuple(found)


def _axes(axes: Any) -> _transforms.Axes:
    return tuple(axes) if isinstance(axes, (list, tuple)) else (axes,)


def _mapped(one: Any, arrays: Arrays, axes: _transforms.Axes) -> tuple[Arrays, tuple[int, ...]]:
    """One mapped problem after another, because each may have its own rpb."""
    stacked = _transforms.map_each(one, arrays, axes)
    return stacked, (0,) * len(stacked)
