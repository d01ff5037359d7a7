"""Runs the Metal kernels on MLX arrays, through ``mx.fast.metal_kernel``.

A program's launches (:mod:`natten_metal.metal.op_launches`) name their tensors; here they become nodes of MLX's
graph. Arrays are lazy: their strides are known only inside the kernel (:mod:`natten_metal.metal.source`), and a kernel
that does not compile would fail in the user's ``mx.eval``. So each instantiation is tried once before it is used: its
smallest launch is evaluated at once, on arrays of its own, and a failure is caught only there.
"""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from .. import _operations
from .._metal.api.key_words import key_words
from .._metal.metal.op_launches import CONTIGUOUS, Launch, strides_of, with_strides
from .._metal.metal.probe import smallest_launch
from .._metal.metal.source import Instance, mlx_body, mlx_header
from .._metal.plan.programs import MetalLaunches
from .._metal.plan.verdicts import Failure, Learned, quoted
from .fast_metal_host import SMALLEST, MetalHost

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16, "int32": mx.int32}


def run(program: MetalLaunches, tensors: Mapping[str, mx.array], host: MetalHost) -> dict[str, mx.array]:
    """Run the launches in order on the current stream; the program's results by name.

    Learned, before anything is launched, if a kernel does not run.
    """
    kernels = [_proved_kernel(host, launch) for launch in program.launches]
    known = {name: _readable(name, tensor, program.in_rows) for name, tensor in tensors.items()}
    for launch, kernel in zip(program.launches, kernels, strict=True):
        made = _launch(host, kernel, launch, {argument: known[name] for argument, name in launch.inputs})
        known |= {output.name: array for output, array in zip(launch.outputs, made, strict=True)}
    return {output.name: known[output.name] for output in program.outputs}


def _proved_kernel(host: MetalHost, launch: Launch) -> Any:
    """The kernel of a launch, known to compile and launch."""
    instance = launch.instance

    def proved() -> Any:
        try:
            kernel = _kernel(host, instance)
            smallest, shapes = smallest_launch(instance)
            kinds = {a.name: instance.dtype_of(a) for a in instance.arguments}
            given = {name: mx.zeros(shape, DTYPES[kinds[name]]) for name, shape in shapes.items()}
            mx.eval(_launch(host, kernel, smallest, given))
        except (RuntimeError, ValueError) as error:  # what MLX raises for a kernel it cannot build or launch
            raise Learned(Failure(launch, "run", quoted(error))) from error
        return kernel

    return host.kernels.get_or_make_once(instance, proved)


def _kernel(host: MetalHost, instance: Instance) -> Any:
    arguments = instance.arguments
    return host.metal_kernel(
        name=instance.name,
        input_names=[a.name for a in arguments if not a.output],
        output_names=[a.name for a in arguments if a.output],
        source=mlx_body(instance),
        header=mlx_header(instance),
        ensure_row_contiguous=False,
    )


def _readable(name: str, tensor: mx.array, in_rows: bool) -> mx.array:
    """A tensor as the kernels read it: any strides, or contiguous; rpb in float32, a mask in bits.

    in_rows: whether products read tokens where they lie. Whether these lie so that they can is not known before MLX
    evaluates them, and then it copies nothing that is contiguous.
    """
    if name == "key_mask":
        return key_words(_operations, tensor)
    if name == "rpb":
        tensor = tensor.astype(mx.float32)
    return mx.contiguous(tensor) if in_rows or name in CONTIGUOUS else tensor


def _launch(host: MetalHost, kernel: Any, launch: Launch, bound: Mapping[str, mx.array]) -> list[mx.array]:
    """The outputs of a launch. bound: its inputs by argument."""
    instance = launch.instance
    shapes = {argument: array.shape for argument, array in bound.items() if argument not in instance.strided}
    shapes |= {output.argument: output.shape for output in launch.outputs}
    strides = {name: strides_of(tuple(shape)) for name, shape in shapes.items()}
    params = _params_array(host, with_strides(launch, strides))
    inputs = [
        params if a.name == "prm" else _device_memory(bound[a.name]) if a.kind in ("float", "int") else bound[a.name]
        for a in instance.arguments
        if not a.output
    ]
    made: list[mx.array] = kernel(
        inputs=inputs,
        output_shapes=[output.shape for output in launch.outputs],
        output_dtypes=[DTYPES[output.dtype] for output in launch.outputs],
        grid=(launch.grid[0] * launch.threads, launch.grid[1], launch.grid[2]),
        threadgroup=(launch.threads, 1, 1),
    )
    return made


def _device_memory(array: mx.array) -> mx.array:
    """A contiguous array, flat and with enough elements to be bound as device memory."""
    flat = array.reshape(-1)
    return flat if flat.size >= SMALLEST else mx.pad(flat, (0, SMALLEST - flat.size))


def _params_array(host: MetalHost, params: tuple[int, ...]) -> mx.array:
    """The parameter array; kept, because making one is a copy. Made from numbers, it belongs to no trace or stream."""

    def made() -> mx.array:
        array = mx.array(params, dtype=mx.int64)
        mx.eval(array)
        return array

    found: mx.array = host.params.get_or_make(params, made)
    return found
