"""The ``doctor`` command of both packages: does every kernel compute the right thing on this machine?

Runs a compact set of problems, forward and gradients, on each available backend, against a backend
that shares no code with its kernels, and prints a table: error, bound, time, and what the first call cost
beyond that (on Metal: compiling). The exit status is 1 if anything is out of bounds, or does not run at all.
"""

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..plan.backend import AUTO, DENSE, PURE
from ..plan.backends import Backends
from ..plan.device import Device
from ..plan.verdicts import quoted
from ..problem.ops import AV, FULL, FUSED, QK
from .command_line import end

REPEATS = 5
# Largest error, as a fraction of the largest reference value, that rounding explains: inputs are rounded to the dtype
# on both sides, sums are float32, and the result is rounded once.
BOUNDS = {"float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}
# How a row may end.
GOOD, WRONG, FAILED = "", "WRONG", "FAILED"
# The backend that a backend's results are compared with, where that is not pure: one with other kernels.
REFERENCE = {PURE.name: DENSE.name}


@dataclass(frozen=True, slots=True)
class Case:
    """One problem. op: the fused op, full attention, or 'split' (qk, softmax, av); the rest as in public functions."""

    name: str
    shape: tuple[int, ...]
    kernel_size: tuple[int, ...]
    op: str = FUSED.name
    dtype: str = "float32"
    heads: int = 2
    kv_heads: int = 2
    dim: int = 32
    dim_v: int = 32
    stride: int = 1
    dilation: int = 1
    is_causal: bool = False
    additional: int = 0
    rpb: bool = False
    batch: int = 2

    def arguments(self) -> dict[str, Any]:
        """The window arguments of the public functions."""
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "dilation": self.dilation,
            "is_causal": self.is_causal,
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every input tensor, by the name of its argument."""

        def tokens(shape: tuple[int, ...], heads: int, dim: int) -> tuple[int, ...]:
            return (self.batch, *shape, heads, dim)

        found = {
            "query": tokens(self.shape, self.heads, self.dim),
            "key": tokens(self.shape, self.kv_heads, self.dim),
            "value": tokens(self.shape, self.kv_heads, self.dim_v),
        }
        if self.additional:
            found["additional_keys"] = tokens((self.additional,), self.kv_heads, self.dim)
            found["additional_values"] = tokens((self.additional,), self.kv_heads, self.dim_v)
        if self.rpb:
            found["rpb"] = (self.heads, *(2 * w - 1 for w in self.kernel_size))
        return found


# Every kernel template in every dtype, and every rank; each walk staged and direct, with whole and padded channels, and
# with heads in a patch's rows; the widest head dims, whose kernels take the most registers.
CASES = (
    Case("1-D", (301,), (33,)),
    Case("1-D half, causal", (257,), (64,), dtype="float16", dim=64, dim_v=64, is_causal=True),
    Case("1-D bfloat16, dilated", (130,), (9,), dtype="bfloat16", dilation=3, dim=24, dim_v=40),
    Case("1-D long window", (400,), (350,), dim=64, dim_v=64, batch=1),
    Case("1-D widest heads", (43,), (9,), dim=192, dim_v=256, batch=1),
    Case("1-D half, keys and bias", (50,), (7,), dtype="float16", additional=5, rpb=True),
    Case("2-D", (24, 31), (7, 7)),
    Case("2-D half, long rows", (4, 72), (2, 60), dtype="float16"),
    Case("2-D strided", (24, 24), (8, 8), stride=4),
    Case("2-D grouped heads", (15, 17), (5, 5), heads=8, kv_heads=2),
    Case("2-D odd head dims", (13, 21), (5, 7), dim=20, dim_v=48),
    Case("2-D wide head", (9, 12), (5, 5), dim=128, dim_v=128, dtype="float16"),
    Case("2-D additional keys", (12, 13), (5, 5), additional=11),
    Case("2-D position bias", (14, 11), (5, 3), rpb=True),
    Case("2-D bfloat16, keys and bias", (9, 10), (3, 5), dtype="bfloat16", additional=9, rpb=True),
    Case("3-D", (6, 9, 10), (3, 5, 5)),
    Case("3-D half, causal, dilated", (6, 8, 8), (3, 3, 3), dtype="float16", is_causal=True, dilation=2),
    Case("3-D bfloat16", (5, 8, 9), (3, 3, 5), dtype="bfloat16"),
    Case("split 1-D half, causal", (75,), (13,), op="split", dtype="float16", is_causal=True, heads=4),
    Case("split 2-D, bias", (12, 11), (3, 5), op="split", rpb=True),
    Case("split 3-D bfloat16, bias", (4, 6, 7), (3, 3, 2), op="split", dtype="bfloat16", dim=20, dim_v=12, rpb=True),
    Case("attention", (130,), (130,), op=FULL.name, dim=64, dim_v=64),
)


@dataclass(frozen=True, slots=True)
class Patient:
    """The package under examination.

    backends: those that it has. machine: one line about it. device: the planner's view of it. run(case, backend) ->
    outputs and gradients by name, computed and waited for. error(found, wanted) -> largest difference over the largest
    wanted value.
    """

    backends: Backends
    machine: Callable[[], str]
    device: Callable[[], Device]
    run: Callable[[Case, str], dict[str, Any]]
    error: Callable[[Any, Any], float]

    def reasons(self) -> dict[str, str | None]:
        """Each backend in the order of 'auto', and None or why it is missing."""
        device = self.device()
        return {backend: device.reason_missing(backend) for backend in self.backends.order}


def outputs(functional: Any, case: Case, tensors: dict[str, Any], softmax: Callable[[Any], Any], backend: str) -> Any:
    """The pair of tensors that a case computes with the functions of a package's module ``functional``."""
    query, key, value = (tensors[name] for name in ("query", "key", "value"))
    if case.op == FULL.name:
        return functional.attention(query, key, value, return_lse=True, backend=backend)
    if case.op == FUSED.name:
        given = {**tensors, **case.arguments()}
        return functional.neighborhood_attention(**given, return_lse=True, backend=backend)
    rank, options = len(case.shape), {**case.arguments(), "backend": backend}
    logits = getattr(functional, QK.faces[rank])(query, key, rpb=tensors.get("rpb"), **options)
    return logits, getattr(functional, AV.faces[rank])(softmax(logits), value, **options)


def machine(framework: str, device: str) -> str:
    """The line that says where the doctor runs. framework: its name and version."""
    return f"{platform.platform()} ({platform.machine()}), {framework}, {device}"


def add_doctor(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", package: str, patient: Callable[[], Patient]
) -> None:
    """Add the ``doctor`` command to a command line; its ``run`` default takes the parsed arguments.

    ``patient()`` is called only when the command runs, so that --help need not load a framework.
    """
    parser = commands.add_parser(
        "doctor",
        help="run every kernel on this machine's device against an independent backend, and print a table",
        description="""Run a compact set of problems, forward and gradients, on each available backend, against
            a backend that shares no kernel with it. Prints errors, bounds and times, and exits with 1 if a result is
            out of bounds or a kernel does not run. Times are of forward and gradients together: 'ms' is the median of
            later calls, 'once ms' how much longer the first call took, for planning and, where a problem is the first
            that needs a kernel, for compiling.""",
        epilog=f"example: {package} doctor --backend metal",
    )
    parser.add_argument("--backend", help="examine only this backend (default: all that are available)")
    parser.set_defaults(run=lambda arguments: end(f"{package} doctor", lambda: examine(patient(), arguments.backend)))


def examine(patient: Patient, only: str | None = None, cases: tuple[Case, ...] = CASES) -> int:
    """Print the table; 0 if all is well, 1 if a case is out of bounds or fails, 2 if ``only`` cannot be examined."""
    print(f"{patient.backends.package} doctor on {patient.machine()}")
    reasons = patient.reasons()
    for backend, reason in reasons.items():
        print(f"  {backend}: {reason or 'available'}")
    examined, refusal = _chosen(patient.backends, reasons, only)
    if refusal:
        print(refusal)
        return 2
    print(f"{'backend':<12}{'problem':<28}{'dtype':<10}{'worst error':>12}{'bound':>9}{'once ms':>10}{'ms':>9}")
    verdicts = [_examine_case(patient, backend, case) for backend in examined for case in cases]
    counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in (WRONG, FAILED) if verdict in verdicts]
    print(
        f"{verdicts.count(GOOD)} of {len(verdicts)} within bounds"
        + (f"; {', '.join(counts)}: please report this table" if counts else "")
    )
    return 1 if counts else 0


