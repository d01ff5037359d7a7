"""Runs the kernels as C++ primitives: the CPU kernels on a CPU stream, the Metal kernels on a GPU stream.

The extension (``csrc/``, the module ``_ext``) only launches. What runs is decided by the planner and told to it as
an ``_ext.Plan``; for derivatives and mapping the primitive asks :mod:`.._autodiff`. Plans are plain data and own
nothing of Python's, for MLX may drop the last reference on a stream's thread while the main thread waits for that one
with the interpreter's lock in its hand. The extension fits one release of MLX and one version of the sources: it is
loaded only where they match.
"""

import threading
from collections.abc import Hashable, Mapping, Sequence
from functools import cache, lru_cache
from importlib import import_module
from typing import Any, Protocol

import mlx.core as mx

from .. import _digests
from .._metal.api.recall import Recall, Signature
from .._metal.metal import steps as programs
from .._metal.metal.probe import smallest_launch
from .._metal.metal.slots import COUNT, SLOTS
from .._metal.metal.source import OPENING, Instance, entry_point, headers
from .._metal.metal.steps import CONTIGUOUS, RESULTS, Step, strides_of, with_strides
from .._metal.plan import verdicts
from .._metal.plan.backends import quoted
from .._metal.plan.plan import Plan, most_simdgroups
from .._metal.problem.problem import Problem

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16, "float64": mx.float64}
# Behind the slots of params.h: for each stride block how far apart its tensor's channels lie.
_FIRST_BLOCK, _BLOCK = SLOTS["kQueryStride"]
_BLOCKS = sum(count == _BLOCK for _, count in SLOTS.values())
PARAMS = f"""namespace na {{
struct Params {{
  const device long* slots;
  METAL_FUNC long operator[](int slot) const thread {{ return slots[slot]; }}
  METAL_FUNC long channel(int block) const thread {{
    return slots[kSlots + (block - kQueryStride) / {_BLOCK}];
  }}
}};
}}  // namespace na
"""

Tensor = tuple[str, tuple[int, ...], mx.Dtype]  # as the extension is told of it
Tensors = tuple[Tensor, ...]


class Host(Hashable, Protocol):
    """One call of an op or of its gradient, as the primitive knows it."""

    @property
    def problem(self) -> Problem:
        """What it computes."""

    @property
    def stream(self) -> mx.Stream:
        """Where it runs."""

    def planned(self) -> Plan:
        """Its plan."""

    def told(self) -> bytes:
        """What the primitive says of it when it asks :mod:`natten_mlx._autodiff` for a derivative, on any stream."""


# --- the extension -----------------------------------------------------------------------------------


@cache
def _found() -> Any:
    """The extension, or why there is none, in one sentence; ValueError if an environment variable that it reads is set
    to something that it cannot use.
    """
    try:
        built_with = import_module(".._build_info", __package__).MLX_VERSION
    except ModuleNotFoundError:
        return (
            "this installation of natten-mlx has no C++ extension: where it was built, CMake, a C++20 compiler or the "
            "matching MLX was missing"
        )
    # Before it is loaded: MLX's C++ interface changes with every release, and a wrong call of it may crash.
    present: str = mx.__version__  # type: ignore[attr-defined]  # MLX's stub forgets it
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


def unavailable_reason() -> str | None:
    """Why the C++ extension is not there; None if it is."""
    found = _found()
    return found if isinstance(found, str) else None


def missing(stream: mx.Stream) -> str | None:
    """Why the extension's kernels cannot run on ``stream``; None if they can."""
    reason = unavailable_reason()
    if reason is None and stream.device != mx.cpu and not mx.metal.is_available():
        return "this build of MLX has no Metal back-end"
    return reason


# --- calls that came before --------------------------------------------------------------------------

remembered = Recall()


def signature(
    face: str, backend: str, stream: mx.Stream, tensors: tuple[Any, ...], arguments: Hashable | None
) -> Signature | None:
    """What two calls have in common that pass the same checks and run the same plan; None: not worth keeping.

    tensors: query, key, value, and three optional ones. arguments: all others, as values that cannot change, or None.
    """
    extension = _found()
    query, key, value, keys, values, rpb = tensors
    if keys is not None or values is not None or rpb is not None or arguments is None or type(extension) is str:
        return None
    try:
        return face, backend, extension.likeness(query, key, value, stream), arguments
    except TypeError:  # not arrays
        return None


