"""Prints run.py's times of bricks in rows of their own ("run") beside flat ones, as Markdown.

    python benchmarks/gpu/ways.py RESULT.tsv

RESULT.tsv: of ``run.py --problem CHOSEN_ON --problem HELD_OUT --variant run --variant flat``. Of a kernel's register
limits the better one counts. saved: run's bricks over flat ones; ratio: flat's time over run's.
"""

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

from jobs import CHOSEN_ON, HELD_OUT

WALKS = ("na_fwd", "na_bwd_dq", "na_bwd_dkv")


class Best(NamedTuple):
    """The faster of a kernel's two builds."""

    microseconds: float
    bricks: int


def best(path: Path) -> dict[tuple[str, str, str, str], Best]:
    """By (problem, dtype, template, variant)."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    found: dict[tuple[str, str, str, str], Best] = {}
    for row in csv.DictReader(lines, delimiter="\t"):
        if row["microseconds"] and row["template"] in WALKS:
            key = row["problem"], row["dtype"], row["template"], row["variant"]
            own = Best(float(row["microseconds"]), int(float(row["bricks"])))
            found[key] = min(own, found.get(key, own))
    return found


def cell(times: dict[tuple[str, str, str, str], Best], problem: str, dtype: str, template: str) -> str:
    """``run -> flat us (saved, ratio)`` of one walk."""
    run, flat = (times[problem, dtype, template, variant] for variant in ("run", "flat"))
    saved, ratio = run.bricks / flat.bricks, flat.microseconds / run.microseconds
    return f"{run.microseconds:,.0f} -> {flat.microseconds:,.0f} ({saved:.2f}, {ratio:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    times = best(parser.parse_args().result)
    for half in (CHOSEN_ON, HELD_OUT):
        print("| problem | dtype | forward, us (saved, ratio) | dQ | dK/dV |\n|---|---|---|---|---|")
        for problem in half:
            for dtype in sorted({key[1] for key in times if key[0] == problem}):
                cells = (cell(times, problem, dtype, template) for template in WALKS)
                print(f"| {problem} | {dtype} | {' | '.join(cells)} |")
        print()


if __name__ == "__main__":
    main()