def _chosen(backends: Backends, reasons: dict[str, str | None], only: str | None) -> tuple[list[str], str]:
    """The backends to examine, or why there is none. reasons: why each is missing."""
    if only is None or only == AUTO:
        return [backend for backend, reason in reasons.items() if reason is None and backend != DENSE.name], ""
    backend = backends.aliases.get(only, only)
    if backend not in reasons:
        return [], f"unknown backend {only}; known: {', '.join((AUTO, *reasons, *backends.aliases))}"
    if reasons[backend] is not None:
        return [], f"nothing to examine: backend {only} is not available: {reasons[backend]}"
    return [backend], ""


def _examine_case(patient: Patient, backend: str, case: Case) -> str:
    """Print one row, and say how it went: forward and all gradients of one problem on one backend."""
    try:
        verdict, numbers = _measure(patient, backend, case)
    except RuntimeError as failure:  # KernelFailure, and what frameworks raise of a GPU while they wait for results
        verdict, numbers = FAILED, f"  {FAILED}: {quoted(failure)}"
    print(f"{backend:<12}{case.name:<28}{case.dtype:<10}{numbers}", flush=True)
    return verdict


def _measure(patient: Patient, backend: str, case: Case) -> tuple[str, str]:
    """The verdict and the row's numbers. Raises whatever ``run`` raises."""
    began = time.perf_counter()
    found = patient.run(case, backend)
    first = 1e3 * (time.perf_counter() - began)
    wanted = patient.run(case, REFERENCE.get(backend, PURE.name))
    errors = {name: patient.error(found[name], wanted[name]) for name in wanted}
    worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    bound = BOUNDS[case.dtype]
    good = all(error <= bound for error in errors.values())  # a NaN is not
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        patient.run(case, backend)
        times.append(1e3 * (time.perf_counter() - began))
    warm = statistics.median(times)
    numbers = f"{errors[worst]:>12.1e}{bound:>9.0e}{max(first - warm, 0):>10.1f}{warm:>9.2f}"
    return (GOOD, numbers) if good else (WRONG, f"{numbers}  {WRONG}: {worst}")
