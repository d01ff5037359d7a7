"""The ``doctor`` command of both packages: does every kernel compute the right thing on this machine?

It says first what is installed where, and what is wrong with that, without the framework. Then it runs a compact set of
problems, forward and gradients, on each available backend, against a backend that shares no code with its kernels, and
prints a table: error, bound, time, and what the first call cost beyond that (on Metal: compiling). The exit status is 1
if anything is out of bounds, or does not run at all.
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from ..plan import tuning
from ..plan.backend import AUTO, BACKENDS, DENSE, PURE, Work
from ..plan.backends import Backends
from ..plan.device import Device
from ..plan.plan import Plan
from ..plan.verdicts import KernelFailure, quoted
from ..problem.problem import Problem
from . import installation
from .command_line import add_json, beside_json, check_outputs, end, paragraph, write_json
from .doctor_cases import BOUNDS as BOUNDS
from .doctor_cases import CASES as CASES
from .doctor_cases import Case as Case
from .doctor_cases import outputs as outputs
from .installation import Finding, Framework

REPEATS = 5
# How a row may end.
GOOD, WRONG, FAILED = "", "WRONG", "FAILED"
# What a template is that no row ran, in the file.
NOT_RUN = "not run"
# The backend that a backend's results are compared with, where that is not pure: one with other kernels.
REFERENCE = {PURE.name: DENSE.name}
# Of the file that --json writes; docs/doctor.md describes it.
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Patient:
    """The package under examination.

    backends: those that it has. place: the framework's device, in words. device: the planner's view of it.
    plan(problem, backend): what would run there. run(case, backend) -> outputs and gradients by name, computed and
    waited for. error(found, wanted) -> largest difference over the largest wanted value.
    """

    backends: Backends
    place: Callable[[], str]
    device: Callable[[], Device]
    plan: Callable[[Problem, str], Plan]
    run: Callable[[Case, str], dict[str, Any]]
    error: Callable[[Any, Any], float]

    def reasons(self) -> dict[str, str | None]:
        """Each backend in the order of 'auto', and None or why it is missing."""
        device = self.device()
        return {backend: device.reason_missing(backend) for backend in self.backends.order}

    def templates(self, case: Case, backend: str) -> list[str]:
        """The Metal kernels that a case would launch, forward and gradients."""
        if BACKENDS[backend].on(self.device().kind) is not Work.METAL_KERNELS:
            return []
        plans = [self.plan(problem, backend) for problem in case.problems()]
        launches = [one for plan in plans for program in (plan.forward, plan.backward) for one in program.launches]
        return list(dict.fromkeys(launch.instance.template for launch in launches))


@dataclass(slots=True)
class Row:
    """How one case went on one backend. worst: the tensor with the largest error; first_ms: how much longer the first
    call took than the median of later ones, ms. words: why it failed. templates: the Metal kernels that it launches, or
    the one that failed."""

    backend: str
    problem: str
    dtype: str
    verdict: str = GOOD
    worst: str = ""
    error: float = 0.0
    bound: float = 0.0
    first_ms: float = 0.0
    ms: float = 0.0
    words: str = ""
    templates: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        start = f"{self.backend:<12}{self.problem:<28}{self.dtype:<10}"
        if self.verdict == FAILED:
            return f"{start}  {FAILED}: {self.words}"
        numbers = f"{self.error:>12.1e}{self.bound:>9.0e}{self.first_ms:>10.1f}{self.ms:>9.2f}"
        return f"{start}{numbers}" + (f"  {WRONG}: {self.worst}" if self.verdict == WRONG else "")

    def as_json(self) -> dict[str, Any]:
        """The row in the file, where an error that is no number, or infinite, is null."""
        error = self.error if math.isfinite(self.error) else None
        return asdict(self) | {"verdict": self.verdict.lower() or "good", "error": error}


@dataclass(frozen=True, slots=True)
class DoctorPackage:
    """What the command needs of a package. patient(): called once its framework is known to be importable."""

    package: str
    framework: Framework
    patient: Callable[[], Patient]


def add_doctor(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", record: DoctorPackage) -> None:
    """Add the ``doctor`` command to a command line; its ``run`` default takes the parsed arguments."""
    package = record.package
    parser = commands.add_parser(
        "doctor",
        help="run every kernel on this machine's device against an independent backend, and print a table",
        description=paragraph(
            """Say what is installed on this machine and what is wrong with that; then run a compact set of
            problems, forward and gradients, on each available backend, against a backend that shares no kernel with it.
            Prints errors, bounds and times, and exits with 1 if a result is out of bounds, a kernel does not run, or
            nothing can be computed at all. Times are of forward and gradients together: 'ms' is the median of later
            calls, 'once ms' how much longer the first call took, for planning and, where a problem is the first that
            needs a kernel, for compiling."""
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"examples:\n  {package} doctor --backend metal\n  {package} doctor --json doctor.json  # for a report",
    )
    parser.add_argument("--backend", help="examine only this backend (default: all that are available)")
    add_json(parser, "all that was found, in one file to attach to a report")
    parser.set_defaults(run=lambda arguments: end(f"{package} doctor", lambda: _run(record, arguments)))


def _run(record: DoctorPackage, arguments: argparse.Namespace) -> int:
    if arguments.json is None:
        return consult(record, arguments.backend)[0]
    check_outputs([arguments.json])
    with beside_json(arguments.json):
        status, document = consult(record, arguments.backend)
    write_json(without_home(document, os.path.expanduser("~")), arguments.json)
    return status


def without_home(value: Any, home: str) -> Any:
    """What the file holds, with the user's folder as ``~`` wherever a message or a setting names it."""
    if isinstance(value, dict):
        return {name: without_home(each, home) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_home(each, home) for each in value]
    return value.replace(home, "~") if isinstance(value, str) and len(home) > 1 else value


