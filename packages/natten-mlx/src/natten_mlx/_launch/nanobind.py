"""Runs the kernels as C++ primitives: the CPU kernels on a CPU stream, the Metal kernels on a GPU stream.

The extension (``csrc/``, the module ``_ext``) only launches. The planner decides what runs, and passes it on as
an ``_ext.Plan``; for derivatives and mapping the primitive calls :mod:`.._autodiff`. Plans are plain data and own no
Python objects, because MLX may drop the last reference on a stream's thread while the main thread waits for that thread
and holds the interpreter lock. The extension fits one release of MLX and one version of the sources: it is
loaded only where they match.
"""

from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from typing import Any, Protocol

import mlx.core as mx

from .. import _digests
from .._metal.api.recall import Recall, Signature
from .._metal.caches import Cache
from .._metal.metal.op_launches import CONTIGUOUS, Launch, strides_of, with_strides
from .._metal.metal.params import COUNT, PARAMS
from .._metal.metal.probe import smallest_launch
from .._metal.metal.source import OPENING, Instance, entry_point, headers
from .._metal.plan.programs import MetalLaunches, Program
from .._metal.plan.verdicts import Failure, Learned, quoted
from .._metal.problem.ops import FUSED, sum_dtype
from .._metal.problem.problem import Problem

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16, "float64": mx.float64}
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

Tensor = tuple[str, tuple[int, ...], mx.Dtype]  # the specification that the extension gets
Tensors = tuple[Tensor, ...]


class Call(Protocol):
    """One call of an op or of its gradient, as the primitive knows it."""

    @property
    def program(self) -> Program:
        """What it computes."""

    @property
    def stream(self) -> mx.Stream:
        """Where it runs."""

    @property
    def key(self) -> Hashable:
        """Equal for calls that differ only in the stream."""

    def encoded(self) -> bytes:
        """The bytes by which :mod:`natten_mlx._autodiff` finds the call again when the primitive needs a derivative."""


class ExtensionHost:
    """The extension, looked for once, and what was made for it: plans of calls, and kernels that ran once."""

    def __init__(self) -> None:
        self.remembered = Recall("remembered calls")
        self.plans = Cache("extension plans", 1024)
        self.kernels = Cache("extension kernels", 1024)

    @cached_property
    def found(self) -> Any:
        """The extension, or why there is none, in one sentence; ValueError if an environment variable that it reads is
        set to something that it cannot use.
        """
        return _find()

    def unavailable_reason(self) -> str | None:
        """Why the C++ extension is not available; None if it is."""
        return self.found if isinstance(self.found, str) else None

    def missing(self, stream: mx.Stream) -> str | None:
        """Why the extension's kernels cannot run on ``stream``; None if they can."""
        reason = self.unavailable_reason()
        if reason is None and stream.device != mx.cpu and not mx.metal.is_available():
            return "this build of MLX has no Metal back-end"
        return reason

    # --- recalled calls ------------------------------------------------------------------------------

    def signature(
        self, face: str, backend: str, stream: mx.Stream, tensors: tuple[Any, ...], arguments: Hashable | None
    ) -> Signature | None:
        """What decides a call's checks and plan, as a key; None if the call is not kept.

        tensors: query, key, value, and three optional ones. arguments: all others, as values that cannot change, or
        None.
        """
        extension = self.found
        query, key, value, keys, values, rpb = tensors
        if keys is not None or values is not None or rpb is not None or arguments is None or type(extension) is str:
            return None
        try:
            return face, backend, extension.metadata_key(query, key, value, stream), arguments
        except TypeError:  # not arrays
            return None

    def remember(self, signature: Signature, call: Call, tensors: Mapping[str, mx.array]) -> None:
        """Keep the plan of a call that has just been built, if the extension runs it."""
        plan = self.plans.get((call.key, _specs(tensors)))
        if plan is not None:
            self.remembered.keep(signature, plan)


def repeat(plan: Any, tensors: Sequence[mx.array], stream: mx.Stream, host: ExtensionHost) -> list[mx.array]:
    """The outputs of a recalled plan."""
    found: list[mx.array] = host.found.apply(plan, tensors, stream)
    return found


