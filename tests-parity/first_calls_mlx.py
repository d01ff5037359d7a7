"""MLX's contexts in which the first call of a process may happen."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from first_calls import CALLS, THREADS, Call, at_once

PACKAGE = "natten_mlx"


def gradients(function: Call) -> Call:
    return mx.grad(lambda x: mx.sin(function(x)).sum())


def mapped(function: Call) -> Call:
    return lambda x: mx.vmap(function)(mx.stack([x, -x]))


def in_threads(function: Call) -> Call:
    def call(x: Any) -> Any:
        # MLX evaluates lazy arrays in the thread that made them.
        mx.eval(x, function.parameters() if isinstance(function, nn.Module) else [])

        def work() -> Any:
            out = function(x)
            mx.eval(out)
            return np.array(out)

        return mx.array(np.stack(at_once(work)))

    return call


def in_a_stream(function: Call) -> Call:
    def call(x: Any) -> Any:
        with mx.stream(mx.new_stream(mx.cpu)):
            return function(x)

    return call


# What runs in a context, built from a function that has not been called yet.
CONTEXTS = {
    "compile": mx.compile,
    "compile of grad": lambda function: mx.compile(gradients(function)),
    "grad of compile": lambda function: gradients(mx.compile(function)),
    "grad": gradients,
    "vmap": mapped,
    "vmap of grad": lambda function: mapped(gradients(function)),
    "checkpoint": lambda function: gradients(mx.checkpoint(function)),
    "threads": in_threads,
    "stream": in_a_stream,
}


def wanted(context: str, function: Call, x: Any) -> Any:
    """What plain calls give."""
    if "grad" in context or context == "checkpoint":
        function = gradients(function)
    if "vmap" in context:
        return mx.stack([function(x), function(-x)])
    return mx.stack([function(x)] * THREADS) if context == "threads" else function(x)


def attempt(context: str, call: str, backend: str) -> None:
    """The first call of this process, in a context; then which backend ran it, and whether plain calls agree."""
    import natten_mlx

    mx.set_default_device(mx.cpu)
    mx.random.seed(0)
    shape, make = CALLS[call]
    x, function = mx.random.normal(shape), make(natten_mlx, backend)
    run = CONTEXTS[context](function)
    first = run(x)
    mx.eval(first)

    from frameworks import MLX

    # MLX does not trace again what it has compiled, so the backend is observed on the same function built once more.
    with MLX.watch() as ran:
        again = CONTEXTS[context](make_again(function))(x)
        mx.eval(again)
    assert ran == {backend}, ran
    reference = wanted(context, function, x)
    for found in (first, again):
        assert (found.shape, found.dtype) == (reference.shape, reference.dtype)
        np.testing.assert_allclose(np.array(found), np.array(reference), rtol=0, atol=1e-5)
        assert mx.abs(found).sum().item() > 0


def make_again(function: Call) -> Call:
    """The same function as a new object, which MLX's cache of compiled functions does not know."""
    return lambda x: function(x)
