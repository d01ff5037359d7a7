"""A call plans once: forward, or forward and gradient, whatever transforms it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from frameworks import FRAMEWORKS, MLX, MPS, Framework

BACKENDS = ("auto", "pure", "dense")


@contextmanager
def planned(framework: Framework) -> Iterator[list[str]]:
    """The op of every plan that is made, by a machine that has none yet."""
    device, planned_ops = framework.module("_device"), []

    class Counted(device.Machine):  # type: ignore[misc, name-defined]
        def plan(self, problem: Any, where: Any, backend: str) -> Any:
            planned_ops.append(problem.op)
            return super().plan(problem, where, backend)

    with device.on_machine(Counted()):
        yield planned_ops


def tensors(framework: Framework, count: int = 3) -> list[Any]:
    rng = np.random.default_rng(0)
    return [framework.tensor(rng.standard_normal((2, 5, 6, 2, 4)), "float32") for _ in range(count)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_forward(framework: Framework, backend: str) -> None:
    query, key, value = tensors(framework)
    with planned(framework) as planned_ops:
        framework.evaluate(framework.face("na2d")(query, key, value, 3, backend=backend))
    assert planned_ops == ["na"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", ["na", "qk", "av"])
@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_forward_and_gradient(framework: Framework, op: str, backend: str) -> None:
    query, key, value = tensors(framework)
    logits = framework.face("na2d_qk")(query, key, 3)
    face = framework.face("na2d" if op == "na" else f"na2d_{op}")
    given = {"na": [query, key, value], "qk": [query, key], "av": [logits, value]}[op]
    cotangent = logits if op == "qk" else value
    with planned(framework) as planned_ops:
        _, gradients = framework.vjp(lambda *arrays: (face(*arrays, 3, backend=backend),), given, [cotangent])
        framework.evaluate(*gradients)
    assert planned_ops == [op]


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_the_dense_backend_runs_the_program_of_its_plan(framework: Framework) -> None:
    """Shown by a machine whose plans hold another program, with a scale of 0."""
    query, key, value = tensors(framework)
    device, face = framework.module("_device"), framework.face("na2d")

    class Flat(device.Machine):  # type: ignore[misc, name-defined]
        def plan(self, problem: Any, where: Any, backend: str) -> Any:
            found = super().plan(problem, where, backend)
            return replace(found, forward=replace(found.forward, problem=replace(problem, scale=0.0)))

    wanted = face(query, key, value, 3, scale=0.0, backend="dense")
    with device.on_machine(Flat()):
        found = face(query, key, value, 3, backend="dense")
    np.testing.assert_array_equal(framework.numpy(found), framework.numpy(wanted))
    assert not np.allclose(framework.numpy(face(query, key, value, 3, backend="dense")), framework.numpy(wanted))


def mlx_calls() -> dict[str, tuple[Callable[..., Any], int]]:
    """Transformed calls by name, and how often they plan."""
    import mlx.core as mx

    def loss(query: Any, key: Any, value: Any) -> Any:
        # The extension would remember an earlier call like this one, and not plan at all.
        return MLX.face("na2d")(query, key, value, 3, backend="pure").square().sum()

    return {
        "value_and_grad": (mx.value_and_grad(loss), 1),
        "compile": (mx.compile(mx.grad(loss)), 1),
        "checkpoint": (mx.grad(mx.checkpoint(loss)), 2),  # the forward is computed twice
        # The traced problem, and then the one that has the mapped axis as its batch, forward and gradient.
        "vmap": (lambda *arrays: mx.vmap(mx.grad(loss))(*(mx.stack([a, a]) for a in arrays)), 3),
    }


@pytest.mark.parametrize("name", ["value_and_grad", "compile", "checkpoint", "vmap"])
def test_transformed_by_mlx(name: str) -> None:
    given = tensors(MLX)
    function, wanted = mlx_calls()[name]
    with planned(MLX) as planned_ops:
        MLX.evaluate(function(*given))
    assert planned_ops == ["na"] * wanted


def test_transformed_by_torch() -> None:
    """Here each custom op plans once: it is given sizes, not a plan."""
    import torch

    def loss(query: Any, key: Any, value: Any) -> Any:
        return MPS.face("na2d")(query, key, value, 3).square().sum()

    given = tensors(MPS)
    with planned(MPS) as planned_ops:
        torch.func.grad(loss)(*given)
        assert planned_ops == ["na"] * 2
        torch.vmap(torch.func.grad(loss))(*(torch.stack([t, t]) for t in given))
    assert planned_ops == ["na"] * 4
