"""How neighborhood attention scales over processes: measured on this machine, and a model of many machines.

    python benchmarks/scaling.py measure                # 1, 2 and 4 processes here, over torch.distributed (gloo)
    python benchmarks/scaling.py model                  # the table of docs/scaling.md, and docs/scaling.svg

The model takes its bytes from the package's own messages; its rates are the assumptions below.
"""

import argparse
import math
import os
import subprocess
import sys
import time
from pathlib import Path

from natten_mps._metal.problem import shards
from natten_mps._metal.problem.shards import Shards

# --- measured ----------------------------------------------------------------------------------------

MEASURED = {"shape": (96, 96), "heads": 4, "head_dim": 32, "window": (9, 9)}


def one_process(repeats: int) -> None:
    """The median time of a training step of one layer, forward and backward, on process 0."""
    import torch
    import torch.distributed as dist

    from natten_mps import distributed

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    index, count = dist.get_rank(), dist.get_world_size()
    rows, columns = MEASURED["shape"]
    own = rows * (index + 1) // count - rows * index // count
    shape = (1, own, columns, MEASURED["heads"], MEASURED["head_dim"])
    query, key, value = (torch.randn(shape, requires_grad=True) for _ in range(3))
    times = []
    for _ in range(repeats + 2):
        dist.barrier()
        begin = time.perf_counter()
        out = distributed.na2d(query, key, value, MEASURED["window"])
        out.backward(torch.ones_like(out))
        dist.barrier()
        times.append(time.perf_counter() - begin)
    if index == 0:
        print(f"{count} {sorted(times[2:])[repeats // 2] * 1e3:.1f}")
    dist.destroy_process_group()