def _find() -> Any:
    try:
        built_with = import_module(".._build_info", __package__).MLX_VERSION
    except ModuleNotFoundError:
        return (
            "this installation of natten-mlx has no C++ extension: where it was built, CMake, a C++20 compiler or the "
            "matching MLX was missing"
        )
    # Before it is loaded: MLX's C++ interface changes with every release, and a wrong call of it may crash.
    present: str = mx.__version__  # type: ignore[attr-defined]  # missing in MLX's stubs
    if built_with != present:
        return f"the C++ extension was built for MLX {built_with} and cannot run with MLX {present}"
    try:
        extension = import_module(".._ext", __package__)
    except ImportError as error:
        return f"the C++ extension does not load: {quoted(error)}"
    if extension.kernels_digest != _digests.kernels_digest():
        return "the C++ extension was built from other kernel sources than this installation has: install it again"
    if _digests.sources_digest() not in (None, extension.sources_digest):
        return "the C++ extension was built from other sources than csrc has now: build it again"
    complaint = extension.complaint()
    if complaint is not None:
        raise ValueError(complaint)
    return extension


# --- calls -------------------------------------------------------------------------------------------


def run(call: Call, tensors: Mapping[str, mx.array], host: ExtensionHost) -> dict[str, mx.array]:
    """The results of a call's program by name, lazy. tensors: in the order in which the primitive has them mapped.

    Learned, before anything is launched, if a Metal kernel does not run.
    """
    program = call.program
    given = _readable(program, tensors, call.stream)
    inputs = _specs(given)
    plan = host.plans.get_or_make((call.key, inputs), lambda: _plan(host, call, inputs))
    found = host.found.apply(plan, list(given.values()), call.stream)
    return {output.name: array for output, array in zip(program.outputs, found, strict=True)}


def _specs(tensors: Mapping[str, mx.array]) -> Tensors:
    return tuple((name, tensor.shape, tensor.dtype) for name, tensor in tensors.items())


def _readable(program: Program, tensors: Mapping[str, mx.array], stream: mx.Stream) -> dict[str, mx.array]:
    """Tensors as the kernels read them: any strides, or contiguous; rpb and cotangents in the dtype that they need."""
    problem, given = program.problem, dict(tensors)
    # MLX lets a cotangent have another dtype than its output.
    dtypes = {operand.gradient: operand.dtype(problem) for operand in problem.record.outputs}
    dtypes["rpb"] = sum_dtype(problem.dtype)
    for name in dtypes.keys() & given.keys():
        given[name] = given[name].astype(DTYPES[dtypes[name]], stream=stream)
    for name in (CONTIGUOUS if isinstance(program, MetalLaunches) else {"rpb"}) & given.keys():
        given[name] = mx.contiguous(given[name], stream=stream)
    return given


def _plan(host: ExtensionHost, call: Call, inputs: Tensors) -> Any:
    program = call.program
    outputs = [(output.name, output.shape, DTYPES[output.dtype]) for output in program.outputs]
    planned = program.launches if isinstance(program, MetalLaunches) else ()
    kernels = [_proved_kernel(host, launch, call.stream) for launch in planned]
    launches, scratch = launches_of(host, kernels, planned, inputs, [name for name, *_ in outputs])
    return host.found.plan(program.problem, program.function, inputs, outputs, scratch, launches, call.encoded())


# --- launches on a GPU -------------------------------------------------------------------------------


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
    kinds = {a.name: instance.dtype if a.kind == "T" else "float32" for a in instance.arguments}
    given = {name: mx.zeros(shape, DTYPES[kinds[name]]) for name, shape in shapes.items()}
    outputs = [(output.name, output.shape, DTYPES[output.dtype]) for output in launch.outputs]
    launches, _ = launches_of(host, [kernel], [launch], _specs(given), [name for name, *_ in outputs])
    # Any problem will do: launches on a GPU carry their own parameters.
    one = (1,)
    problem = Problem(FUSED.name, 1, one, one, 1, 1, 1, 1, one, one, one, (False,), 1.0, instance.dtype)
    plan = host.found.plan(problem, FUSED.forward, _specs(given), outputs, [], launches, b"")
    mx.eval(host.found.apply(plan, list(given.values()), stream))


def launches_of(
    host: ExtensionHost, kernels: Sequence[Any], planned: Sequence[Launch], inputs: Tensors, outputs: Sequence[str]
) -> tuple[list[Any], list[Tensor]]:
    """The extension's own form of the launches, and the tensors that pass from one launch to another.

    A plan's tensors are numbered: inputs, then ``outputs`` (their names), then these.
    """
    shapes = {name: shape for name, shape, _ in inputs}
    scratch = []
    indices = {name: index for index, name in enumerate([*shapes, *outputs])}
    launches = []
    for kernel, launch in zip(kernels, planned, strict=True):
        for output in launch.outputs:
            shapes[output.name] = output.shape
            if output.name not in indices:
                indices[output.name] = len(indices)
                scratch.append((output.name, output.shape, DTYPES[output.dtype]))
        launches.append(host.found.Launch(kernel, *_launch(launch, shapes, indices)))
    return launches, scratch


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
    return OPENING + headers(PARAMS_STRUCT) + entry_point(instance)
