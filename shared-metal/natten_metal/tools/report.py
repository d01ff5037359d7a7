"""The ``report`` command of both packages: files of ``bench --json``, of one or several machines, as Markdown."""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .command_line import CommandError, check_outputs, end, need_matplotlib, write

if TYPE_CHECKING:
    from ..bench.report import Run

TEXT = "report.md"


def add_report(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", package: str) -> None:
    """Add the ``report`` command to a command line; it needs no framework."""
    parser = commands.add_parser(
        "report",
        help="join files of bench --json, of several machines, into Markdown and pictures",
        description="""Print the tables of files that `bench --json` wrote, of any machines and of both packages, as
            Markdown. With --out, write them to a folder with pictures: time against window and tokens, speed against
            sparsity, roofline, memory. Pictures need matplotlib.""",
        epilog=f"""examples: {package} report mac.json; {package} report mac.json linux.json --out times.
            For all pictures: {package} bench --problem models windows tokens --json mac.json.""",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="what bench --json wrote")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=f"write {TEXT} and pictures there; made if missing")
    parser.set_defaults(run=lambda arguments: end(f"{package} report", lambda: _report(arguments, package)))


def _report(args: argparse.Namespace, package: str) -> int:
    from ..bench import report, results

    try:
        found = report.runs([results.load(path) for path in args.files])
    except results.Unreadable as error:
        raise CommandError(str(error)) from None
    if args.out is None:
        print(report.markdown(found, ()), end="")
        return 0
    pictures = _pictures(found, args.out, package)
    write(args.out / TEXT, lambda file: file.write(report.markdown(found, pictures).encode()))
    print(f"wrote {args.out / TEXT}" + (f", with {', '.join(pictures)}" if pictures else ""))
    return 0


def _pictures(found: "list[Run]", folder: Path, package: str) -> list[str]:
    """Draw what the results have, into a folder; the names of the files."""
    from ..bench.plots import PICTURES

    need_matplotlib(package, "pictures need")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise CommandError(f"{folder}: cannot be made: {error.strerror}") from None
    check_outputs([folder / name for name in (TEXT, *PICTURES)])
    names = [run.name for run in found]
    made = []
    for name, picture in PICTURES.items():
        figure = picture.draw(names, [run.results for run in found])
        if figure is not None:
            write(folder / name, partial(figure.savefig, format="png"))
            made.append(name)
    return made
