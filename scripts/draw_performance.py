"""Everything in the documents that comes from measured tables, so that no number in them is written by hand.

    python scripts/draw_performance.py

docs/cpu.svg, and what stands between the marks `<!-- times -->` of docs/performance.md and benchmarks/README.md: from
benchmarks/results/cpu-*.json, which `bench --json` wrote. docs/work.svg: from tests-parity/metal/work.tsv, the 8x8
products that the Metal kernels compute for each one that the windows need.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from natten_mps._metal.bench import figures, report, results
from natten_mps._metal.bench.problems import GROUPS
from natten_mps._metal.bench.report import Run
from natten_mps._metal.bench.table import machine_line, means
from natten_mps._metal.bench.ways import MASKED

ROOT = Path(__file__).parents[1]
RESULTS, MARK = ROOT / "benchmarks" / "results", "<!-- times -->"
TICKS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)
OURS, FLEX, DENSE, INK, FAINT = "#1f4e8c", "#d98c3f", "#9aa4b2", "#24292f", "#d7dde5"
LABELS, WIDTH, BAR = 345, 955, 11


@dataclass(frozen=True)
class Bars:
    """One row of a plot: its label, and its bars with their colors and the text behind each."""

    label: str
    bars: tuple[tuple[float, str, str], ...]


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a tab-separated file; lines that begin with # are remarks."""
    with open(path, newline="") as file:
        return list(csv.DictReader((line for line in file if not line.startswith("#")), delimiter="\t"))


def plot(title: str, axis: str, rows: list[Bars], ticks: tuple[float, ...], legend: dict[str, str], log: bool) -> str:
    """An SVG of horizontal bars, from the first tick to the last."""
    first, last = ticks[0], ticks[-1]
    room = WIDTH - LABELS - 70

    def position(value: float) -> float:
        share = math.log(value / first) / math.log(last / first) if log else (value - first) / (last - first)
        return LABELS + room * share

    drawn, top = [f'<text x="16" y="26" class="title">{title}</text>'], 70
    for at, (name, color) in enumerate(legend.items()):
        x = LABELS + 190 * at
        drawn.append(f'<rect x="{x}" y="38" width="12" height="10" fill="{color}"/>')
        drawn.append(f'<text x="{x + 18}" y="47" class="small">{name}</text>')
    heights = [len(row.bars) * BAR + 9 for row in rows]
    bottom = top + sum(heights)
    for tick in ticks:
        x = position(tick)
        drawn.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6}" y2="{bottom}" stroke="{FAINT}"/>')
        drawn.append(f'<text x="{x:.1f}" y="{bottom + 16}" class="small middle">{tick:g}</text>')
    for row, height in zip(rows, heights, strict=True):
        drawn.append(f'<text x="{LABELS - 10}" y="{top + height / 2 - 1:.1f}" class="small end">{row.label}</text>')
        for value, color, text in row.bars:
            long = position(value) - LABELS
            drawn.append(f'<rect x="{LABELS}" y="{top}" width="{long:.1f}" height="{BAR - 2}" fill="{color}"/>')
            drawn.append(f'<text x="{LABELS + long + 5:.1f}" y="{top + BAR - 3}" class="tiny">{text}</text>')
            top += BAR
        top += 9
    drawn.append(f'<text x="{LABELS + room / 2:.0f}" y="{bottom + 34}" class="small middle">{axis}</text>')
    style = (
        f"text{{font-family:-apple-system,Helvetica,Arial,sans-serif;fill:{INK}}}.title{{font-size:15px;font-weight:600}}"
        ".small{font-size:12px}.tiny{font-size:10px}.end{text-anchor:end}.middle{text-anchor:middle}"
    )
    size = f'width="{WIDTH}" height="{bottom + 46}" viewBox="0 0 {WIDTH} {bottom + 46}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *drawn, "</svg>"])


def measured() -> list[Run]:
    """The committed results, those of the plot first."""
    return report.runs([results.load(RESULTS / name) for name in ("cpu-mps.json", "cpu-mlx.json", "cpu-kinds.json")])


