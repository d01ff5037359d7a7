"""The ``bench`` and ``report`` commands of both packages: how long named problems take here, beside what else there is.

The measuring is in the room :mod:`..bench`; the framework comes as its :class:`Subject`.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from .command_line import CommandError, add_json, beside_json, check_outputs, end, write_document

if TYPE_CHECKING:
    from ..bench.measure import Limits
    from ..bench.results import Machine
    from ..bench.subject import Subject

DTYPES = ("float16", "bfloat16", "float32")
# What has to be compiled for each problem, which --quick leaves out unless it is asked for by name.
COMPILED = "flex_attention"
# Seconds for each way of a row, and the longest call that is timed; quick or not.
SECONDS, LONGEST = {True: 0.3, False: 1.0}, {True: 3.0, False: 10.0}


def add_bench(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    package: str,
    backends: tuple[str, ...],
    subject: "Callable[[bool], Subject]",
) -> None:
    """Add the ``bench`` command to a command line; ``subject(on_cpu)`` is called only when the command runs."""
    parser = commands.add_parser(
        "bench",
        help="time named problems on this machine, beside dense attention and other ways",
        description="""Time attention layers of published models in turns with what one would use instead: the
            framework's dense attention without and with a mask, gathered neighbors, and, in PyTorch, compiled
            flex_attention and an installed NATTEN. Prints medians, spreads, ratios, useful GFLOP/s as a share of the
            framework's own matrix product, and memory. A ratio whose spread is larger than itself is not told.""",
        epilog=f"""examples: {package} bench --quick; {package} bench --problem hdit flux --dtype float16 --backward
            --json mac.json. Problems: {_names()}.""",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="small forms of the problems, for about a minute, and nothing compiled")
    add("--problem", nargs="+", default=[], metavar="NAME", help="problems or groups of them (default: models)")
    add("--dtype", nargs="+", choices=DTYPES, help="(default: float16 on a GPU, float32 on a CPU)")
    add("--backward", action="store_true", help="also time the forward with the gradients of all inputs")
    add("--backend", choices=backends, default=backends[0], help="of the package (default: %(default)s)")
    add("--cpu", action="store_true", help="measure the CPU, even if there is a GPU")
    add("--against", nargs="*", metavar="WAY", help="compare only with these ways (default: all; without a WAY none)")
    add("--seconds", type=_positive, metavar="S", help="for each way of a row (default: 1; with --quick 0.3)")
    add("--limit", type=_positive, metavar="S", help="leave out calls that take longer (default: 10; with --quick 3)")
    add_json(parser, "also write all times, for `report`")
    add("--progress", action="store_true", help="show the progress bar even if stderr is not a terminal")
    parser.set_defaults(run=lambda arguments: end(f"{package} bench", lambda: _bench(arguments, package, subject)))


def _names() -> str:
    from ..bench.problems import BY_NAME, GROUPS

    named = [name for name in BY_NAME if not name.startswith(("windows-", "tokens-"))]
    return f"{', '.join(named)}; groups: {', '.join(GROUPS)}"


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive; got {text}")
    return number


def _load() -> tuple[float, ...]:
    """How many processes have been waiting in the last minute; empty where the system does not say."""
    return (round(os.getloadavg()[0], 2),) if hasattr(os, "getloadavg") else ()


