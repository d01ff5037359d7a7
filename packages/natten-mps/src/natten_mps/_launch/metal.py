"""Runs the Metal kernels on MPS tensors, through ``torch.mps.compile_shader``.

A program's steps (:mod:`natten_metal.metal.steps`) name their tensors; here they get strides, memory and a
launch. Kernels are compiled when first used and kept; nothing of the user's tensors is copied unless its
channels do not lie side by side.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._metal.caches import Cache
from .._metal.metal.source import ITEM_SIZES, library
from .._metal.metal.steps import CONTIGUOUS, SIMD_WIDTH, Step, fills_words, with_strides
from .._metal.plan.programs import MetalLaunches
from .._metal.plan.verdicts import Failure, Learned, ThreadLimit, quoted

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
WIDE_BYTES = 16


class MetalHost:
    """What compiles and launches: torch's MPS backend, or a stand-in for it. It keeps what it compiled."""

    def __init__(self) -> None:
        self.kernels = Cache("Metal kernels", 1024)
        self.params = Cache("Metal parameters", 512)

    def missing(self, device: torch.device) -> str | None:
        """Why kernels cannot run on tensors of ``device``; None if they can."""
        raise NotImplementedError

    def compile_shader(self, source: str) -> Any:
        """A library whose attributes are its kernels."""
        raise NotImplementedError


class MpsHost(MetalHost):
    """The Apple GPU, as torch sees it."""

    def missing(self, device: torch.device) -> str | None:
        if device.type != "mps":
            return f"Metal kernels run on mps tensors; these are on {device.type}"
        if not hasattr(torch.mps, "compile_shader"):
            return f"torch {torch.__version__} has no torch.mps.compile_shader; 2.9 or newer has"
        return None

    def compile_shader(self, source: str) -> Any:
        return torch.mps.compile_shader(source)


def run(program: MetalLaunches, tensors: dict[str, Tensor], host: MetalHost) -> dict[str, Tensor]:
    """Launch the steps in order; the program's results by name.

    Learned, before anything is launched, if a kernel does not compile, or allows fewer threads than its step has.
    """
    known = {name: _readable(name, tensor) for name, tensor in tensors.items()}
    steps = [_with_copies(step, known) for step in program.steps]
    kernels = [_kernel(host, step) for step in steps]
    rooms = [int(kernel.max_threads_per_threadgroup) // SIMD_WIDTH for kernel in kernels]
    # A kernel that walks no bricks has one size, and a single simdgroup has none below it: the host has the last word.
    limits = [
        ThreadLimit(step, room)
        for step, room in zip(steps, rooms, strict=True)
        if step.bricks and room < step.simdgroups and step.simdgroups > 1
    ]
    if limits:
        raise Learned(*limits)
    for step, kernel in zip(steps, kernels, strict=True):
        _launch(host, kernel, step, known)
    return {output.name: known[output.name] for output in program.outputs}


def _kernel(host: MetalHost, step: Step) -> Any:
    """The compiled kernel of a step."""

    def compiled() -> Any:
        try:
            return getattr(host.compile_shader(library((step.instance,))), step.instance.name)
        except (SyntaxError, RuntimeError) as error:  # what compile_shader raises for a source it rejects
            raise Learned(Failure(step, "compile", quoted(error))) from error

    return host.kernels.get_or_make_once(step.instance, compiled)


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


def _launch(host: MetalHost, kernel: Any, step: Step, known: dict[str, Tensor]) -> None:
    device = next(iter(known.values())).device
    bound = {argument: known[name] for argument, name in step.inputs}
    for output in step.outputs:
        bound[output.argument] = torch.empty(output.shape, dtype=DTYPES[output.dtype], device=device)
        known[output.name] = bound[output.argument]
    bound["prm"] = _params_tensor(host, step, bound, device)
    arguments = [bound[argument.name] for argument in step.instance.arguments]
    threads = (step.grid[0] * step.threads, step.grid[1], step.grid[2])
    try:
        kernel(*arguments, threads=threads, group_size=(step.threads, 1, 1))
    except (RuntimeError, ValueError) as error:  # what torch raises for a launch it refuses
        raise Learned(Failure(step, "launch", quoted(error))) from error


def _params_tensor(host: MetalHost, step: Step, bound: dict[str, Tensor], device: torch.device) -> Tensor:
    """The parameter array with its strides, on the device; kept, because making one is a copy."""
    slots = with_strides(step, {argument: tuple(tensor.stride()) for argument, tensor in bound.items()})
    found: Tensor = host.params.get_or_make(
        (device, slots), lambda: torch.tensor(slots, dtype=torch.int64, device=device)
    )
    return found
