"""One process's part of a problem on shards, as MLX's transformations see it: one custom function.

A single one, so that all processes run their backward passes, and with them their messages, in the same order.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ._metal.api.shards import ShardCall
from ._metal.problem.shards import Box

Arrays = tuple[mx.array, ...]


def run(call: ShardCall, tensors: tuple[mx.array | None, ...]) -> Arrays:
    """Output and lse of this process's shard. tensors: as in :data:`.shards.INPUTS`.

    The backward pass computes the outputs of the pieces again.
    """
    transport: Any = call.transport
    given = [index for index, tensor in enumerate(tensors) if tensor is not None]
    extended: list[Arrays] = []  # key and value of the shard with its halo, from the forward pass

    def attend(boxes: list[Box], keys: Box) -> Callable[..., Arrays]:
        def outputs(*arrays: mx.array) -> Arrays:
            by_name: list[Any] = [None] * len(tensors)
            for index, array in zip(given, arrays, strict=True):
                by_name[index] = array
            return tuple(each for box in boxes for each in call.attend(box, by_name, keys))

        return outputs

    interior, border = attend(call.interior, call.own), attend(call.border, call.reach)

    @mx.custom_function
    def shard(*arrays: mx.array) -> Arrays:
        query, key, value, *others = arrays
        arrival = call.post(key, value)
        near = interior(*arrays)
        extended[:] = [call.extended(key, value, arrival())]
        found = (*near, *border(query, *extended[0], *others))
        boxes = (*call.interior, *call.border)
        with mx.stream(call.stream):
            whole = tuple(call.joined(dict(zip(boxes, found[which::2], strict=True))) for which in (0, 1))
        return transport.after_sends(whole)

    @shard.vjp
    def vjp(primals: Any, cotangents: Any, outputs: Any) -> Arrays:
        transport.within_derivative()
        with mx.stream(call.stream):
            query, _, _, *others = primals

            def gradients(boxes: list[Box], function: Any, arrays: Arrays) -> list[Any]:
                if not boxes:
                    return [0] * len(arrays)
                of_outputs = [call.of_queries(each, box) for box in boxes for each in cotangents]
                found: list[Any] = mx.vjp(function, list(arrays), of_outputs)[1]
                return found

            far = gradients(call.border, border, (query, *extended[0], *others))
            if not call.border:
                far[1:3] = map(mx.zeros_like, extended[0])
            arrival = call.post_gradients(far[1], far[2])
            near = gradients(call.interior, interior, tuple(primals))
            keys = call.own_gradients((far[1], far[2]), (near[1], near[2]), arrival())
            found = [far[0] + near[0], *keys, *(a + b for a, b in zip(far[3:], near[3:], strict=True))]
            for at, index in enumerate(given):
                if index in call.replicated:
                    (found[at],) = transport.total((found[at],))
            return transport.after_sends(tuple(found))

    found: Any = shard(*(tensors[index] for index in given))
    return tuple(found)
