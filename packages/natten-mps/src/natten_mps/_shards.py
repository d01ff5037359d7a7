"""One process's part of a problem on shards, as torch's autograd sees it: one function.

A single one, so that all processes run their backward passes, and with them their messages, in the same order.
"""

from typing import Any

import torch
from torch import Tensor

from ._metal.api.shards import ShardCall
from ._metal.problem import checks
from ._metal.problem.shards import Box

Given = tuple[Tensor | None, ...]


def run(call: ShardCall, tensors: Given) -> tuple[Tensor, Tensor]:
    """Output and lse of this process's shard. tensors: as in :data:`.shards.INPUTS`."""
    out, lse = Shard.apply(call, *tensors)
    return out, lse


class Shard(torch.autograd.Function):
    """``Shard.apply(call, query, key, value, additional_keys, additional_values, rpb)`` -> out, lse.

    The pieces keep their own graphs; the backward pass runs through them in two parts, with the messages in between.
    """

    @staticmethod
    def forward(ctx: Any, call: ShardCall, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        needed = ctx.needs_input_grad[1:]
        leaves: list[Any] = [
            None if tensor is None else tensor.detach().requires_grad_(need)
            for tensor, need in zip(tensors, needed, strict=True)
        ]
        query, key, value, *others = leaves
        arrival = call.post(key.detach(), value.detach())
        with torch.set_grad_enabled(any(needed)):
            interior = [(box, call.attend(box, (query, key, value, *others), call.own)) for box in call.interior]
        extended = call.extended(key.detach(), value.detach(), arrival())
        far_key, far_value = (
            tensor.detach().requires_grad_(need) for tensor, need in zip(extended, needed[1:3], strict=True)
        )
        with torch.set_grad_enabled(any(needed)):
            border = [(box, call.attend(box, (query, far_key, far_value, *others), call.reach)) for box in call.border]
        ctx.call, ctx.interior, ctx.border = call, interior, border
        ctx.near, ctx.far = (query, key, value, *others), (query, far_key, far_value, *others)
        parts = {box: tuple(each.detach() for each in found) for box, found in (*interior, *border)}
        out, lse = (call.joined({box: found[which] for box, found in parts.items()}) for which in (0, 1))
        return out, lse

    @staticmethod
    def backward(ctx: Any, out_grad: Tensor, lse_grad: Tensor) -> Any:
        call: ShardCall = ctx.call
        if torch.is_grad_enabled():
            checks.reject_second_derivative(f"distributed.{call.face}")
        grads = (out_grad, lse_grad)
        far = _gradients(call, ctx.border, grads, ctx.far)
        keys: list[Any] = [None, None]
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            pair = tuple(
                torch.zeros_like(tensor) if grad is None else grad
                for grad, tensor in zip(far[1:3], ctx.far[1:3], strict=True)
            )
            arrival = call.post_gradients(*pair)
        near = _gradients(call, ctx.interior, grads, ctx.near)
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            keys = list(call.own_gradients(pair, tuple(0 if grad is None else grad for grad in near[1:3]), arrival()))
        found = [_sum(far[0], near[0]), *keys, *(_sum(a, b) for a, b in zip(far[3:], near[3:], strict=True))]
        for index in call.replicated:
            tensor = ctx.near[index]
            if tensor is not None and ctx.needs_input_grad[1 + index]:
                own = torch.zeros_like(tensor) if found[index] is None else found[index]
                (found[index],) = call.transport.total((own,))
        return None, *(each if need else None for each, need in zip(found, ctx.needs_input_grad[1:], strict=True))


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _gradients(
    call: ShardCall, parts: list[tuple[Box, Any]], grads: tuple[Tensor, Tensor], inputs: Given
) -> list[Tensor | None]:
    """Gradients of ``inputs`` by some parts of the queries."""
    needed = [index for index, tensor in enumerate(inputs) if tensor is not None and tensor.requires_grad]
    found: list[Tensor | None] = [None] * len(inputs)
    if parts and needed:
        outputs = [each for _, made in parts for each in made]
        of_outputs = [call.of_queries(grad, box) for box, _ in parts for grad in grads]
        given: list[Any] = [inputs[index] for index in needed]
        made = torch.autograd.grad(outputs, given, of_outputs, retain_graph=True, allow_unused=True)
        for index, grad in zip(needed, made, strict=True):
            found[index] = grad
    return found
