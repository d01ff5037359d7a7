"""Runs the Metal kernels on MLX arrays, through ``mx.fast.metal_kernel``.

A plan's steps (:mod:`natten_metal.metal.steps`) name their tensors; here they become nodes of MLX's graph. Arrays
are lazy: their strides are known only inside the kernel (:mod:`natten_metal.metal.source`), and a kernel that does
not compile would fail in the user's ``mx.eval``. So every instantiation is proved once before it is used: its
smallest launch is evaluated at once, on arrays of its own, and only there is a failure caught.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import mlx.core as mx

from .._metal.metal import steps as programs
from .._metal.metal.probe import smallest_launch
from .._metal.metal.source import Instance, mlx_body, mlx_header
from .._metal.metal.steps import CONTIGUOUS, RESULTS, Step, strides_of, with_strides
from .._metal.plan import verdicts
from .._metal.plan.backends import quoted
from .._metal.plan.plan import Plan, most_simdgroups

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
# Elements of the smallest array that MLX hands to a kernel as device memory; smaller ones become constants.
SMALLEST = 8
KEPT_PARAMS = 512


class Host(Protocol):
    """What compiles and launches: MLX's Metal back-end, or a stand-in for it."""

    def missing(self, stream: mx.Stream) -> str | None:
        """Why kernels cannot run on ``stream``; None if they can."""

    def metal_kernel(
        self, name: str, input_names: list[str], output_names: list[str], source: str, header: str,
        ensure_row_contiguous: bool,
    ) -> Any:  # fmt: skip
        """A callable that launches the kernel, as ``mx.fast.metal_kernel`` gives it."""


class MetalHost:
    """The Apple GPU, as MLX sees it."""

    def missing(self, stream: mx.Stream) -> str | None:
        if not mx.metal.is_available():
            return "this build of MLX has no Metal back-end"
        if stream.device != mx.gpu:
            return "Metal kernels run on a GPU stream; this one is on the CPU"
        return None

    def metal_kernel(
        self, name: str, input_names: list[str], output_names: list[str], source: str, header: str,
        ensure_row_contiguous: bool,
    ) -> Any:  # fmt: skip
        return mx.fast.metal_kernel(
            name=name, input_names=input_names, output_names=output_names, source=source, header=header,
            ensure_row_contiguous=ensure_row_contiguous,
        )  # fmt: skip


# The host that launches; tests put a stand-in here.
HOST: Host = MetalHost()

# A kernel is proved under the first; its launch takes the second.
_lock, _params_lock = threading.Lock(), threading.Lock()
_kernels: dict[tuple[Host, Instance], Any] = {}
_params: OrderedDict[tuple[int, ...], mx.array] = OrderedDict()


def proved_kernel(host: Host, step: Step) -> Any:
    """The kernel of a step, known to compile and launch; KernelFailure, the same each time, if it does not."""
    instance = step.instance
    key = (host, instance)
    with _lock:
        known = verdicts.failure_of((step,))
        if known is not None:
            raise known
        if key not in _kernels:
            try:
                kernel = _kernel(host, instance)
                smallest, shapes = smallest_launch(instance)
                kinds = {a.name: instance.dtype if a.kind == "T" else "float32" for a in instance.arguments}
                given = {name: mx.zeros(shape, DTYPES[kinds[name]]) for name, shape in shapes.items()}
                mx.eval(_launch(kernel, smallest, given))
                _kernels[key] = kernel
            except (RuntimeError, ValueError) as error:  # what MLX raises for a kernel it cannot build or launch
                raise verdicts.record(step, "run", quoted(error)) from error
        return _kernels[key]


def _kernel(host: Host, instance: Instance) -> Any:
    arguments = instance.arguments
    return host.metal_kernel(
        name=instance.name,
        input_names=[a.name for a in arguments if not a.output],
        output_names=[a.name for a in arguments if a.output],
        source=mlx_body(instance),
        header=mlx_header(instance),
        ensure_row_contiguous=False,
    )


def run(steps: Sequence[Step], tensors: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Launch ``steps`` in order on the current stream; all tensors by name, results included."""
    kernels = [proved_kernel(HOST, step) for step in steps]
    known = {name: _readable(name, tensor) for name, tensor in tensors.items()}
    for step, kernel in zip(steps, kernels, strict=True):
        made = _launch(kernel, step, {argument: known[name] for argument, name in step.inputs})
        known |= {output.name: array for output, array in zip(step.outputs, made, strict=True)}
    return known


def _readable(name: str, tensor: mx.array) -> mx.array:
    """A tensor as the kernels read it: any strides, or contiguous; the bias in float32."""
    if name == "rpb":
        tensor = tensor.astype(mx.float32)
    return mx.contiguous(tensor) if name in CONTIGUOUS else tensor


def _launch(kernel: Any, step: Step, bound: Mapping[str, mx.array]) -> list[mx.array]:
    """The outputs of a step. bound: its inputs by argument."""
    instance = step.instance
    shapes = {argument: array.shape for argument, array in bound.items() if argument not in instance.strided}
    shapes |= {output.argument: output.shape for output in step.outputs}
    params = _params_array(with_strides(step, {name: strides_of(tuple(shape)) for name, shape in shapes.items()}))
    inputs = [
        params if a.name == "prm" else _device_memory(bound[a.name]) if a.kind == "float" else bound[a.name]
        for a in instance.arguments
        if not a.output
    ]
    made: list[mx.array] = kernel(
        inputs=inputs,
        output_shapes=[output.shape for output in step.outputs],
        output_dtypes=[DTYPES[output.dtype] for output in step.outputs],
        grid=(step.grid[0] * step.threads, step.grid[1], step.grid[2]),
        threadgroup=(step.threads, 1, 1),
    )
    return made


def _device_memory(array: mx.array) -> mx.array:
    """A contiguous array of floats, flat and with enough elements to be bound as device memory."""
    flat = array.reshape(-1)
    return flat if flat.size >= SMALLEST else mx.pad(flat, (0, SMALLEST - flat.size))


def _params_array(slots: tuple[int, ...]) -> mx.array:
    """The parameter array; kept, because making one is a copy. Made of numbers, it belongs to no trace or stream."""
    with _params_lock:
        found = _params.get(slots)
        if found is None:
            found = _params[slots] = mx.array(slots, dtype=mx.int64)
            mx.eval(found)
            if len(_params) > KEPT_PARAMS:
                _params.popitem(last=False)
        else:
            _params.move_to_end(slots)
        return found


def forward(plan: Plan, tensors: Mapping[str, mx.array]) -> tuple[mx.array, ...]:
    """The op's outputs: out and lse, or the split op's only one."""
    made = run(plan.forward, tensors)
    return tuple(made[name] for name in RESULTS[plan.problem.op])


def backward(
    plan: Plan, grads: Sequence[mx.array], tensors: dict[str, mx.array], outputs: Sequence[mx.array]
) -> tuple[mx.array, ...]:
    """Gradients of the inputs that are given, in their order and dtypes."""
    problem = plan.problem
    steps = programs.backward(problem, len(grads) > 1, most_simdgroups(problem, plan.path))
    made = run(steps, programs.backward_tensors(problem.op, tensors, grads, outputs))
    return tuple(made[f"{name}_grad"].astype(tensor.dtype) for name, tensor in tensors.items())
