"""The stand-in for ``mx.fast.metal_kernel`` itself: what it binds, and when it fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from frameworks import MLX

from .mlx_host import EmulatedMlxHost

pytestmark = pytest.mark.usefixtures("emulator")
MLX.package  # noqa: B018 - selects the CPU


@pytest.fixture
def doubled() -> Callable[..., Any]:
    """Launches a kernel of the given body on ``x``, on as many threads as ``out`` has elements."""
    host = EmulatedMlxHost()

    def launch(body: str, x: mx.array, size: int = 8) -> mx.array:
        kernel = host.metal_kernel("doubled", ["x"], ["out"], body, "", False)
        (out,) = kernel(
            inputs=[x], output_shapes=[(size,)], output_dtypes=[mx.float32], grid=(size, 1, 1), threadgroup=(32, 1, 1)
        )
        return out

    return launch


def test_the_stand_in_binds_what_mlx_binds(doubled: Callable[..., Any]) -> None:
    x = mx.arange(16, dtype=mx.float32)
    body = "out[thread_position_in_grid.x] = 2 * x[thread_position_in_grid.x * x_strides[0]] + x_shape[0] + x_ndim;"
    assert doubled(body, x[::2]).tolist() == [2 * i + 9 for i in range(0, 16, 2)]
    # A threadgroup is clipped to the grid; small inputs are constants, and scalars references.
    assert doubled("out[thread_position_in_grid.x] = threads_per_threadgroup.x;", x).tolist() == [8] * 8
    assert doubled("const constant float* p = x; out[thread_position_in_grid.x] = p[1];", x[:7]).tolist() == [1] * 8
    assert doubled("out[thread_position_in_grid.x] = x;", mx.array(5.0)).tolist() == [5] * 8


@pytest.mark.parametrize(
    ("body", "x", "words"),
    [
        ("const device float* p = x; out[thread_position_in_grid.x] = p[0];", 7, "Unable to build .*\\n.*constant"),
        ("out[thread_position_in_grid.x] = undeclared;", 8, "Unable to build .*\\n.*undeclared"),
        ("out[thread_position_in_grid.x] = x[8];", 8, "outside|bounds"),
    ],
)
def test_the_stand_in_fails_when_it_is_evaluated(body: str, x: int, words: str) -> None:
    host = EmulatedMlxHost()
    kernel = host.metal_kernel("late", ["x"], ["out"], body, "", False)
    (out,) = kernel(
        inputs=[mx.ones(x)], output_shapes=[(8,)], output_dtypes=[mx.float32], grid=(8, 1, 1), threadgroup=(8, 1, 1)
    )
    with pytest.raises(RuntimeError, match=words):
        mx.eval(out)
    assert not host.ran