def remember(signature: Signature, host: Host, tensors: Mapping[str, mx.array]) -> None:
    """Keep the plan of a call that has just been built."""
    remembered.keep(signature, _forward_plan(host, _on_gpu(host), _told(tensors)))


def repeat(plan: Any, tensors: Sequence[mx.array], stream: mx.Stream) -> list[mx.array]:
    """The outputs of a plan that was recalled."""
    found: list[mx.array] = _found().apply(plan, tensors, stream)
    return found


# --- plans -------------------------------------------------------------------------------------------


def forward(host: Host, tensors: Mapping[str, mx.array]) -> list[mx.array]:
    """The op's outputs: out and lse, or the split op's only one."""
    given = _readable(host, tensors)
    return _apply(_forward_plan(host, _on_gpu(host), _told(given)), given, host.stream)


def backward(
    host: Host, grads: Sequence[mx.array], tensors: dict[str, mx.array], outputs: Sequence[mx.array]
) -> list[mx.array]:
    """Gradients of the inputs that are given, in their order and dtypes."""
    p, names = host.problem, RESULTS[host.problem.op]
    # MLX lets a cotangent have another dtype than its output.
    dtypes = {"lse": _accumulated(p)}
    named = {
        f"{name}_grad": grad.astype(dtypes.get(name, DTYPES[p.dtype]), stream=host.stream)
        for name, grad in zip(names, grads, strict=True)
    }
    # In the order of the host's arrays, which the primitive asks it to map. Only the fused op's outputs are read again.
    given = named | tensors | (dict(zip(names, outputs, strict=True)) if len(names) > 1 else {})
    given = _readable(host, given)
    found = _apply(_backward_plan(host, _on_gpu(host), _told(given), tuple(tensors)), given, host.stream)
    return [grad.astype(t.dtype, stream=host.stream) for grad, t in zip(found, tensors.values(), strict=True)]


def _told(tensors: Mapping[str, mx.array]) -> Tensors:
    return tuple((name, tensor.shape, tensor.dtype) for name, tensor in tensors.items())


def _apply(plan: Any, given: Mapping[str, mx.array], stream: mx.Stream) -> list[mx.array]:
    found: list[mx.array] = _found().apply(plan, list(given.values()), stream)
    return found


def _on_gpu(host: Host) -> bool:
    return host.stream.device != mx.cpu


def _accumulated(problem: Problem) -> mx.Dtype:
    """The dtype of sums, lse and bias."""
    return mx.float64 if problem.dtype == "float64" else mx.float32