def _bench(args: argparse.Namespace, package: str, make_subject: "Callable[[bool], Subject]") -> int:
    from ..bench import measure, results, table
    from ..bench.memory import machine_bytes
    from ..bench.problems import BY_NAME, GROUPS, chosen
    from ..bench.ways import others

    unknown = [name for name in args.problem if name not in BY_NAME and name not in GROUPS]
    if unknown:
        raise CommandError(f"there is no problem {unknown[0]}; there are {_names()}")
    check_outputs([args.json])
    subject, named = make_subject(args.cpu), chosen(args.problem)
    against = _against(args.against, args.quick, others(named[0], subject))
    dtypes = list(dict.fromkeys(args.dtype or [])) or ["float32" if subject.device == "cpu" else "float16"]
    directions = [results.FORWARD] + [results.TRAINING] * args.backward
    work = [(each, dtype, direction) for each in named for dtype in dtypes for direction in directions]
    seconds, longest = args.seconds or SECONDS[args.quick], args.limit or LONGEST[args.quick]
    limits = measure.Limits(seconds, longest, machine_bytes() // 2)
    began, before = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), _load()
    rows, peaks = [], {}
    with subject.on_device(), _progress(len(work), args.progress) as advance:
        measured = measure.Rows(subject, args.backend, limits, against, lambda what: advance(what, 0))
        for each, dtype, _ in work:
            try:
                measured.plan(each.form(args.quick).problem(dtype))
            except NotImplementedError as error:
                raise CommandError(str(error)) from None
        for dtype in dtypes:
            advance(f"peak of {dtype}", 0)
            peaks[dtype] = measure.peak(subject, dtype, seconds / 3)
        for each, dtype, direction in work:
            rows.append(measured.row(each.form(args.quick), args.quick, dtype, direction, peaks[dtype]))
            advance(each.name, 1)
        # Again: other work on the machine may have slowed down what came first.
        peaks = {dtype: best.best(measure.peak(subject, dtype, seconds / 3)) for dtype, best in peaks.items()}
    found = results.Results(
        results.FORMAT,
        results.VERSION,
        package,
        version(package),
        subject.title,
        platform.python_version(),
        began,
        _machine(subject, before + _load()),
        _settings(args, limits, against),
        peaks,
        tuple(rows),
    )
    with beside_json(args.json):
        table.show(found, table.console(sys.stdout))
    if args.json is not None:
        write_document(results.to_json(found).decode(), args.json)
    bad = {results.FAILED, results.WRONG}
    return 1 if any(row.own.state in bad or results.WRONG in {e.state for e in row.entries} for row in rows) else 0


def _settings(args: argparse.Namespace, limits: "Limits", against: list[str]) -> dict[str, str]:
    """The options that decide what is measured, besides those that every row tells of itself."""
    return {
        "quick": str(args.quick),
        "seconds": f"{limits.seconds:g}",
        "limit": f"{limits.longest:g}",
        "backend": args.backend,
        "cpu": str(args.cpu),
        "against": ", ".join(against),
    }


def _against(wanted: list[str] | None, quick: bool, known: list[str]) -> list[str]:
    """The ways to compare with, of those that there are. wanted: their names, with or without a version."""
    if wanted is None:
        return [name for name in known if not (quick and name == COMPILED)]
    unknown = [name for name in wanted if name not in known and name not in map(_plain, known)]
    if unknown:
        said = ", ".join(map(_plain, known))
        raise CommandError(f"--against: there is no way '{unknown[0]}' to compare with here; there are {said}")
    return [name for name in known if name in wanted or _plain(name) in wanted]


def _plain(name: str) -> str:
    """'natten' of 'natten 0.21.6'."""
    return name.split()[0]


def _machine(subject: "Subject", load: tuple[float, ...]) -> "Machine":
    from ..bench.memory import machine_bytes
    from ..bench.results import Machine
    from .installation import machine

    found = machine()
    return Machine(
        os=found.os,
        architecture=found.architecture,
        chip=found.chip,
        gpu_cores=found.gpu_cores,
        device=subject.device,
        cpus=found.cpus or 1,
        threads=subject.threads,
        instruction_set=subject.instruction_set,
        memory_bytes=machine_bytes(),
        load=load,
    )


@contextmanager
def _progress(total: int, wanted: bool) -> "Iterator[Callable[[str, int], None]]":
    """A bar of rows on stderr; yields advance(what is measured, rows done)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(file=sys.stderr, force_terminal=True if wanted else None)
    columns = (
        TextColumn("bench"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda what, done: bar.update(task, description=what, advance=done)
