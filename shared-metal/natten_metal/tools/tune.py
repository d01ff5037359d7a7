"""The ``tune`` command of both packages: measure this machine, and let the planner choose by what was measured.

The measuring is in the room :mod:`..tuning`; the framework comes as its :class:`Timer`.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bench.table import console, empty
from ..bench.times import digits
from ..plan import tuning
from .command_line import CommandError, add_json, beside_json, check_outputs, end, write_json

if TYPE_CHECKING:
    from ..tuning.cpu import CpuTuning
    from ..tuning.measure import Progress, Timer
    from ..tuning.tune import Tuning


def add_tune(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", package: str, timer: "Callable[[], Timer]"
) -> None:
    """Add the ``tune`` command to a command line; ``timer()`` is called only when the command runs."""
    parser = commands.add_parser(
        "tune",
        help="measure this machine's GPU, so that kernels are chosen by what is fastest on it",
        description="""Time a designed set of kernels on this machine's GPU, fit what each part of their work costs,
            judge the fit on problems that it did not see, and write the result to the user's cache folder, where every
            later process of this package reads it once. Results of calls do not change, only how fast they are.
            NATTEN_TUNING=off ignores the file; deleting it, or installing another release, undoes it. Other programs
            that keep the machine busy spoil the measurement.""",
        epilog=f"""examples: `{package} tune` measures and keeps the result; `{package} tune --dry-run` says what would
            be timed and where the result would go; `{package} tune --output here.json` keeps it elsewhere, where
            NATTEN_TUNING=here.json reads it; `{package} tune --quick --json all.json` times fewer, and writes every
            time with its prediction; `{package} tune --cpu` says which instruction set and how many threads are worth
            setting for the CPU kernels. On a Mac the whole is expected to take a few minutes.""",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer problems, timed once: less exact")
    add("--dry-run", action="store_true", help="time nothing and write nothing; say what would be done")
    add("--output", type=Path, metavar="FILE", help="write the result there, not to the cache folder")
    add_json(parser, "also write every time and prediction")
    add("--cpu", action="store_true", help="time the CPU kernels with each instruction set and fewer threads instead")
    add("--progress", action="store_true", help="show the progress bar even if stderr is not a terminal")
    parser.set_defaults(run=lambda arguments: end(f"{package} tune", lambda: _run(timer, package, arguments)))


def _run(timer: "Callable[[], Timer]", package: str, arguments: argparse.Namespace) -> int:
    check_outputs([arguments.output, arguments.json])
    with beside_json(arguments.json):
        document = _cpu(arguments) if arguments.cpu else _gpu(timer, package, arguments)
    if arguments.json is not None:
        write_json(document, arguments.json)
    return 0


def _gpu(timer: "Callable[[], Timer]", package: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What was measured or would be, printed and as data."""
    from ..tuning.tune import as_data

    path = arguments.output or tuning.default_path()
    if arguments.dry_run:
        return _dry_run(timer(), arguments.quick, path)
    missing = [name for name in ("numpy", "scipy") if find_spec(name) is None]
    if missing:
        raise CommandError(f"{' and '.join(missing)} must be installed for this: pip install '{package}[tools]'")
    found = _tuned(timer(), arguments, path)
    _print_table(found)
    print("\n".join(_summary(found)))
    return as_data(found)


def _cpu(arguments: argparse.Namespace) -> dict[str, Any]:
    """``tune --cpu``: a table, and the environment variables that are worth setting. It keeps nothing."""
    from ..tuning.cpu import ROUNDS, Setting, settings, tune_cpu

    if arguments.output is not None:
        raise CommandError("--output is for the GPU's file; what --cpu finds is kept in environment variables")
    rounds = 1 if arguments.quick else ROUNDS
    if arguments.dry_run:
        wanted = [setting.words for setting in settings()]
        print("each of these would be timed, in processes of their own:", *wanted, sep="\n  ")
        return {"settings": wanted}
    with _progress(arguments.progress) as progress:
        found = tune_cpu(tuning.MODULE, progress, rounds)
    if Setting() in found.failed:
        raise CommandError(f"nothing to tune: the CPU kernels do not run: {found.failed[Setting()]}")
    _print_cpu(found)
    times = {setting.words: times for setting, times in found.times.items()}
    failed = {setting.words: reason for setting, reason in found.failed.items()}
    return {"milliseconds": times, "failed": failed, "best": found.best.environment}


