"""Pictures of results, by matplotlib, which is imported when the first is drawn."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import figures
from .results import Entry, Results, Row
from .ways import GATHERED, MASKED, SDPA

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A color for each way; the package's own is the first. Others get the remaining ones in turn.
OWN, INK, FAINT = "#1f4e8c", "#24292f", "#d7dde5"
COLORS = {SDPA: "#9aa4b2", MASKED: "#57606a", GATHERED: "#8a5a9e", "flex_attention": "#d98c3f"}
FURTHER = ("#2f8f5b", "#b3402e", "#b59f00")
MARKERS = "osD^v<>P"
NAMED = "windows-", "tokens-"


@dataclass(frozen=True, slots=True)
class Picture:
    """title: in words. draw(names, results): the figure, or None where the results have nothing to show in it."""

    title: str
    draw: "Callable[[Sequence[str], Sequence[Results]], Figure | None]"


def color(name: str, own: bool) -> str:
    """The color of a way."""
    if own:
        return OWN
    return COLORS.get(name) or FURTHER[sum(map(ord, name)) % len(FURTHER)]


def _figure(panels: int, width: float, height: float, one_scale: bool = True) -> "tuple[Figure, list[Any]]":
    """A figure with panels side by side. one_scale: whether their vertical axes are the same."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * panels, height), layout="constrained", dpi=110)
    axes = list(figure.subplots(1, panels, squeeze=False, sharey=one_scale)[0])
    for each in axes:
        each.grid(True, which="major", color=FAINT, linewidth=0.8)
        each.set_axisbelow(True)
        for side in ("top", "right"):
            each.spines[side].set_visible(False)
    return figure, axes


