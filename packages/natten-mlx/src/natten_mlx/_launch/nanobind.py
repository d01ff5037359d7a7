"""Runs the kernels as C++ primitives: the CPU kernels on a CPU stream, the Metal kernels on a GPU stream.

The extension (``csrc/``, the module ``_ext``) only launches. The planner decides what runs, and passes it on as
an ``_ext.Plan``; for derivatives and mapping the primitive calls :mod:`.._autodiff`. Plans are plain data and own no
Python objects, because MLX may drop the last reference on a stream's thread while the main thread waits for that thread
and holds the interpreter lock.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

from .._metal.plan.programs import MetalLaunches, Program
from .._metal.problem.ops import KEY_MASK, RPB, sum_dtype
from .extension import DTYPES, Call, ExtensionHost, Tensors, specs


def repeat(plan: Any, tensors: Sequence[mx.array], stream: mx.Stream, host: ExtensionHost) -> list[mx.array]:
    """The outputs of a recalled plan."""
    found: list[mx.array] = host.found.apply(plan, tensors, stream)
    return found


def run(call: Call, tensors: Mapping[str, mx.array], host: ExtensionHost) -> dict[str, mx.array]:
    """The results of a call's program by name, lazy. tensors: in the order in which the primitive has them mapped.

    Learned, before anything is launched, if a Metal kernel does not run.
    """
    program = call.program
    given = _readable(program, tensors, call.stream)
    inputs = specs(given)
    plan = host.plans.get_or_make((call.key, inputs), lambda: _plan(host, call, inputs))
    found = host.found.apply(plan, list(given.values()), call.stream)
    return {output.name: array for output, array in zip(program.outputs, found, strict=True)}


def _readable(program: Program, tensors: Mapping[str, mx.array], stream: mx.Stream) -> dict[str, mx.array]:
    """Tensors as the kernels read them: any strides, or contiguous; rpb and cotangents in the dtype that they need, a
    mask in bits for a GPU. The tensors of a derivative may have been converted already.
    """
    problem, given = program.problem, dict(tensors)
    # MLX lets a cotangent have another dtype than its output.
    dtypes = {operand.gradient: operand.dtype(problem) for operand in problem.record.outputs}
    dtypes[RPB.name] = sum_dtype(problem.dtype)
    for name in dtypes.keys() & given.keys():
        given[name] = given[name].astype(DTYPES[dtypes[name]], stream=stream)
    contiguous = frozenset({RPB.name, KEY_MASK.name})
    if program.in_rows:
        # How tensors lie is known when MLX evaluates them, and then it copies nothing that is contiguous.
        contiguous = frozenset(given)
    elif isinstance(program, MetalLaunches):
        # Imported here, because it imports what describes the Metal kernels, which a CPU never needs.
        from .nanobind_metal import CONTIGUOUS as contiguous
        from .nanobind_metal import packed

        if KEY_MASK.name in given:
            given[KEY_MASK.name] = packed(given[KEY_MASK.name], stream)
    for name in contiguous & given.keys():
        given[name] = mx.contiguous(given[name], stream=stream)
    return given


def _plan(host: ExtensionHost, call: Call, inputs: Tensors) -> Any:
    program = call.program
    outputs = [(output.name, output.shape, DTYPES[output.dtype]) for output in program.outputs]
    launches: list[Any] = []
    scratch: Tensors = ()
    if isinstance(program, MetalLaunches):
        from .nanobind_metal import proved_launches

        launches, scratch = proved_launches(host, call.stream, program, inputs)
    return host.found.plan(program.problem, program.function, inputs, outputs, scratch, launches, call.encoded())
