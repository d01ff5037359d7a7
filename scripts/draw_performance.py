"""Draw the plots of docs/performance.md from measured tables: docs/cpu.svg and docs/work.svg.

    python scripts/draw_performance.py

cpu.svg: benchmarks/results/cpu-avx512.tsv, times on a CPU. work.svg: tests-parity/metal/work.tsv, the 8x8 products that
the Metal kernels compute for each one that the windows need.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
OURS, FLEX, DENSE, INK, FAINT = "#1f4e8c", "#d98c3f", "#9aa4b2", "#24292f", "#d7dde5"
LABELS, WIDTH, BAR = 290, 900, 11


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


def cpu() -> str:
    """Forward times on a CPU, beside compiled flex_attention and dense attention with a mask."""
    rows = []
    for row in table(ROOT / "benchmarks" / "results" / "cpu-avx512.tsv"):
        times = [(float(row[name]), color) for name, color in (("forward", OURS), ("flex", FLEX), ("dense", DENSE))]
        rows.append(Bars(row["problem"], tuple((time, color, f"{time:.3g} ms") for time, color in times)))
    legend = {"natten-mps, CPU kernels": OURS, "flex_attention, compiled": FLEX, "dense with a mask": DENSE}
    title = "Forward on two cores of a CPU, float32 (shorter is better)"
    return plot(title, "milliseconds, logarithmic", rows, (1, 3, 10, 30, 100, 300, 1000), legend, log=True)


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


def main() -> None:
    for name, drawn in (("cpu.svg", cpu()), ("work.svg", work())):
        (ROOT / "docs" / name).write_text(drawn + "\n")
        print(f"wrote docs/{name}")


if __name__ == "__main__":
    main()