def _plain(axis: Any) -> None:
    """Ticks as plain numbers, not as powers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _series(prefix: str, along: str, size: Callable[[Row], int]) -> Callable[..., "Figure | None"]:
    """Times of a series of problems against the number that grows in it."""

    def draw(names: Sequence[str], found: Sequence[Results]) -> "Figure | None":
        panels: list[tuple[str, list[Row]]] = []
        for name, results in zip(names, found, strict=True):
            for kind in dict.fromkeys((row.dtype, row.direction) for row in results.rows):
                rows = [r for r in results.rows if r.problem.startswith(prefix) and (r.dtype, r.direction) == kind]
                if len(rows) > 1:
                    panels.append((f"{name}\n{kind[0]}, {kind[1]}", sorted(rows, key=size)))
        if not panels:
            return None
        figure, axes = _figure(len(panels), 4.6 if len(panels) > 1 else 6.4, 4.2)
        for axis, (title, rows) in zip(axes, panels, strict=True):
            ways = dict.fromkeys(entry.name for row in rows for entry in row.entries)
            for at, way in enumerate(ways):
                points = [
                    (size(r), e.median_us / 1e3) for r in rows for e in r.entries if e.name == way and e.median_us
                ]
                if points:
                    style = {"linewidth": 2.4, "zorder": 3} if not at else {"linewidth": 1.6}
                    axis.plot(
                        *zip(*points, strict=True), "o-", markersize=4, color=color(way, not at), label=way, **style
                    )
            axis.set(xscale="log", yscale="log", xlabel=along)
            axis.set_title(title, fontsize=10)
            ticks = sorted({size(row) for row in rows})
            axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=8, rotation=45 if max(ticks) > 999 else 0)
            axis.minorticks_off()
            _plain(axis.yaxis)
        axes[0].set_ylabel("milliseconds")
        axes[-1].legend(frameon=False, fontsize=9)
        return figure

    return draw


def _points(
    names: Sequence[str], found: Sequence[Results], value: Callable[[Results, Row], "tuple[float, float] | None"]
) -> list[tuple[str, list[tuple[float, float, str]]]]:
    """x, y and the problem of every row that has both, by run."""
    by_run = []
    for name, results in zip(names, found, strict=True):
        points = []
        for row in results.rows:
            point = value(results, row)
            if point is not None:
                points.append((*point, "" if row.problem.startswith(NAMED) else row.problem))
        by_run.append((name, points))
    return by_run


def _scatter(axis: Any, by_run: list[tuple[str, list[tuple[float, float, str]]]]) -> None:
    """The points, a marker for each run, with the names of problems."""
    shades = (OWN, *FURTHER)
    for at, (name, points) in enumerate(by_run):
        if not points:
            continue
        shade, marker = shades[at % len(shades)], MARKERS[at % len(MARKERS)]
        axis.scatter(*list(zip(*points, strict=True))[:2], s=34, color=shade, marker=marker, label=name, zorder=3)
        # Neighbors along x have their names above and below in turns, each problem once.
        named = {label: (x, y) for x, y, label in sorted(points, reverse=True) if label}
        for turn, (label, place) in enumerate(sorted(named.items(), key=lambda one: one[1])):
            offset = (5, 5) if turn % 2 else (5, -11)
            axis.annotate(label, place, xytext=offset, textcoords="offset points", fontsize=7.5, color=INK)


def _sparsity(names: Sequence[str], found: Sequence[Results]) -> "Figure | None":
    """How much longer dense attention takes, against the share of pairs that the windows hold."""

    def value(results: Results, row: Row) -> tuple[float, float] | None:
        entry = next((each for each in row.entries[1:] if each.name == SDPA), None)
        ratio = None if entry is None else figures.faster(row, entry)
        return None if ratio is None or ratio.reason else (row.density, ratio.value)

    by_run = _points(names, found, value)
    everything = [point for _, points in by_run for point in points]
    if not everything:
        return None
    figure, (axis,) = _figure(1, 7.2, 4.8)
    low = min(x for x, _, _ in everything) / 1.5
    axis.plot(
        [low, 1], [1 / low, 1], color=INK, linewidth=1, linestyle="--", label="no pair too many, at the same speed"
    )
    axis.axhline(1, color=FAINT, linewidth=1.5)
    _scatter(axis, by_run)
    axis.set(xscale="log", yscale="log", xlabel="share of all pairs that the windows hold")
    axis.set_ylabel("attention over all pairs takes ... times as long")
    _plain(axis.xaxis)
    _plain(axis.yaxis)
    axis.legend(frameon=False, fontsize=9)
    return figure


def _roofline(names: Sequence[str], found: Sequence[Results]) -> "Figure | None":
    """Useful GFLOP/s against useful operations for each byte that must move, under what this machine reached."""

    def value(results: Results, row: Row) -> tuple[float, float] | None:
        rate = figures.rate(row, row.own)
        return None if rate is None else (row.flops / row.least_bytes, rate)

    by_run = _points(names, found, value)
    everything = [point for _, points in by_run for point in points]
    if not everything:
        return None
    figure, (axis,) = _figure(1, 7.2, 4.8)
    ends = min(x for x, _, _ in everything) / 1.6, max(x for x, _, _ in everything) * 1.6
    for at, results in enumerate(found):
        for dtype, peak in results.peaks.items():
            bend = peak.gflops / peak.gigabytes_per_second
            grid = [ends[0], *([bend] if ends[0] < bend < ends[1] else []), ends[1]]
            roof = [min(peak.gflops, x * peak.gigabytes_per_second) for x in grid]
            axis.plot(grid, roof, color=(OWN, *FURTHER)[at % 4], linewidth=1.4, alpha=0.7)
            label = f"product and copy, {dtype}" + (f", {names[at]}" if len(found) > 1 else "")
            axis.annotate(label, (ends[1], roof[-1]), (-4, 5), textcoords="offset points", ha="right", fontsize=8)
    _scatter(axis, by_run)
    axis.set(xscale="log", yscale="log", ylabel="useful GFLOP/s")
    axis.set_xlabel("useful operations for each byte that must be read or written")
    _plain(axis.xaxis)
    _plain(axis.yaxis)
    axis.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def _memory(names: Sequence[str], found: Sequence[Results]) -> "Figure | None":
    """Memory of each way beyond its inputs, forward."""
    panels = []
    for name, results in zip(names, found, strict=True):
        rows = [row for row in results.rows if not row.problem.startswith(NAMED) and any(map(_bytes, row.entries))]
        if rows:
            panels.append((name, rows))
    if not panels:
        return None
    bars = max(sum(1 for row in rows for entry in row.entries if _bytes(entry)) for _, rows in panels)
    height = 1.2 + 0.16 * bars + 0.12 * max(len(rows) for _, rows in panels)
    figure, axes = _figure(len(panels), 6.0, max(3.0, height), False)
    for axis, (name, rows) in zip(axes, panels, strict=True):
        place, ticks, labels = 0.0, [], []
        for row in rows:
            shown = [(entry, at == 0) for at, entry in enumerate(row.entries) if _bytes(entry)]
            ticks.append(place - (len(shown) - 1) / 2)
            labels.append(f"{row.problem}\n{row.dtype}, {row.direction}")
            for entry, own in shown:
                axis.barh(place, _bytes(entry), 0.85, color=color(entry.name, own))
                axis.annotate(
                    figures.mebibytes(entry.peak_bytes),
                    (_bytes(entry), place),
                    (3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=7,
                )
                place -= 1
            place -= 1
        axis.set_yticks(ticks, labels, fontsize=8)
        axis.set_ylim(place + 1, 1)
        axis.set(xscale="log", xlabel="MiB beyond the inputs")
        axis.set_title(name, fontsize=10)
        axis.grid(False, axis="y")
        _plain(axis.xaxis)
    _legend(axes[-1], [row for _, rows in panels for row in rows])
    return figure


def _bytes(entry: Entry) -> float:
    """MiB; 0 where they are not known."""
    return max(entry.peak_bytes, 2**12) / 2**20 if entry.peak_bytes is not None else 0.0


def _legend(axis: Any, rows: Sequence[Row]) -> None:
    """A patch of color for each way."""
    from matplotlib.patches import Patch

    ways = {entry.name: color(entry.name, at == 0) for row in rows for at, entry in enumerate(row.entries)}
    patches = [Patch(color=shade, label=name) for name, shade in ways.items()]
    axis.legend(
        handles=patches, frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.06), ncols=len(ways)
    )


PICTURES = {
    "window.png": Picture(
        "Time against the window", _series("windows-", "window along each axis", lambda row: row.kernel_size[0])
    ),
    "tokens.png": Picture("Time against the tokens", _series("tokens-", "tokens", lambda row: math.prod(row.shape))),
    "sparsity.png": Picture("Speed against attention over all pairs, by how sparse the windows are", _sparsity),
    "roofline.png": Picture("Speed against what the machine can do", _roofline),
    "memory.png": Picture("Memory", _memory),
}