def _print_cpu(found: "CpuTuning") -> None:
    names = next(iter(found.times.values()))
    table = empty("the CPU kernels, milliseconds, float32", "setting", *names, "of default")
    for setting, times in found.times.items():
        share = f"{found.against_default(setting):.2f}"
        table.add_row(setting.words, *(digits(time) for time in times.values()), share)
    console(sys.stdout).print(table)
    for setting, reason in found.failed.items():
        print(f"{setting.words} does not run here: {reason}")
    if found.best.environment:
        print(f"worth setting: {found.best.words}")
    else:
        print("no setting is worth more than the default")


def _tuned(timer: "Timer", arguments: argparse.Namespace, path: Path) -> "Tuning":
    """What was measured and written; :class:`CommandError` if that cannot be."""
    from ..tuning.tune import CannotTune, tune

    try:
        tuning.try_folder(path)  # known before anything is measured
        with _progress(arguments.progress) as progress:
            return tune(timer, arguments.quick, progress, path)
    except CannotTune as error:
        raise CommandError(f"nothing to tune: {error}") from None
    except OSError as error:
        raise CommandError(
            f"{path}: cannot be written: {error.strerror or error}; --output FILE writes the result elsewhere, and "
            "NATTEN_TUNING=FILE reads it there"
        ) from None


def _dry_run(timer: "Timer", quick: bool, path: Path) -> dict[str, Any]:
    """What would be timed, and where the result would go; printed and as data."""
    from ..tuning.tune import planned_trials

    fitted, held_out = planned_trials(timer, quick)
    kernels = {trial.launch.instance for trial in (*fitted, *held_out)}
    print(
        f"{len(kernels)} kernels would be compiled, {len(fitted)} launches timed to fit unit costs, and "
        f"{len(held_out)} on other problems to judge the fit; the result would go to {path}"
    )
    reason = timer.device().reason_missing(timer.backend)
    if reason is not None:
        print(f"but there is nothing to tune here: {reason}")
    counts = {"kernels": len(kernels), "fitted": len(fitted), "held out": len(held_out)}
    return {**counts, "path": str(path), "reason missing": reason}


@contextmanager
def _progress(wanted: bool) -> "Iterator[Progress]":
    """A bar that shows how much is done, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True, force_terminal=wanted or None)
    with Bar(*columns, console=console, transient=True, disable=not (wanted or sys.stderr.isatty())) as bar:
        task = bar.add_task("", total=None)

        def progress(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=f"timing {name}" if name else "fitting")

        yield progress


def _print_table(found: "Tuning") -> None:
    """The problems that were not fitted, kernel by kernel."""
    columns = ("problem", "kernel", "rule", "tuned", "fastest", "predicted")
    table = empty("problems that were not fitted, microseconds", *columns, words=("kernel",))
    for choice in found.choices:
        trial, figures = choice.timed.trial, (choice.rule, choice.tuned, choice.best, choice.predicted)
        table.add_row(trial.words, trial.template.name, *(f"{figure:,.1f}" for figure in figures))
    console(sys.stdout).print(table)


def _summary(found: "Tuning") -> list[str]:
    """The result in a few sentences."""
    from ..tuning.tune import summary_of

    data: dict[str, Any] = summary_of(found)
    fit, choices = data["fit"], data["choices"]
    off = f"off by {fit['median error']:.1%} in the median, by at most {fit['error of 9 in 10']:.1%} in nine of ten"
    lines = [f"fit: {fit['trials']} launches in {found.seconds:.0f} s; predictions are {off}"]
    if found.choices:
        lines.append(f"problems that were not fitted: off by {choices['median error']:.1%} in the median")
        for name in ("tuned", "rule"):
            good, worst = choices[f"{name} within 5 %"], choices[f"{name} worst"]
            kernels = f"{good} of {choices['kernels']} kernels"
            lines.append(f"{name}: within 5 % of the fastest tiling in {kernels}, at worst {worst:.0%} slower")
    if found.failed:
        lines.append(f"{len(found.failed)} launches did not run here; the first: {found.failed[0].reason}")
    return [*lines, f"written to {found.path}; new processes of this package read it"]
