"""Runs the CPU kernels on CPU tensors, through ctypes.

The library (``shared-metal/cpu``) reads any strides, so nothing of the user's tensors is copied; it releases
the interpreter's lock while it runs. It has threads of its own, and uses as many as torch would.
"""

import platform
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .._metal.cpu.library import FILE, FOLDER, CpuLibrary
from .._metal.metal.steps import RESULTS, backward_tensors
from .._metal.plan.plan import Plan
from .._metal.problem import checks


@cache
def _found() -> CpuLibrary | str:
    """The library that was built with this package, or why there is none."""
    # An editable install keeps what was compiled apart from the sources; the package's path names both folders.
    files = [Path(folder) / FOLDER / FILE for folder in sys.modules["natten_mps"].__path__]
    for file in files:
        if file.exists():
            try:
                return CpuLibrary(file)
            except OSError as error:
                return f"the compiled CPU kernel does not load ({error})"
    return (
        f"this install of natten-mps has no compiled CPU kernel for {platform.system()} {platform.machine()}; "
        "a wheel for this platform has one, and so has an install from source where CMake finds a C++17 compiler"
    )


def missing(device: torch.device) -> str | None:
    """Why the CPU kernels cannot run on tensors of ``device``; None if they can."""
    if device.type != "cpu":
        return f"the CPU kernel runs on cpu tensors; these are on {device.type}"
    found = _found()
    return found if isinstance(found, str) else None


def library() -> CpuLibrary:
    """The loaded library; RuntimeError with the reason if there is none."""
    found = _found()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def _run(function: str, plan: Plan, tensors: dict[str, Tensor]) -> None:
    addresses = {name: (_address(plan, name, t), t.stride()) for name, t in tensors.items()}
    library().call(function, plan.problem, addresses, torch.get_num_threads())


def _address(plan: Plan, name: str, tensor: Tensor) -> int:
    """Where the elements lie; ValueError where none do. Lazy elements were resolved on the way (:mod:`._lazy_bits`)."""
    address = tensor.data_ptr()
    if not address and tensor.numel():
        checks.reject_freed(plan.problem.name, name, tensor.numel())
    return address


def _accumulated(plan: Plan) -> torch.dtype:
    """The dtype of sums, lse and bias."""
    return torch.float64 if plan.problem.dtype == "float64" else torch.float32


def _prepared(plan: Plan, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The bias in the dtype of sums and contiguous, as the kernels read it; everything else as it lies."""
    return {n: t.to(_accumulated(plan)).contiguous() if n == "rpb" else t for n, t in tensors.items()}


def forward(plan: Plan, tensors: dict[str, Tensor], into: list[Tensor] | None = None) -> list[Tensor]:
    """The op's outputs: out and lse, or the split op's only one. into: where to write them, of any strides."""
    problem, first = plan.problem, next(iter(tensors.values()))
    rows = (problem.batch, *problem.query_shape, problem.heads)
    shapes = {"out": (*rows, problem.head_dim_v), "lse": rows, "logits": (*rows, problem.slots)}
    names = RESULTS[problem.op]
    if into is not None:
        made = dict(zip(names, into, strict=True))
    else:
        made = {
            name: first.new_empty(shapes[name], dtype=_accumulated(plan) if name == "lse" else None) for name in names
        }
    _run("forward" if "lse" in made else problem.op, plan, _prepared(plan, tensors) | made)
    return list(made.values())


def backward(
    plan: Plan, grads: Sequence[Tensor | None], tensors: dict[str, Tensor], outputs: list[Tensor],
    into: list[Tensor] | None = None,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the inputs that are given, in their order and dtypes. into: where to write those of the first."""
    op = plan.problem.op
    first = torch.zeros_like(outputs[0]) if grads[0] is None else grads[0]
    given = backward_tensors(op, _prepared(plan, tensors), [first, *grads[1:]], outputs)
    made = {
        f"{name}_grad": torch.empty(t.shape, dtype=_accumulated(plan) if name == "rpb" else t.dtype)
        for name, t in list(tensors.items())[len(into or ()) :]
    }
    made = {f"{name}_grad": t for name, t in zip(tensors, into or (), strict=False)} | made
    _run("backward" if "lse" in RESULTS[op] else f"{op}_backward", plan, given | made)
    return [made[f"{name}_grad"].to(tensor.dtype) for name, tensor in tensors.items()]
