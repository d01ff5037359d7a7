"""Prints run.py's times of one way to walk beside another, as Markdown.

    python benchmarks/gpu/ways.py RESULT.tsv                       # bricks in rows of their own ("run") and flat ones
    python benchmarks/gpu/ways.py RESULT.tsv --between alone plan --sets TEAM_CHOSEN_ON TEAM_HELD_OUT

RESULT.tsv: of ``run.py`` with these problems and variants. Of a kernel's register limits the better one counts. saved:
the first way's bricks over the second's; ratio: the second's time over the first's.
"""

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

from jobs import SETS

WALKS = ("na_fwd", "na_bwd_dq", "na_bwd_dkv")
BACKWARD = ("na_delta", "na_bwd_dq", "na_bwd_dkv")


class Best(NamedTuple):
    """The faster of a kernel's two builds."""

    microseconds: float
    bricks: int


def best(path: Path, templates: tuple[str, ...] = (*WALKS, *BACKWARD)) -> dict[tuple[str, str, str, str], Best]:
    """By (problem, dtype, template, variant), of these templates."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    found: dict[tuple[str, str, str, str], Best] = {}
    for row in csv.DictReader(lines, delimiter="\t"):
        if row["microseconds"] and row["template"] in templates:
            key = row["problem"], row["dtype"], row["template"], row["variant"]
            own = Best(float(row["microseconds"]), int(float(row["bricks"])))
            found[key] = min(own, found.get(key, own))
    return found


Times = dict[tuple[str, str, str, str], Best]


def cell(times: Times, ways: list[str], problem: str, dtype: str, template: str) -> str:
    """``first -> second us (saved, ratio)`` of one walk."""
    first, second = (times[problem, dtype, template, variant] for variant in ways)
    saved, ratio = first.bricks / second.bricks, second.microseconds / first.microseconds
    return f"{first.microseconds:,.0f} -> {second.microseconds:,.0f} ({saved:.2f}, {ratio:.2f})"


def backward_over_forward(times: Times, variant: str, problem: str, dtype: str) -> float:
    """Time of all launches of the backward over that of the forward, which does not depend on the variant."""
    forward = min(own.microseconds for key, own in times.items() if key[:3] == (problem, dtype, "na_fwd"))
    return sum(times[problem, dtype, template, variant].microseconds for template in BACKWARD) / forward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("--between", nargs=2, default=["run", "flat"], help="two variants")
    parser.add_argument("--sets", nargs="+", default=["CHOSEN_ON", "HELD_OUT"], choices=SETS)
    options = parser.parse_args()
    times, ways = best(options.result), options.between
    for half in (SETS[name] for name in options.sets):
        print("| problem | dtype | forward, us (saved, ratio) | dQ | dK/dV | backward / forward |\n" + "|---" * 6 + "|")
        for problem in half:
            for dtype in sorted({key[1] for key in times if key[0] == problem}):
                cells = [cell(times, ways, problem, dtype, template) for template in WALKS]
                cells += [" -> ".join(f"{backward_over_forward(times, way, problem, dtype):.2f}" for way in ways)]
                print(f"| {problem} | {dtype} | {' | '.join(cells)} |")
        print()


if __name__ == "__main__":
    main()
