"""Results of one or several machines as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from . import figures
from .plots import PICTURES
from .results import Results, Row
from .table import LEGEND, machine_line, means, peak_line, settings_line


@dataclass(frozen=True, slots=True)
class Run:
    """One file's results. label: 'A', 'B', ... where there are several; '' where there is one."""

    label: str
    results: Results

    @property
    def name(self) -> str:
        """The package and its chip, and the label."""
        named = f"{self.results.package} on {self.results.machine.chip} ({self.results.machine.device})"
        return f"{self.label}: {named}" if self.label else named


def runs(found: Sequence[Results]) -> list[Run]:
    """The results with labels."""
    labels = [_label(at) for at in range(len(found))] if len(found) > 1 else [""]
    return [Run(label, each) for label, each in zip(labels, found, strict=True)]


def _label(at: int) -> str:
    """'A', ..., 'Z', 'AA', 'AB', ..."""
    before, letter = divmod(at, 26)
    return (_label(before - 1) if before else "") + chr(ord("A") + letter)


def markdown(found: Sequence[Run], pictures: Sequence[str]) -> str:
    """The report. pictures: the names of the files that lie beside it."""
    lines = ["# Times of neighborhood attention", ""]
    for run in found:
        lines += section(run)
    if len(found) > 1:
        lines += _side_by_side(found)
    for picture in pictures:
        lines += [f"## {PICTURES[picture].title}", "", f"![{PICTURES[picture].title}]({picture})", ""]
    return "\n".join(lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table whose first column is text."""
    marks = ["---"] + ["---:"] * (len(head) - 1)
    return [f"| {' | '.join(row)} |" for row in (head, marks, *rows)] + [""]


def ratios(run: Run, rows: Sequence[Row], notes: figures.Notes) -> list[str]:
    """A table of times, and of how many times as long each other way takes."""
    others = list(dict.fromkeys(entry.name for row in rows for entry in row.entries[1:]))
    head = ["problem", "ms", "spread", "GFLOP/s", "of peak", "predicted, ms", "MiB", *others]
    body = []
    for row in rows:
        own = figures.words(run.results, row, row.own)
        entries = {entry.name: figures.words(run.results, row, entry) for entry in row.entries[1:]}
        cells = [own.time, own.spread, own.rate, own.of_peak, own.predicted, own.memory]
        for name in others:
            each = entries.get(name)
            cells.append(figures.UNKNOWN if each is None else each.ratio + notes.mark(each.note))
        body.append([f"{row.problem}: {figures.title(row)}{notes.mark(own.note)}", *cells])
    return table(head, body)


def section(run: Run, level: int = 2) -> list[str]:
    """All of one run. level: of its heading."""
    found, notes, marks = run.results, figures.Notes(), "#" * level
    lines = [f"{marks} {run.name}", "", f"{found.package} {found.package_version}, {found.framework}, {found.began}."]
    lines += [f"{machine_line(found.machine)}.", f"Settings: {settings_line(found.settings)}.", ""]
    lines += [*(f"- {peak_line(dtype, peak)}" for dtype, peak in found.peaks.items()), ""]
    for dtype, direction in dict.fromkeys((row.dtype, row.direction) for row in found.rows):
        rows = [row for row in found.rows if (row.dtype, row.direction) == (dtype, direction)]
        backends = ", ".join(dict.fromkeys(row.backend for row in rows))
        lines += [f"{marks}# {direction.capitalize()}, {dtype}, backend {backends}", "", *ratios(run, rows, notes)]
    lines += [
        " ".join(LEGEND).replace("longer: than the package takes", "other columns: times as long as it takes"),
        "",
    ]
    lines += [f"- {line}" for line in (*notes.lines(), *means(found))]
    return [*lines, ""]


def _side_by_side(found: Sequence[Run]) -> list[str]:
    """The package's own milliseconds, one column for each run, of problems that several have."""
    keys: dict[tuple[object, ...], dict[str, str]] = {}
    for run in found:
        for row in run.results.rows:
            form = f"{row.problem}{', quick' if row.quick else ''}, {row.dtype}, {row.direction}"
            told = figures.words(run.results, row, row.own).time
            keys.setdefault((form,), {})[run.label] = told
    shared = {key: times for key, times in keys.items() if len(times) > 1}
    body = [[str(key[0]), *(times.get(run.label, figures.UNKNOWN) for run in found)] for key, times in shared.items()]
    return ["## Side by side, ms", "", *table(["problem", *(run.name for run in found)], body)] if body else []