def consult(record: DoctorPackage, only: str | None) -> tuple[int, dict[str, Any]]:
    """The whole examination, printed: the exit status, and what the file holds."""
    here = installation.here(record.package, record.framework)
    print(f"{record.package} doctor", *here.lines(), sep="\n", flush=True)
    found = installation.findings(here, record.framework)
    if not any(finding.fatal for finding in found):
        failure = installation.import_failure(here, record.framework)
        found += [failure] if failure else []
    rows, reasons, place, missing = None, dict[str, str | None](), "", None
    status = 1
    if not any(finding.fatal for finding in found):
        patient = record.patient()
        try:
            place, reasons, missing = patient.place(), patient.reasons(), patient.device().no_matrix_units
        except ValueError as error:  # a variable that the kernels read is set to something that they cannot use
            found.append(Finding(str(error), "unset or correct the variable"))
    tuned = tuning_state()
    print(f"  tuning: {tuned['state']}" + (f", {tuned['reason']}" if tuned["reason"] else ""))
    for finding in found:
        print(f"  {'problem' if finding.fatal else 'note'}: {finding.problem}\n    to do: {finding.remedy}")
    if reasons:
        rows = _examine_all(patient, only, CASES)
        if rows is None:
            status = 2
        else:
            print(_templates_in_words(rows))
            status = _summary(rows)
    return status, {
        "schema": SCHEMA,
        "kind": "doctor",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **here.as_json(),
        "findings": [finding._asdict() for finding in found],
        "tuning": tuned,
        "device": place,
        "backends": reasons,
        "matrix_units": {"used": missing == "", "reason": missing or None},
        "rows": [row.as_json() for row in rows or ()],
        "templates": template_verdicts(rows or ()),
        "status": status,
    }


def tuning_state() -> dict[str, Any]:
    """Whether plans stand on what ``tune`` measured here: 'in force' (with the model's error), 'none' (it has not run),
    'off', or 'ignored' (with the reason)."""
    path = tuning.path_in_force()
    found: dict[str, Any] = {"state": "off", "reason": None, "error": None}
    if path is None:
        return found
    try:
        return found | {"state": "in force", "error": tuning.read(path).error}
    except FileNotFoundError:
        return found | {"state": "none"}
    except OSError as error:
        return found | {"state": "ignored", "reason": f"it cannot be read: {error.strerror or error}"}
    except tuning.Broken as error:
        return found | {"state": "ignored", "reason": str(error)}