def _readable(host: Host, tensors: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Tensors as the kernels read them: any strides, or contiguous; the bias in the dtype of sums."""
    contiguous = CONTIGUOUS if _on_gpu(host) else ("rpb",)
    given = dict(tensors)
    for name in contiguous:
        if name in given:
            array = given[name]
            array = array.astype(_accumulated(host.problem), stream=host.stream) if name == "rpb" else array
            given[name] = mx.contiguous(array, stream=host.stream)
    return given


@lru_cache(maxsize=1024)
def _forward_plan(host: Host, on_gpu: bool, inputs: Tensors) -> Any:
    p = host.problem
    rows, dtype = (p.batch, *p.query_shape, p.heads), DTYPES[p.dtype]
    made = {
        "out": ("out", (*rows, p.head_dim_v), dtype),
        "lse": ("lse", rows, _accumulated(p)),
        "logits": ("logits", (*rows, p.slots), dtype),
    }
    function = "forward" if p.op in ("na", "attention") else p.op
    return _plan(host, function, inputs, [made[name] for name in RESULTS[p.op]], host.planned().forward)


@lru_cache(maxsize=1024)
def _backward_plan(host: Host, on_gpu: bool, inputs: Tensors, names: tuple[str, ...]) -> Any:
    p = host.problem
    function = "backward" if p.op in ("na", "attention") else f"{p.op}_backward"
    made = [(f"{name}_grad", shape, dtype) for name, shape, dtype in inputs if name in names]
    steps: tuple[Step, ...] = ()
    if on_gpu:
        steps = programs.backward(p, len(RESULTS[p.op]) > 1, most_simdgroups(p, host.planned().path))
    return _plan(host, function, inputs, made, steps)


def _plan(host: Host, function: str, inputs: Tensors, outputs: list[Tensor], steps: Sequence[Step]) -> Any:
    for step in steps:
        _prove(step, host.stream)
    launches, scratch = launches_of(steps, inputs, [name for name, *_ in outputs])
    return _found().plan(host.problem, function, inputs, outputs, scratch, launches, host.told())


# --- launches on a GPU -------------------------------------------------------------------------------

_lock = threading.Lock()
_proved: set[Instance] = set()


def _prove(step: Step, stream: mx.Stream) -> None:
    """Evaluate the kernel's smallest launch, once; KernelFailure, the same each time, if it does not run.

    MLX is lazy: otherwise it would fail in the user's ``mx.eval``, too late to take another path.
    """
    instance = step.instance
    with _lock:
        known = verdicts.failure_of((step,))
        if known is not None:
            raise known
        if instance not in _proved:
            try:
                _launch_smallest(instance, stream)
                _proved.add(instance)
            except (RuntimeError, ValueError) as error:  # what MLX raises for a kernel it cannot build or launch
                raise verdicts.record(step, "run", quoted(error)) from error


def _launch_smallest(instance: Instance, stream: mx.Stream) -> None:
    step, shapes = smallest_launch(instance)
    kinds = {a.name: instance.dtype if a.kind == "T" else "float32" for a in instance.arguments}
    given = {name: mx.zeros(shape, DTYPES[kinds[name]]) for name, shape in shapes.items()}
    outputs = [(output.name, output.shape, DTYPES[output.dtype]) for output in step.outputs]
    launches, _ = launches_of([step], _told(given), [name for name, *_ in outputs])
    # Any problem will do: a GPU's launch carries its own.
    one = (1,)
    problem = Problem("na", 1, one, one, 1, 1, 1, 1, one, one, one, (False,), 1.0, instance.dtype)
    plan = _found().plan(problem, "forward", _told(given), outputs, [], launches, b"")
    mx.eval(_apply(plan, given, stream))


def launches_of(steps: Sequence[Step], inputs: Tensors, outputs: Sequence[str]) -> tuple[list[Any], list[Tensor]]:
    """``steps`` as the extension launches them, and the tensors that live from one to another.

    A plan's tensors are numbered: inputs, then ``outputs`` (their names), then these.
    """
    shapes = {name: shape for name, shape, _ in inputs}
    scratch = []
    places = {name: place for place, name in enumerate([*shapes, *outputs])}
    launches = []
    for step in steps:
        for output in step.outputs:
            shapes[output.name] = output.shape
            if output.name not in places:
                places[output.name] = len(places)
                scratch.append((output.name, output.shape, DTYPES[output.dtype]))
        launches.append(_launch(step, shapes, places))
    return launches, scratch


def _launch(step: Step, shapes: Mapping[str, tuple[int, ...]], places: Mapping[str, int]) -> Any:
    instance = step.instance
    bound = dict(step.inputs) | {output.argument: output.name for output in step.outputs}
    # Strides that are known by now: of all tensors but the user's own.
    known = {argument: strides_of(shapes[name]) for argument, name in bound.items() if argument not in instance.strided}
    buffers = [(-1 if a.name == "prm" else places[bound[a.name]], a.output) for a in instance.arguments]
    strided = []
    for argument in instance.strided:
        slot, _ = SLOTS[step.stride_slots[argument]]
        strided.append((places[bound[argument]], slot, COUNT + (slot - _FIRST_BLOCK) // _BLOCK))
    params = [*with_strides(step, known), *[1] * _BLOCKS]
    return _found().Launch(_kernel(instance), step.grid, step.threads, params, buffers, strided)


@lru_cache(maxsize=256)
def _kernel(instance: Instance) -> Any:
    return _found().Kernel(instance.name, library(instance))


def library(instance: Instance) -> str:
    """The text that a GPU compiles for ``instance``."""
    return OPENING + headers(PARAMS) + entry_point(instance)
