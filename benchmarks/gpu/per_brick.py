"""Prints run.py's times per executed brick beside dense attention of the same head dim, as Markdown.

    python benchmarks/gpu/per_brick.py RESULT.tsv

RESULT.tsv: of ``run.py --problem BRICKS``, perhaps with other problems too. Of a kernel's register limits the better
one counts. executed / useful: bricks that the forward executes over those that the windows hold.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

from jobs import DENSE, PROBLEMS

from natten_metal.problem.mask import pairs

FORWARD, QUERIES, KEYS, DELTA = "na_fwd", "na_bwd_dq", "na_bwd_dkv", "na_delta"
HEADS = (
    "forward, us",
    "ns a brick / dense",
    "executed / useful",
    "dQ: / dense",
    "dK/dV: / dense",
    "backward / forward",
)
# Pairs of a query and a key that a brick holds.
BRICK_PAIRS = 64


def best(path: Path) -> dict[tuple[str, str], dict[str, tuple[float, int]]]:
    """By (problem, dtype): (microseconds, bricks) of each template's faster build, as planned."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    found: dict[tuple[str, str], dict[str, tuple[float, int]]] = defaultdict(dict)
    for row in csv.DictReader(lines, delimiter="\t"):
        if row["microseconds"] and row["variant"] == "plan":
            own = float(row["microseconds"]), int(float(row["bricks"]))
            times = found[row["problem"], row["dtype"]]
            times[row["template"]] = min(own, times.get(row["template"], own))
    return found


def line(problem: str, times: dict[str, tuple[float, int]], dense: dict[str, tuple[float, int]]) -> str:
    """One row of the table. dense: the same launches of dense attention."""
    one = PROBLEMS[problem]
    beside = {}
    for name in (FORWARD, QUERIES, KEYS):
        (own, bricks), (other, all_bricks) = times[name], dense[name]
        beside[name] = own / bricks / (other / all_bricks)
    useful = pairs(one) * one.batch * one.heads / BRICK_PAIRS
    backward = sum(times[name][0] for name in (DELTA, QUERIES, KEYS))
    forward, bricks = times[FORWARD]
    return (
        f"| {problem} | {forward:,.0f} | {beside[FORWARD]:.2f} | {bricks / useful:.2f} "
        f"| {beside[QUERIES]:.2f} | {beside[KEYS]:.2f} | {backward / forward:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    times = best(parser.parse_args().result)
    for dtype in sorted({dtype for _, dtype in times}):
        print(f"{dtype}\n\n| problem | {' | '.join(HEADS)} |\n|{'---|' * (1 + len(HEADS))}")
        for (problem, own), found in times.items():
            if own == dtype and FORWARD in found and PROBLEMS[problem].head_dim in DENSE:
                (dense,) = DENSE[PROBLEMS[problem].head_dim]
                print(line(problem, found, times[dense, dtype]))
        print()


if __name__ == "__main__":
    main()