# --- kernels ------------------------------------------------------------------------------------------


def examine(patient: Patient, only: str | None = None, cases: tuple[Case, ...] = CASES) -> int:
    """Print the table; 0 if all is well, 1 if a case is out of bounds or fails, 2 if ``only`` cannot be examined."""
    rows = _examine_all(patient, only, cases)
    return 2 if rows is None else _summary(rows)


def _examine_all(patient: Patient, only: str | None, cases: Iterable[Case]) -> list[Row] | None:
    """Print the table, and return its rows; None if ``only`` cannot be examined."""
    reasons = patient.reasons()
    print(f"  device: {patient.place()}")
    missing = patient.device().no_matrix_units
    print(f"  matrix units: {f'not used: {missing}' if missing else 'used where they are predicted to be faster'}")
    for backend, reason in reasons.items():
        print(f"  {backend}: {reason or 'available'}")
    examined, refusal = _chosen(patient.backends, reasons, only)
    if refusal:
        print(refusal)
        return None
    print(f"{'backend':<12}{'problem':<28}{'dtype':<10}{'worst error':>12}{'bound':>9}{'once ms':>10}{'ms':>9}")
    return [_examine_case(patient, backend, case) for backend in examined for case in cases]


def _summary(rows: list[Row]) -> int:
    """Print how many rows are good; the exit status."""
    verdicts = [row.verdict for row in rows]
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


def _examine_case(patient: Patient, backend: str, case: Case) -> Row:
    """Print one row, and say how it went: forward and all gradients of one problem on one backend."""
    row = Row(backend, case.name, case.dtype, bound=BOUNDS[case.dtype])
    try:
        row.templates = patient.templates(case, backend)
        _measure(patient, backend, case, row)
    except RuntimeError as failure:  # KernelFailure, and what frameworks raise of a GPU while they wait for results
        row.verdict, row.words = FAILED, quoted(failure)
        if isinstance(failure, KernelFailure):
            row.templates = [failure.failure.launch.instance.template]
    print(row, flush=True)
    return row


def _measure(patient: Patient, backend: str, case: Case, row: Row) -> None:
    """Fill the row's numbers and its verdict. Raises whatever ``run`` raises."""
    began = time.perf_counter()
    found = patient.run(case, backend)
    first = 1e3 * (time.perf_counter() - began)
    wanted = patient.run(case, REFERENCE.get(backend, PURE.name))
    errors = {name: patient.error(found[name], wanted[name]) for name in wanted}
    row.worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    row.error = errors[row.worst]
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        patient.run(case, backend)
        times.append(1e3 * (time.perf_counter() - began))
    row.ms = statistics.median(times)
    row.first_ms = max(first - row.ms, 0)
    # A NaN is out of bounds too.
    row.verdict = GOOD if all(error <= row.bound for error in errors.values()) else WRONG


def template_verdicts(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """Every Metal kernel template and how it went: the worst verdict of the rows that launched it.

    A wrong result cannot be blamed on one of a row's kernels, so it counts against all of them.
    """
    from ..metal.templates import NARROW

    found = {}
    for template in NARROW:
        using = [row for row in rows if template in row.templates]
        verdicts = [row.verdict for row in using]
        worst = next((verdict for verdict in (FAILED, WRONG) if verdict in verdicts), GOOD)
        verdict = (worst.lower() or "good") if using else NOT_RUN
        found[template] = {"verdict": verdict, "rows": len(using), "bad": [str(r) for r in using if r.verdict != GOOD]}
    return found


def _templates_in_words(rows: list[Row]) -> str:
    verdicts = {name: found["verdict"] for name, found in template_verdicts(rows).items()}
    ran = [f"{name} {verdict}" for name, verdict in verdicts.items() if verdict != NOT_RUN]
    return f"Metal kernels: {', '.join(ran) or NOT_RUN}"
