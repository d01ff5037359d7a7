"""Results as the table that ``bench`` prints."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

from . import figures, times
from .results import Machine, Peak, Results

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Of what is no terminal, which tells no width.
WIDTH = 128
COLUMNS = ("ms", "spread", "longer", "GFLOP/s", "of peak", "predicted", "MiB")
LEGEND = (
    "ms: the median; spread: between the 10th and the 90th percentile; longer: than the package takes, in the same",
    "rounds; GFLOP/s: useful ones alone; peak: the framework's own product of matrices here; MiB: beyond the inputs.",
)


def console(file: TextIO) -> "Console":
    """Where tables go: as wide as the terminal, and wide enough elsewhere."""
    from rich.console import Console

    class Pipe(Console):
        """A console that lets the command say how it ends when its reader has gone."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Pipe(file=file, width=None if file.isatty() else WIDTH, highlight=False, markup=False, emoji=False)


def empty(title: str, *columns: str, words: tuple[str, ...] = ()) -> "Table":
    """A table without rows. words: the columns, besides the first, that hold words and no numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title or None, box=SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for at, column in enumerate(columns):
        number = at > 0 and column not in words
        table.add_column(column, justify="right" if number else "left", no_wrap=number)
    return table


def machine_line(machine: Machine) -> str:
    """The machine in one line."""
    gpu = f", {machine.gpu_cores} GPU cores" if machine.gpu_cores else ""
    load = f", load {' to '.join(f'{each:.1f}' for each in machine.load)}" if machine.load else ""
    memory = f"{machine.memory_bytes / 2**30:.0f} GiB"
    where = f"{machine.chip}{gpu}, {machine.cpus} CPUs, {memory}, {machine.os}, {machine.architecture}"
    kernels = f" ({machine.instruction_set})" if machine.instruction_set else ""
    return f"{where}; on {machine.device}{kernels}, {machine.threads} threads{load}"


def settings_line(settings: Mapping[str, str]) -> str:
    """The settings in one line."""
    return "; ".join(f"{name} {value or 'nothing'}" for name, value in settings.items())


def peak_line(dtype: str, peak: Peak) -> str:
    """What the framework itself reached, in one line."""
    copies = times.digits(peak.gigabytes_per_second)
    return f"peak of {dtype}: {times.digits(peak.gflops)} GFLOP/s; copies: {copies} GB/s"


def show(found: Results, to: "Console") -> None:
    """Print the table, its notes, and the means over its rows."""
    to.print(
        f"{found.package} {found.package_version}, {found.framework}: {machine_line(found.machine)}", soft_wrap=True
    )
    for dtype, best in found.peaks.items():
        to.print(peak_line(dtype, best))
    notes = figures.Notes()
    table = empty("", "", *COLUMNS)
    for row in found.rows:
        table.add_row(f"{row.problem}, {row.dtype}, {row.direction}", style="bold")
        table.add_row(figures.title(row), style="dim")
        for entry in row.entries:
            each = figures.words(found, row, entry)
            name = f"  {each.name}" + (f" ({row.backend})" if entry is row.own else "")
            numbers = (each.time, each.spread, each.ratio, each.rate, each.of_peak, each.predicted, each.memory)
            table.add_row(name + notes.mark(each.note), *numbers)
        table.add_section()
    to.print(table)
    for line in (*LEGEND, *notes.lines()):
        to.print(line, soft_wrap=True)
    for line in means(found):
        to.print(line, soft_wrap=True)


def means(found: Results) -> list[str]:
    """For each direction and other way the geometric mean of the ratios that may be told."""
    lines = []
    for direction in dict.fromkeys(row.direction for row in found.rows):
        rows = [row for row in found.rows if row.direction == direction]
        for name in dict.fromkeys(entry.name for row in rows for entry in row.entries[1:]):
            ratios = figures.told(rows, lambda other, name=name: other == name)  # type: ignore[misc]
            mean = figures.geometric_mean(ratios)
            if mean is not None:
                told = f"takes {times.digits(mean)} times as long, geometric mean of {len(ratios)} rows"
                lines.append(f"{direction}: {name} {told}")
    return lines
