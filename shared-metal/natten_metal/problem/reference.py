"""The reference: dense neighborhood attention in numpy float64, forward and backward, written to be obvious.

It uses neither blocks nor lse tricks: a mask over all pairs, one softmax, and the derivative of that
softmax. Shapes are those of :class:`~.problem.Problem`; inputs of any dtype are read as float64.
"""

import math
from typing import Any

from .mask import bias_offsets, neighborhood_mask, slot_keys
from .problem import Problem

Array = Any


def _heads_first(tensor: Array, groups: int = 1) -> Array:
    """``[B, *shape, H, D]`` -> float64 ``[B, H * groups, tokens, D]``, each head repeated for its group."""
    import numpy as np

    tensor = np.asarray(tensor, dtype=np.float64)
    flat = tensor.reshape(tensor.shape[0], math.prod(tensor.shape[1:-2]), *tensor.shape[-2:]).swapaxes(1, 2)
    return np.repeat(flat, groups, axis=1)


def _heads_last(tensor: Array, shape: tuple[int, ...], groups: int = 1) -> Array:
    """The transpose of :func:`_heads_first`: sums the heads of a group."""
    batch, heads, tokens, dim = tensor.shape
    summed = tensor.reshape(batch, heads // groups, groups, tokens, dim).sum(2)
    return summed.swapaxes(1, 2).reshape(batch, *shape, heads // groups, dim)


def _logits(
    problem: Problem, query: Array, key: Array, additional_keys: Array, rpb: Array, key_mask: Array = None
) -> Array:
    import numpy as np

    groups = problem.group_heads
    logits = problem.scale * _heads_first(query) @ _heads_first(key, groups).swapaxes(-1, -2)
    if rpb is not None:
        biases = np.asarray(rpb, dtype=np.float64).reshape(problem.heads, -1)
        logits = logits + biases[:, bias_offsets(problem)]
    seen = neighborhood_mask(problem)
    if key_mask is not None:
        seen = seen & np.asarray(key_mask).reshape(problem.batch, 1, 1, problem.keys)
    logits = np.where(seen, logits, -np.inf)
    if additional_keys is not None:
        additional = problem.scale * _heads_first(query) @ _heads_first(additional_keys, groups).swapaxes(-1, -2)
        logits = np.concatenate([logits, additional], axis=-1)
    return logits


def forward(
    problem: Problem,
    query: Array,
    key: Array,
    value: Array,
    additional_keys: Array = None,
    additional_values: Array = None,
    rpb: Array = None,
    key_mask: Array = None,
) -> tuple[Array, Array]:
    """Output ``[B, *shape, H, D_v]`` and lse ``[B, *shape, H]``, float64. A query that sees no key has 0 and -inf."""
    key, value = (_visible(tensor, key_mask) for tensor in (key, value))
    weights, lse = _weights(problem, query, key, additional_keys, rpb, key_mask)
    out = weights @ _all_values(problem, value, additional_values)
    return _heads_last(out, problem.query_shape), _heads_last(lse, problem.query_shape)[..., 0]


def _visible(tensor: Array, key_mask: Array) -> Array:
    """Keys or values with zeros in place of those that may not be seen."""
    import numpy as np

    return tensor if key_mask is None else np.where(np.asarray(key_mask)[..., None, None], tensor, 0)


def _weights(
    problem: Problem, query: Array, key: Array, additional_keys: Array, rpb: Array, key_mask: Array
) -> tuple[Array, Array]:
    import numpy as np

    logits = _logits(problem, query, key, additional_keys, rpb, key_mask)
    top = logits.max(-1, keepdims=True, initial=-np.inf)
    weights = np.exp(logits - np.where(top == -np.inf, 0, top))
    total = weights.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        return weights / np.where(total == 0, 1, total), top + np.log(total)


def _all_values(problem: Problem, value: Array, additional_values: Array) -> Array:
    import numpy as np

    values = _heads_first(value, problem.group_heads)
    if additional_values is None:
        return values
    return np.concatenate([values, _heads_first(additional_values, problem.group_heads)], axis=2)


def backward(
    problem: Problem,
    out_grad: Array,
    lse_grad: Array,
    query: Array,
    key: Array,
    value: Array,
    additional_keys: Array = None,
    additional_values: Array = None,
    rpb: Array = None,
    key_mask: Array = None,
) -> dict[str, Array]:
    """Gradients by name (query, key, value, additional_keys, additional_values, rpb), float64.

    lse_grad may be None. With weights P: dS = P * (dO V^T - rowsum(P * dO V^T) + dLSE).
    """
    import numpy as np

    groups, keys = problem.group_heads, problem.keys
    key, value = (_visible(tensor, key_mask) for tensor in (key, value))
    weights, _ = _weights(problem, query, key, additional_keys, rpb, key_mask)
    rows_grad = _heads_first(out_grad)
    weights_grad = rows_grad @ _all_values(problem, value, additional_values).swapaxes(-1, -2)
    logits_grad = weights * (weights_grad - (weights * weights_grad).sum(-1, keepdims=True))
    if lse_grad is not None:
        logits_grad += weights * _heads_first(np.asarray(lse_grad, dtype=np.float64)[..., None])
    values_grad = weights.swapaxes(-1, -2) @ rows_grad
    keys_grad = problem.scale * logits_grad.swapaxes(-1, -2) @ _heads_first(query)
    query_grad = problem.scale * logits_grad[..., :keys] @ _heads_first(key, groups)
    gradients = {
        "key": _heads_last(keys_grad[:, :, :keys], problem.key_shape, groups),
        "value": _heads_last(values_grad[:, :, :keys], problem.key_shape, groups),
    }
    if additional_keys is not None:
        query_grad += problem.scale * logits_grad[..., keys:] @ _heads_first(additional_keys, groups)
        count = (problem.additional,)
        gradients["additional_keys"] = _heads_last(keys_grad[:, :, keys:], count, groups)
        gradients["additional_values"] = _heads_last(values_grad[:, :, keys:], count, groups)
    gradients["query"] = _heads_last(query_grad, problem.query_shape)
    if rpb is not None:
        gradients["rpb"] = _rpb_gradient(problem, logits_grad[..., :keys])
    return gradients


def _rpb_gradient(problem: Problem, logits_grad: Array) -> Array:
    import numpy as np

    sizes = [2 * w - 1 for w in problem.kernel_size]
    rpb_grad = np.zeros((problem.heads, int(np.prod(sizes))))
    mask, offsets = neighborhood_mask(problem), bias_offsets(problem)
    for head in range(problem.heads):
        np.add.at(rpb_grad[head], offsets[mask], logits_grad[:, head].sum(0)[mask])
    return rpb_grad.reshape(problem.heads, *sizes)


def qk(problem: Problem, query: Array, key: Array, rpb: Array = None) -> Array:
    """Logits of the window slots ``[B, *shape, H, prod(kernel_size)]``, -inf where a slot holds no key."""
    import numpy as np

    keys, held = slot_keys(problem)
    logits = _logits(problem, query, key, None, rpb)
    found = np.take_along_axis(logits, np.broadcast_to(keys, (*logits.shape[:2], *keys.shape)), axis=-1)
    return _heads_last(np.where(held, found, -np.inf), problem.query_shape)


def av(problem: Problem, attn: Array, value: Array) -> Array:
    """Window slots times their values: ``[B, *shape, H, D_v]``."""
    return _heads_last(_dense_weights(problem, attn) @ _heads_first(value, problem.group_heads), problem.query_shape)


def _dense_weights(problem: Problem, slots: Array) -> Array:
    """``[B, *shape, H, W]`` -> ``[B, H, queries, keys]``; slots that hold no key are dropped."""
    import numpy as np

    keys, held = slot_keys(problem)
    slots = np.where(held, _heads_first(slots), 0.0)
    dense = np.zeros((*slots.shape[:2], problem.queries, problem.keys))
    for batch, head in np.ndindex(*slots.shape[:2]):
        np.add.at(dense[batch, head], (np.arange(problem.queries)[:, None], keys), slots[batch, head])
    return dense


def qk_backward(problem: Problem, logits_grad: Array, query: Array, key: Array, rpb: Array = None) -> dict[str, Array]:
    """Gradients of query, key and rpb by name."""
    groups, dense = problem.group_heads, _dense_weights(problem, logits_grad)
    key_grad = problem.scale * dense.swapaxes(-1, -2) @ _heads_first(query)
    gradients = {
        "query": _heads_last(problem.scale * dense @ _heads_first(key, groups), problem.query_shape),
        "key": _heads_last(key_grad, problem.key_shape, groups),
    }
    if rpb is not None:
        gradients["rpb"] = _rpb_gradient(problem, dense)
    return gradients


def av_backward(problem: Problem, out_grad: Array, attn: Array, value: Array) -> dict[str, Array]:
    """Gradients of attn and value by name."""
    import numpy as np

    keys, held = slot_keys(problem)
    groups, rows_grad = problem.group_heads, _heads_first(out_grad)
    dense_grad = rows_grad @ _heads_first(value, groups).swapaxes(-1, -2)
    slots_grad = np.take_along_axis(dense_grad, np.broadcast_to(keys, (*dense_grad.shape[:2], *keys.shape)), axis=-1)
    value_grad = _dense_weights(problem, attn).swapaxes(-1, -2) @ rows_grad
    return {
        "attn": _heads_last(np.where(held, slots_grad, 0.0), problem.query_shape),
        "value": _heads_last(value_grad, problem.key_shape, groups),
    }
