"""The Metal kernels as the extension launches them on a GPU stream; imported with the first such program."""

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

from .. import _operations
from .._metal.api.key_words import key_words
from .._metal.metal.op_launches import CONTIGUOUS as CONTIGUOUS
from .._metal.metal.op_launches import Launch, strides_of, with_strides
from .._metal.metal.params import COUNT, PARAMS
from .._metal.metal.probe import smallest_launch
from .._metal.metal.source import Instance, entry_point, opening
from .._metal.plan.programs import MetalLaunches
from .._metal.plan.verdicts import Failure, Learned, quoted
from .._metal.problem.ops import FUSED
from .._metal.problem.problem import Problem
from .extension import DTYPES, ExtensionHost, Tensor, Tensors, specs

# After the parameters of params.h: for each stride block the stride of its tensor's channels.
_FIRST_BLOCK, _BLOCK = PARAMS["kQueryStride"]
_BLOCKS = sum(count == _BLOCK for _, count in PARAMS.values())
PARAMS_STRUCT = f"""namespace na {{
struct Params {{
  const device long* values;
  METAL_FUNC long operator[](int at) const thread {{ return values[at]; }}
  METAL_FUNC long channel(int block) const thread {{
    return values[kParamCount + (block - kQueryStride) / {_BLOCK}];
  }}
}};
}}  // namespace na
"""


def packed(key_mask: mx.array, stream: mx.Stream) -> mx.array:
    """A key mask as the kernels read it. Derivatives get the words that the primitive got."""
    with mx.stream(stream):
        return key_words(_operations, key_mask) if key_mask.dtype == mx.bool_ else key_mask


def proved_launches(
    host: ExtensionHost, stream: mx.Stream, program: MetalLaunches, inputs: Tensors
) -> tuple[list[Any], Tensors]:
    """The launches of a program, whose kernels are known to run, and the tensors that pass from one to another."""
    kernels = [_proved_kernel(host, launch, stream) for launch in program.launches]
    return launches_of(host, kernels, program.launches, inputs, [output.name for output in program.outputs])


def _proved_kernel(host: ExtensionHost, launch: Launch, stream: mx.Stream) -> Any:
    """The kernel of a launch, whose smallest launch was evaluated once.

    MLX is lazy: otherwise a failure would only appear in the user's ``mx.eval``, too late to take another backend.
    """
    instance = launch.instance

    def proved() -> Any:
        kernel = host.found.Kernel(instance.name, library(instance))
        try:
            _launch_smallest(host, kernel, instance, stream)
        except (RuntimeError, ValueError) as error:  # what MLX raises for a kernel it cannot build or launch
            raise Learned(Failure(launch, "run", quoted(error))) from error
        return kernel

    return host.kernels.get_or_make_once(instance, proved)


def _launch_smallest(host: ExtensionHost, kernel: Any, instance: Instance, stream: mx.Stream) -> None:
    launch, shapes = smallest_launch(instance)
    kinds = {a.name: instance.dtype_of(a) for a in instance.arguments}
    given = {name: mx.zeros(shape, DTYPES[kinds[name]]) for name, shape in shapes.items()}
    outputs = [(output.name, output.shape, DTYPES[output.dtype]) for output in launch.outputs]
    launches, _ = launches_of(host, [kernel], [launch], specs(given), [name for name, *_ in outputs])
    # Any problem will do: launches on a GPU carry their own parameters.
    one = (1,)
    problem = Problem(FUSED.name, 1, one, one, 1, 1, 1, 1, one, one, one, (False,), 1.0, instance.dtype)
    plan = host.found.plan(problem, FUSED.forward, specs(given), outputs, [], launches, b"")
    mx.eval(host.found.apply(plan, list(given.values()), stream))


def launches_of(
    host: ExtensionHost, kernels: Sequence[Any], planned: Sequence[Launch], inputs: Tensors, outputs: Sequence[str]
) -> tuple[list[Any], Tensors]:
    """The extension's own form of the launches, and the tensors that pass from one launch to another.

    A plan's tensors are numbered: inputs, then ``outputs`` (their names), then these.
    """
    shapes = {name: shape for name, shape, _ in inputs}
    scratch: list[Tensor] = []
    indices = {name: index for index, name in enumerate([*shapes, *outputs])}
    launches = []
    for kernel, launch in zip(kernels, planned, strict=True):
        for output in launch.outputs:
            shapes[output.name] = output.shape
            if output.name not in indices:
                indices[output.name] = len(indices)
                scratch.append((output.name, output.shape, DTYPES[output.dtype]))
        launches.append(host.found.Launch(kernel, *_launch(launch, shapes, indices)))
    return launches, tuple(scratch)


def _launch(launch: Launch, shapes: Mapping[str, tuple[int, ...]], indices: Mapping[str, int]) -> tuple[Any, ...]:
    """What the extension's Launch is made of, besides the kernel."""
    instance = launch.instance
    bound = dict(launch.inputs) | {output.argument: output.name for output in launch.outputs}
    # Strides that are known by now: of all tensors but the user's own.
    known = {argument: strides_of(shapes[name]) for argument, name in bound.items() if argument not in instance.strided}
    buffers = [(-1 if a.name == "prm" else indices[bound[a.name]], a.output) for a in instance.arguments]
    strided = []
    for argument in instance.strided:
        first, _ = PARAMS[launch.stride_params[argument]]
        strided.append((indices[bound[argument]], first, COUNT + (first - _FIRST_BLOCK) // _BLOCK))
    params = [*with_strides(launch, known), *[1] * _BLOCKS]
    return launch.grid, launch.threads, params, buffers, strided


def library(instance: Instance) -> str:
    """The text that a GPU compiles for ``instance``."""
    return opening((instance,), PARAMS_STRUCT) + entry_point(instance)