def cpu() -> str:
    """Forward times of natten-mps on a CPU, beside compiled flex_attention and dense attention with a mask."""
    rows, colors = [], {"natten-mps": OURS, "flex_attention": FLEX, MASKED: DENSE}
    for row in measured()[0].results.rows:
        times = {entry.name: entry.median_us / 1e3 for entry in row.entries if entry.median_us}
        bars = (
            (times[way], color, f"{figures.milliseconds(1e3 * times[way])} ms")
            for way, color in colors.items()
            if way in times
        )
        if row.direction == results.FORWARD:
            rows.append(Bars(f"{row.problem}: {figures.sizes(row).replace(' tokens', '')}", tuple(bars)))
    legend = {"natten-mps, CPU kernels": OURS, "flex_attention, compiled": FLEX, "attention with a mask": DENSE}
    ends = [value for row in rows for value, _, _ in row.bars]
    ticks = tuple(tick for tick in TICKS if min(ends) / 3.4 < tick < max(ends) * 3.4)
    title = "Forward on a CPU, small forms of the problems, float32 (shorter is better)"
    return plot(title, "milliseconds, logarithmic", rows, ticks, legend, log=True)


def summary() -> str:
    """The machine and the means, as paragraphs of docs/performance.md."""
    lines = []
    for run in measured():
        found = run.results
        lines += [f"{found.package} {found.package_version}, {found.framework}: {machine_line(found.machine)}.", ""]
        lines += [f"- {line}" for line in means(found)] + [""]
    return "\n".join(lines)


def command(found: results.Results) -> str:
    """The command that measures the same again, from what the file says of itself."""
    settings, rows = found.settings, found.rows
    training = any(row.direction == results.TRAINING for row in rows)
    measured = {row.problem for row in rows}
    groups = [name for name, group in GROUPS.items() if {named.name for named in group} == measured]
    words = [found.package, "bench", *(["--problem", *groups] if groups != ["models"] else [])]
    words += [f"--{name}" for name in ("cpu", "quick") if settings[name] == "True"] + ["--backward"] * training
    words += [word for name in ("seconds", "limit", "backend") for word in (f"--{name}", settings[name])]
    words += ["--against", *dict.fromkeys(entry.name.split()[0] for row in rows for entry in row.entries[1:])]
    return " ".join(words)


def tables() -> str:
    """All figures, as a section of benchmarks/README.md."""
    lines = []
    for run in measured():
        title, *rest = report.section(run, level=3)
        lines += [title, "", f"    {command(run.results)}", *rest]
    return "\n".join(lines)


def with_block(text: str, block: str) -> str:
    """A document with ``block`` between its marks."""
    before, _, after = text.split(MARK)
    return f"{before}{MARK}\n\n{block.strip()}\n\n{MARK}{after}"


def work() -> str:
    """Products computed by the Metal kernels for each product that the windows need."""
    problems: dict[str, dict[str, float]] = {}
    for row in table(ROOT / "tests-parity" / "metal" / "work.tsv"):
        problems.setdefault(row["problem"], {})[row["kernel"]] = float(row["ratio"])
    kernels = {"na_fwd": OURS, "na_bwd_dq": DENSE, "na_bwd_dkv": FLEX}
    rows = [
        Bars(
            name, tuple((found[each], color, f"{found[each]:.2f}") for each, color in kernels.items() if each in found)
        )
        for name, found in problems.items()
    ]
    legend = {"forward": OURS, "gradient of queries": DENSE, "gradients of keys, values": FLEX}
    title = "8x8 products computed for each one that the windows need (1 is ideal)"
    return plot(title, "computed / needed", rows, (0, 1, 2, 3, 4), legend, log=False)


def written() -> dict[Path, str]:
    """Every file that this writes, with its text."""
    performance, readme = ROOT / "docs" / "performance.md", ROOT / "benchmarks" / "README.md"
    return {
        ROOT / "docs" / "cpu.svg": cpu() + "\n",
        ROOT / "docs" / "work.svg": work() + "\n",
        performance: with_block(performance.read_text(), summary()),
        readme: with_block(readme.read_text(), tables()),
    }


def main() -> None:
    for path, text in written().items():
        path.write_text(text)
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