def measure(repeats: int, rounds: int) -> None:
    """1, 2 and 4 processes in turns, one thread each; the smallest of the medians."""
    best: dict[int, float] = {}
    for turn in range(rounds):
        for count in (1, 2, 4):
            port = str(29500 + 10 * turn + count)
            known = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
            known |= {"OMP_NUM_THREADS": "1", "NATTEN_NUM_THREADS": "1"}
            started = [
                subprocess.Popen(
                    [sys.executable, __file__, "process", "--repeats", str(repeats)],
                    env=known | {"RANK": str(index)},
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for index in range(count)
            ]
            printed, *_ = [each.communicate()[0].split() for each in started]
            best[count] = min(best.get(count, math.inf), float(printed[1]))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {MEASURED}")
    for count, milliseconds in best.items():
        print(f"{count} processes: {milliseconds:.1f} ms, {best[1] / milliseconds:.2f} x")


# --- modelled ----------------------------------------------------------------------------------------

SIDE, WINDOW, HEADS, HEAD_DIM, ITEMSIZE = 8192, 13, 8, 64, 2
BYTES_PER_TOKEN = HEADS * 2 * HEAD_DIM * ITEMSIZE  # key and value
FLOPS_PER_QUERY = 4 * WINDOW**2 * HEADS * HEAD_DIM
FLOPS = 4e12  # per second, of attention in float16: an assumption
# Bytes per second in one direction, and seconds before the first byte.
LINKS = {
    "10 GbE": (10e9 / 8, 100e-6),
    "Thunderbolt 4": (40e9 / 8, 100e-6),
    "Thunderbolt 5, RDMA": (7.6e9, 20e-6),
}
COUNTS = [2**power for power in range(1, 11)]


def cut(count: int, axes: int) -> Shards:
    """A square field on ``count`` devices: in rows, or in a grid that is as square as it can be."""
    along = (count, 1) if axes == 1 else (2 ** math.ceil(math.log2(count) / 2), 2 ** (int(math.log2(count)) // 2))
    bounds = tuple(tuple(SIDE * at // each for at in range(each + 1)) for each in along)
    return Shards(bounds, (0, 1), ((WINDOW,) * 2, (1, 1), (1, 1), (False, False)))


def busiest(shards_of: Shards) -> tuple[int, int, float, float]:
    """Of a device in the middle: bytes sent in all and over its busiest link, seconds of interior and of border."""
    center = [len(bounds) // 2 for bounds in shards_of.bounds]
    middle = shards_of.process_at([min(at, len(b) - 2) for at, b in zip(center, shards_of.bounds, strict=True)])
    links: dict[int, int] = {}
    for each in shards_of.messages():
        if each.source == middle:
            links[each.target] = links.get(each.target, 0) + BYTES_PER_TOKEN * shards.tokens(each.box)
    interior = shards_of.interior(middle)
    inside = shards.tokens(interior) if interior else 0
    seconds = FLOPS_PER_QUERY / FLOPS
    border = shards.tokens(shards_of.own(middle)) - inside
    return sum(links.values()), max(links.values()), inside * seconds, border * seconds


def model(out: Path) -> None:
    curves: dict[str, list[tuple[int, float]]] = {}
    print("| devices | cut in | sent by one | busiest link | interior | " + " | ".join(LINKS) + " |")
    print("|---:|---|---:|---:|---:|" + "---:|" * len(LINKS))
    for axes, name in ((1, "rows"), (2, "a grid")):
        for count in COUNTS:
            total, link, interior, border = busiest(cut(count, axes))
            cells = []
            for label, (rate, latency) in LINKS.items():
                travel = latency + link / rate
                shown = max(interior, travel) + border
                curves.setdefault(f"{label}, {name}", []).append((count, shown))
                cells.append(f"{travel * 1e3:.1f} ms" + ("" if travel <= interior else " **waits**"))
            curves.setdefault("no communication", []).append((count, interior + border))
            print(
                f"| {count} | {name} | {total / 1e6:.1f} MB | {link / 1e6:.1f} MB | {interior * 1e3:.1f} ms | "
                + " | ".join(cells)
                + " |"
            )
    curves["no communication"] = curves["no communication"][: len(COUNTS)]
    out.write_text(picture(curves))


COLORS = {"no communication": "#24292f", "10 GbE": "#c2410c", "Thunderbolt 4": "#7aa6d6", "Thunderbolt 5": "#1f4e8c"}
WIDTH, HEIGHT, LEFT, TOP, LEGEND = 770, 430, 70, 40, 250


def picture(curves: dict[str, list[tuple[int, float]]]) -> str:
    """Forward time per layer against devices, both logarithmic; a grid is dashed."""
    seconds = [y for points in curves.values() for _, y in points]
    low, high = math.floor(math.log10(min(seconds))), math.ceil(math.log10(max(seconds)))

    def at(count: float, value: float) -> tuple[float, float]:
        x = LEFT + (math.log2(count) - 1) / 9 * (WIDTH - LEFT - LEGEND)
        y = TOP + (high - math.log10(value)) / (high - low) * (HEIGHT - TOP - 50)
        return round(x, 1), round(y, 1)

    style = "text{font:12px sans-serif;fill:#24292f}.title{font-weight:bold}"
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}"><style>{style}</style>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20" class="title">Forward pass of one layer, {SIDE} x {SIDE} tokens (model)</text>',
    ]
    for power in range(low, high + 1):
        x, y = at(2, 10.0**power)
        drawn.append(f'<line x1="{x}" x2="{WIDTH - LEGEND}" y1="{y}" y2="{y}" stroke="#e2e2dc"/>')
        drawn.append(f'<text x="{x - 8}" y="{y + 4}" text-anchor="end">{1000 * 10.0**power:g} ms</text>')
    for count in COUNTS:
        x, y = at(count, 10.0**low)
        drawn.append(f'<text x="{x}" y="{y + 20}" text-anchor="middle">{count}</text>')
    drawn.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">devices</text>')
    for row, (label, points) in enumerate(curves.items()):
        color = next(color for start, color in COLORS.items() if label.startswith(start))
        dash = ' stroke-dasharray="6 4"' if label.endswith("grid") else ""
        line = " ".join(f"{x},{y}" for x, y in (at(*point) for point in points))
        drawn.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"{dash}/>')
        y = TOP + 18 * row
        drawn.append(
            f'<line x1="{WIDTH - LEGEND + 10}" x2="{WIDTH - LEGEND + 35}" y1="{y}" y2="{y}" stroke="{color}"{dash}/>'
        )
        drawn.append(f'<text x="{WIDTH - LEGEND + 42}" y="{y + 4}">{label}</text>')
    return "\n".join([*drawn, "</svg>", ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("measure", "model", "process"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "scaling.svg")
    chosen = parser.parse_args()
    if chosen.command == "process":
        one_process(chosen.repeats)
    elif chosen.command == "measure":
        measure(chosen.repeats, chosen.rounds)
    else:
        model(chosen.out)
