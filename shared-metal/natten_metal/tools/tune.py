"""The ``tune`` command of both packages: measure this machine, and let the planner choose by what was measured."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..plan import tuning
from ..tuning.measure import Timer, Progress
from ..tuning.tune import CannotTune, Tuning, as_data, planned_trials, tune
from .command_line import CommandError, check_outputs, end, write

EXTRA = "numpy, scipy and rich"


def add_tune(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", package: str, timer: Callable[[], Timer]
) -> None:
    """Add the ``tune`` command to a command line; its ``run`` default takes the parsed arguments.

    ``timer()`` is called only when the command runs, so that --help need not load a framework.
    """
    parser = commands.add_parser(
        "tune",
        help="measure this machine's GPU for two minutes, so that kernels are chosen by what is fastest on it",
        description="""Time a designed set of kernels on this machine's GPU, fit what each part of their work costs,
            judge the fit on problems that it did not see, and write the result to the user's cache folder, where every
            later process of this package reads it once. Results of calls do not change, only how fast they are.
            NATTEN_TUNING=off ignores the file; deleting it, or installing another release, undoes it.""",
        epilog=f"""examples:
  {package} tune                       measure, and keep the result
  {package} tune --quick               half a minute, less exact
  {package} tune --dry-run             say what would be timed, and where the result would go
  {package} tune --output here.json    keep it elsewhere; NATTEN_TUNING=here.json reads it
  {package} tune --json all.json       also write every time and prediction""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="fewer problems, timed once")
    parser.add_argument("--dry-run", action="store_true", help="time nothing and write nothing: say what would be done")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result there, not to the cache folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every time and prediction to this file, too")
    parser.set_defaults(run=lambda arguments: end(f"{package} tune", lambda: run_tune(timer, arguments)))


def run_tune(timer: Callable[[], Timer], arguments: argparse.Namespace) -> int:
    """The command; returns its exit status."""
    check_outputs([arguments.output, arguments.json])
    path = arguments.output or tuning.default_path()
    if arguments.dry_run:
        print(dry_run(timer(), arguments.quick, path))
        return 0
    require_extra(tuning.PACKAGE)
    try:
        # Whether the file can be written is known before two minutes are spent.
        tuning.try_folder(path)
        with shown_progress() as progress:
            found = tune(timer(), arguments.quick, progress, path)
    except CannotTune as error:
        raise CommandError(f"nothing to tune: {error}") from None
    except OSError as error:
        raise CommandError(
            f"{path}: cannot be written: {error.strerror or error}; --output FILE writes the result elsewhere, and "
            "NATTEN_TUNING=FILE reads it there"
        ) from None
    print_tables(found)
    if arguments.json is not None:
        text = json.dumps(as_data(found), indent=1) + "\n"
        write(arguments.json, lambda file: file.write(text.encode()))
    return 0


def require_extra(package: str) -> None:
    """:class:`CommandError` if a library that the fit needs is not installed."""
    from importlib.util import find_spec

    missing = [name for name in ("numpy", "scipy") if find_spec(name) is None]
    if missing:
        raise CommandError(f"{' and '.join(missing)} must be installed for this: pip install '{package}[tools]'")


def dry_run(timer: Timer, quick: bool, path: Path) -> str:
    """What would be timed, and where the result would go."""
    reason = timer.device().reason_missing(timer.backend)
    fitted, held_out = planned_trials(timer, quick)
    kernels = {trial.launch.instance for trial in (*fitted, *held_out)}
    lines = [
        f"{len(kernels)} kernels would be compiled and {len(fitted)} launches of them timed to fit unit costs,",
        f"and {len(held_out)} launches on other problems to judge the fit; the result would go to {path}",
    ]
    if reason is not None:
        lines.append(f"but there is nothing to tune here: {reason}")
    return "\n".join(lines)


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """A bar that shows how much is done, on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bar, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Bar(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("timing kernels", total=None)

        def progress(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=f"timing {name}" if name else "fitting")

        yield progress


def print_tables(found: Tuning) -> None:
    """What was found, for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    table = Table(title=f"{found.package} tune: problems that were not fitted, microseconds")
    for name in ("problem", "kernel", "rule", "tuned", "fastest", "predicted"):
        table.add_column(name, justify="left" if name in ("problem", "kernel") else "right")
    for choice in found.choices:
        trial = choice.timed.trial
        figures = (choice.rule, choice.tuned, choice.best, choice.predicted)
        table.add_row(trial.words, trial.template.name, *(f"{figure:,.1f}" for figure in figures))
    console.print(table)
    for line in summary(found):
        console.print(line, highlight=False)


def summary(found: Tuning) -> list[str]:
    """The result in a few sentences."""
    data: dict[str, Any] = as_data(found)
    fit, choices = data["fit"], data["choices"]
    lines = [
        f"fit: {fit['trials']} launches in {found.seconds:.0f} s; predictions are off by {fit['median error']:.1%} in the "
        f"median, by less than {fit['error of 9 in 10']:.1%} in nine of ten",
        f"problems that were not fitted: off by {choices['median error']:.1%} in the median",
        f"the tuned choice is within 5 % of the fastest tiling in {choices['tuned within 5 %']} of {choices['kernels']} "
        f"kernels, at worst {choices['tuned worst']:.0%} slower; without tuning in {choices['rule within 5 %']}, at worst "
        f"{choices['rule worst']:.0%} slower",
    ]
    if found.failed:
        lines.append(f"{len(found.failed)} launches did not run here: {found.failed[0].reason}")
    if found.path is not None:
        lines.append(f"written to {found.path}; new processes of this package read it")
    return lines
