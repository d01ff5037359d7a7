"""Figures of a row as the table and the report say them: each with what keeps it from being told, if anything does."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from . import times
from .results import Entry, Results, Row

UNKNOWN = "-"


@dataclass(frozen=True, slots=True)
class Figures:
    """One entry of a row in words. note: why a time is missing or a ratio is not told; '' if all is."""

    name: str
    time: str
    spread: str
    ratio: str
    rate: str
    of_peak: str
    predicted: str
    memory: str
    note: str


def milliseconds(microseconds: float) -> str:
    """Three digits, in milliseconds."""
    return times.digits(microseconds / 1e3)


def mebibytes(count: int | None) -> str:
    """Three digits, in MiB; '-' where it is not known."""
    return UNKNOWN if count is None else times.digits(count / 2**20)


def faster(row: Row, entry: Entry) -> times.Ratio | None:
    """How many times as long another way takes as the package; None where one of them was not timed."""
    if entry is row.own or not entry.times_us or not row.own.times_us:
        return None
    return times.ratio(entry.times_us, row.own.times_us)


def rate(row: Row, entry: Entry) -> float | None:
    """Useful GFLOP/s: what the window needs, whatever the way computes besides."""
    return row.flops / entry.median_us / 1e3 if entry.median_us else None


def of_peak(found: Results, row: Row, entry: Entry) -> float | None:
    """The share of the framework's own product in this run."""
    speed = rate(row, entry)
    return speed / found.peaks[row.dtype].gflops if speed is not None else None


def words(found: Results, row: Row, entry: Entry) -> Figures:
    """All figures of an entry."""
    own, compared = entry is row.own, faster(row, entry)
    predicted = milliseconds(row.predicted_us) if own and row.predicted_us is not None else UNKNOWN
    speed, part = rate(row, entry), of_peak(found, row, entry)
    if entry.median_us is None or speed is None:
        missing = (UNKNOWN,) * 5
        return Figures(entry.name, *missing, predicted if own else "", UNKNOWN, entry.reason)
    share = times.spread(entry.times_us) / entry.median_us
    return Figures(
        name=entry.name,
        time=milliseconds(entry.median_us),
        spread=f"{share:.0%}",
        ratio="" if own else UNKNOWN if compared is None else str(compared),
        rate=times.digits(speed),
        of_peak=f"{part:.0%}",
        predicted=predicted if own else "",
        memory=mebibytes(entry.peak_bytes),
        note="" if compared is None else compared.reason,
    )


def sizes(row: Row) -> str:
    """Tokens and window in a few words."""

    def product(numbers: tuple[int, ...]) -> str:
        return "x".join(map(str, numbers))

    parts = [f"{product(row.shape)} tokens", f"window {product(row.kernel_size)}"]
    if max(row.stride) > 1:
        parts.append(f"stride {product(row.stride)}")
    if max(row.dilation) > 1:
        parts.append(f"dilation {product(row.dilation)}")
    return ", ".join(parts + ["causal"] * any(row.is_causal))


def title(row: Row) -> str:
    """A problem in a few words."""
    heads = f"{row.heads} head{'s' * (row.heads > 1)}" + (f" on {row.kv_heads}" if row.kv_heads != row.heads else "")
    return f"{sizes(row)}, {heads} of {row.head_dim}" + (f", batch {row.batch}" if row.batch > 1 else "")


class Notes:
    """Footnotes: equal ones share a number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, note: str) -> str:
        """' [1]' for a note, '' for none."""
        return f" [{self._numbers.setdefault(note, len(self._numbers) + 1)}]" if note else ""

    def lines(self) -> list[str]:
        """The notes in the order of their numbers."""
        return [f"[{number}] {note}" for note, number in self._numbers.items()]


def geometric_mean(ratios: list[float]) -> float | None:
    """None of no ratios."""
    return statistics.geometric_mean(ratios) if ratios else None


def told(rows: list[Row], name: Callable[[str], bool]) -> list[float]:
    """The ratios to the entries of a name that may be told."""
    compared = (faster(row, entry) for row in rows for entry in row.entries[1:] if name(entry.name))
    return [ratio.value for ratio in compared if ratio is not None and not ratio.reason]
