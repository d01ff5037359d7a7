"""MLX's side of the shared index arithmetic, and the shared description of an array and a stream."""

import math
from functools import partial
from typing import Any, TypeAlias

import mlx.core as mx

from ._metal.problem import checks
from ._metal.problem.problem import TensorSpec

Optional = mx.array | None
# What a public op takes as ``stream``; None is the thread's default stream.
StreamOrDevice: TypeAlias = "mx.Stream | mx.ThreadLocalStream | mx.Device | mx.DeviceType | None"
_ThreadLocalStream: Any = getattr(mx, "ThreadLocalStream", ())  # not every release of MLX has them


class MlxTables:
    """The array namespace of :mod:`natten_metal.plan.blocks`: 64-bit integers on the current stream."""

    arange = staticmethod(partial(mx.arange, dtype=mx.int64))
    minimum, maximum, where = staticmethod(mx.minimum), staticmethod(mx.maximum), staticmethod(mx.where)


def spec(face: str, name: str, tensor: Any) -> TensorSpec:
    """What the rules need to know about ``tensor``; TypeError if it is not a floating-point array."""
    if not isinstance(tensor, mx.array):
        checks.reject_type(face, name, tensor, "a tensor of this package's framework")
    dtype = str(tensor.dtype).removeprefix("mlx.core.")
    checks.require_dtype(face, name, dtype)
    return TensorSpec(tuple(tensor.shape), dtype)


def stream_of(face: str, stream: Any) -> mx.Stream:
    """The stream that a call runs on: ``stream`` (a thread-local one's for this thread), that device's default stream,
    or the default stream."""
    if stream is None:
        return mx.default_stream(mx.default_device())
    if isinstance(stream, mx.Stream):
        return stream
    if isinstance(stream, _ThreadLocalStream):
        with mx.stream(stream):  # the only public way to this thread's stream
            return mx.default_stream(stream.device)
    if not isinstance(stream, (mx.Device, mx.DeviceType)):
        checks.reject_type(face, "stream", stream, "a stream, a device or None")
    return mx.default_stream(stream)


def constant(tensor: mx.array) -> mx.array:
    """``tensor``, computed now and made from its values again, so that what is kept does not hold on to its graph.

    While MLX traces, an evaluated array may keep its graph, and a graph belongs to the stream of one thread.
    """
    # MLX 0.31.0 reads contiguous buffers alone.
    return mx.array(memoryview(mx.contiguous(tensor)))  # type: ignore[arg-type]  # it has the buffer protocol


def fixed_shape(tensor: mx.array) -> mx.array:
    """``tensor`` unchanged, through an operation for which ``mx.compile(shapeless=True)`` cannot infer a shape.

    What is made for the sizes of a traced call fits no others, so MLX must raise rather than compute a wrong size.
    """
    return mx.pad(tensor, [*[(0, 0)] * (tensor.ndim - 1), (0, 1)])[..., :-1]


def made_for(tensor: mx.array, constant: mx.array) -> mx.array:
    """``constant``, whose shape was taken from ``tensor``, made to depend on it: see :func:`fixed_shape`.

    No element of ``tensor`` is read, and its gradient is 0.
    """
    return constant + fixed_shape(tensor[..., :0]).sum().astype(constant.dtype)


def exp(tensor: mx.array) -> mx.array:
    """e to the power of each element. On a CPU ``mx.exp`` computes float64 in float32, a power does not."""
    return mx.power(mx.array(math.e, mx.float64), tensor) if tensor.dtype == mx.float64 else mx.exp(tensor)
