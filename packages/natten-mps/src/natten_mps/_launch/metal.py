"""Runs the Metal kernels on MPS tensors, through ``torch.mps.compile_shader``.

A plan's steps (:mod:`natten_metal.metal.steps`) name their tensors; here they get strides, memory and a
launch. Kernels are compiled when first used and kept; nothing of the user's tensors is copied unless its
channels do not lie side by side.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .._metal.metal import steps as programs
from .._metal.metal.source import ITEM_SIZES, Instance, library
from .._metal.metal.steps import CONTIGUOUS, MOST_SIMDGROUPS, RESULTS, Step, fills_words, with_strides
from .._metal.plan import verdicts
from .._metal.plan.backends import quoted
from .._metal.plan.plan import Plan

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SIMD_WIDTH, WIDE_BYTES = 32, 16
KEPT_PARAMS = 512


class Host(Protocol):
    """What compiles and launches: torch's MPS backend, or a stand-in for it."""

    def missing(self, device: torch.device) -> str | None:
        """Why kernels cannot run on tensors of ``device``; None if they can."""

    def compile_shader(self, source: str) -> Any:
        """A library whose attributes are its kernels."""


class MpsHost:
    """The Apple GPU, as torch sees it."""

    def missing(self, device: torch.device) -> str | None:
        if device.type != "mps":
            return f"Metal kernels run on mps tensors; these are on {device.type}"
        if not hasattr(torch.mps, "compile_shader"):
            return f"torch {torch.__version__} has no torch.mps.compile_shader; 2.9 or newer has"
        return None

    def compile_shader(self, source: str) -> Any:
        return torch.mps.compile_shader(source)


# The host that launches; tests put a stand-in here.
HOST: Host = MpsHost()

_lock = threading.Lock()
_kernels: dict[tuple[Host, Instance], Any] = {}
_params: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()


def kernel(host: Host, step: Step) -> Any:
    """The compiled kernel of a step; KernelFailure, the same each time, if it does not compile."""
    instance = step.instance
    key = (host, instance)
    known = verdicts.failure_of((step,))
    if known is not None:
        raise known
    with _lock:
        if key not in _kernels:
            try:
                _kernels[key] = getattr(host.compile_shader(library((instance,))), instance.name)
            except (SyntaxError, RuntimeError) as error:  # what compile_shader raises for a source it rejects
                raise verdicts.record(step, "compile", quoted(error)) from error
        return _kernels[key]


def run(make: Callable[[int], Sequence[Step]], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Launch the steps of ``make(simdgroups)`` in order; all tensors by name, results included.

    If a kernel needs more registers than its threadgroup leaves, the steps are made anew with fewer
    simdgroups.
    """
    host, most = HOST, MOST_SIMDGROUPS
    known = {name: _readable(name, tensor) for name, tensor in tensors.items()}
    while True:
        steps = [_with_copies(step, known) for step in make(most)]
        room = min(int(kernel(host, step).max_threads_per_threadgroup) // SIMD_WIDTH for step in steps)
        if most == 1 or room >= max(step.threads // SIMD_WIDTH for step in steps):
            break
        most = max(1, min(room, most - 1))
    for step in steps:
        _launch(host, step, known)
    return known


def _readable(name: str, tensor: Tensor) -> Tensor:
    """A tensor as the kernels read it: any strides but the channels', or contiguous; the bias in float32."""
    if name == "rpb":
        tensor = tensor.float()
    as_it_is = name not in CONTIGUOUS and tensor.stride(-1) == 1
    return tensor if as_it_is else tensor.contiguous()


def _with_copies(step: Step, known: dict[str, Tensor]) -> Step:
    """The step with 16-byte staging copies, if every staged token starts at a 16-byte boundary and is full."""
    instance = step.instance
    names = dict(step.inputs)
    staged = [known[names[a.name]] for a in instance.arguments if a.kind == "T" and a.name in names]
    size = ITEM_SIZES[instance.dtype]
    aligned = all(offset * size % WIDE_BYTES == 0 for t in staged for offset in (t.storage_offset(), *t.stride()[:-1]))
    return replace(step, instance=replace(instance, wide=fills_words(step) and aligned))


def _launch(host: Host, step: Step, known: dict[str, Tensor]) -> None:
    device = next(iter(known.values())).device
    bound = {argument: known[name] for argument, name in step.inputs}
    for output in step.outputs:
        bound[output.argument] = torch.empty(output.shape, dtype=DTYPES[output.dtype], device=device)
        known[output.name] = bound[output.argument]
    bound["prm"] = _params_tensor(step, bound, device)
    arguments = [bound[argument.name] for argument in step.instance.arguments]
    threads = (step.grid[0] * step.threads, step.grid[1], step.grid[2])
    try:
        kernel(host, step)(*arguments, threads=threads, group_size=(step.threads, 1, 1))
    except (RuntimeError, ValueError) as error:  # what torch raises for a launch it refuses
        raise verdicts.record(step, "launch", quoted(error)) from error


def _params_tensor(step: Step, bound: dict[str, Tensor], device: torch.device) -> Tensor:
    """The parameter array with its strides, on the device; kept, because making one is a copy."""
    slots = with_strides(step, {argument: tuple(tensor.stride()) for argument, tensor in bound.items()})
    key = (device, *slots)
    with _lock:
        found = _params.get(key)
        if found is None:
            found = _params[key] = torch.tensor(slots, dtype=torch.int64, device=device)
            if len(_params) > KEPT_PARAMS:
                _params.popitem(last=False)
        else:
            _params.move_to_end(key)
        return found


def forward(plan: Plan, tensors: dict[str, Tensor]) -> list[Tensor]:
    """The op's outputs: out and lse, or the split op's only one."""
    problem = plan.problem
    made = run(lambda most: programs.forward(problem, most), tensors)
    return [made[name] for name in RESULTS[problem.op]]


def backward(
    plan: Plan, grads: Sequence[Tensor | None], tensors: dict[str, Tensor], outputs: list[Tensor]
) -> list[Tensor]:
    """Gradients of the inputs that are given, in their order and dtypes."""
    problem, has_lse_grad = plan.problem, len(grads) > 1 and grads[1] is not None
    first = torch.zeros_like(outputs[0]) if grads[0] is None else grads[0]
    given = programs.backward_tensors(problem.op, tensors, [first, *grads[1:]], outputs)
    made = run(lambda most: programs.backward(problem, has_lse_grad, most), given)
    # Of no additional keys there is no gradient to compute.
    none = {f"{name}_grad": torch.zeros_like(tensor) for name, tensor in tensors.items() if not tensor.numel()}
    return [(none | made)[f"{name}_grad"].to(tensor.dtype) for name, tensor in tensors.items()]
