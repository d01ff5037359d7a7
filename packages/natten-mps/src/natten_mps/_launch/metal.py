"""Runs the Metal kernels on MPS tensors, through ``torch.mps.compile_shader``.

A program's launches (:mod:`natten_metal.metal.op_launches`) name their tensors; here they get strides and memory, and
are launched. Kernels are compiled when first used and kept; nothing of the user's tensors is copied unless its
channels are not contiguous.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _operations
from .._metal.api.key_words import key_words
from .._metal.metal.mpp import MAX_STEP
from .._metal.metal.op_launches import CONTIGUOUS, SIMD_WIDTH, Launch, fills_words, with_strides
from .._metal.metal.source import ITEM_SIZES, library
from .._metal.plan.programs import MetalLaunches
from .._metal.plan.verdicts import Failure, Learned, ThreadLimit, quoted
from .metal_host import MetalHost

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
WIDE_BYTES = 16


def run(program: MetalLaunches, tensors: dict[str, Tensor], host: MetalHost) -> dict[str, Tensor]:
    """Run the launches in order; the program's results by name.

    Learned, before anything is launched, if a kernel does not compile, or allows fewer threads than its launch has.
    """
    known = {name: _readable(name, tensor) for name, tensor in tensors.items()}
    if program.in_rows:
        known = {name: _with_short_steps(program, tensor) for name, tensor in known.items()}
    launches, kernels = _compiled(program, known, host)
    for launch, kernel in zip(launches, kernels, strict=True):
        _launch(host, kernel, launch, known)
    return {output.name: known[output.name] for output in program.outputs}


def _compiled(program: MetalLaunches, known: dict[str, Tensor], host: MetalHost) -> tuple[list[Launch], list[Any]]:
    """The launches and their kernels. Learned, if a kernel does not compile or has room for too few threads."""
    launches = [_wide_if_aligned(launch, known) for launch in program.launches]
    kernels = [_kernel(host, launch) for launch in launches]
    rooms = [int(kernel.max_threads_per_threadgroup) // SIMD_WIDTH for kernel in kernels]
    # A kernel that walks no bricks has one size, and one simdgroup is the least: there the host itself must refuse.
    limits = [
        ThreadLimit(launch, room)
        for launch, room in zip(launches, rooms, strict=True)
        if launch.bricks and room < launch.simdgroups and launch.simdgroups > 1
    ]
    if limits:
        raise Learned(*limits)
    return launches, kernels


def repeatable(program: MetalLaunches, tensors: dict[str, Tensor], host: MetalHost) -> Callable[[], None]:
    """A call that launches a program of one launch again and again, into the same memory: for timing it."""
    launches, kernels = _compiled(program, tensors, host)
    return partial(_call, kernels[0], launches[0], _arguments(host, launches[0], dict(tensors)))


def _kernel(host: MetalHost, launch: Launch) -> Any:
    """The compiled kernel of a launch."""

    def compiled() -> Any:
        try:
            return getattr(host.compile_shader(library((launch.instance,))), launch.instance.name)
        except (SyntaxError, RuntimeError) as error:  # what compile_shader raises for a source it rejects
            raise Learned(Failure(launch, "compile", quoted(error))) from error

    return host.kernels.get_or_make_once(launch.instance, compiled)


def _readable(name: str, tensor: Tensor) -> Tensor:
    """A tensor as the kernels read it: any strides but the channels', or contiguous; rpb in float32, a mask in bits."""
    if name == "key_mask":
        return key_words(_operations, tensor)
    if name == "rpb":
        tensor = tensor.float()
    readable = name not in CONTIGUOUS and tensor.stride(-1) == 1
    return tensor if readable else tensor.contiguous()


def _with_short_steps(program: MetalLaunches, tensor: Tensor) -> Tensor:
    """A tensor whose tokens along x are at most 32 bits apart, which is what products that read them can step over."""
    dilation = program.problem.dilation[-1]
    return tensor.contiguous() if tensor.dim() > 2 and tensor.stride(-3) * dilation > MAX_STEP else tensor


def _wide_if_aligned(launch: Launch, known: dict[str, Tensor]) -> Launch:
    """The launch with whole words for tokens, if all of its inputs' tokens start at 16-byte boundaries and are full."""
    instance = launch.instance
    names = dict(launch.inputs)
    read = [known[names[a.name]] for a in instance.arguments if a.kind == "T" and a.name in names]
    size = ITEM_SIZES[instance.dtype]
    aligned = all(offset * size % WIDE_BYTES == 0 for t in read for offset in (t.storage_offset(), *t.stride()[:-1]))
    return replace(launch, instance=replace(instance, wide=fills_words(launch) and aligned))


def _launch(host: MetalHost, kernel: Any, launch: Launch, known: dict[str, Tensor]) -> None:
    _call(kernel, launch, _arguments(host, launch, known))


def _arguments(host: MetalHost, launch: Launch, known: dict[str, Tensor]) -> list[Tensor]:
    """What a kernel is called with; the outputs are new, and become known."""
    device = next(iter(known.values())).device
    bound = {argument: known[name] for argument, name in launch.inputs}
    for output in launch.outputs:
        bound[output.argument] = torch.empty(output.shape, dtype=DTYPES[output.dtype], device=device)
        known[output.name] = bound[output.argument]
    bound["prm"] = _params_tensor(host, launch, bound, device)
    return [bound[argument.name] for argument in launch.instance.arguments]


def _call(kernel: Any, launch: Launch, arguments: list[Tensor]) -> None:
    threads = (launch.grid[0] * launch.threads, launch.grid[1], launch.grid[2])
    try:
        kernel(*arguments, threads=threads, group_size=(launch.threads, 1, 1))
    except (RuntimeError, ValueError) as error:  # what torch raises for a launch it refuses
        raise Learned(Failure(launch, "launch", quoted(error))) from error


def _params_tensor(host: MetalHost, launch: Launch, bound: dict[str, Tensor], device: torch.device) -> Tensor:
    """The parameter array with its strides, on the device; kept, because making one is a copy."""
    params = with_strides(launch, {argument: tuple(tensor.stride()) for argument, tensor in bound.items()})
    found: Tensor = host.params.get_or_make(
        (device, params), lambda: torch.tensor(params, dtype=torch.int64, device=device)
    )
    return found
