"""Prints run.py's times of the 8x8 kernels beside those of the kernels on matrix units, as Markdown.

    python benchmarks/gpu/units.py RESULT.tsv

RESULT.tsv: of ``run.py --problem MATRIX_UNITS --variant plan --variant mpp-run --variant mpp-flat``. Of a kernel's
register limits the better one counts.
"""

import argparse
from pathlib import Path

from jobs import MATRIX_UNITS
from ways import WALKS, Times, best

from natten_metal.metal.templates import ON_MATRIX_UNITS


def on_units(template: str) -> str:
    """The template that walks as this one on matrix units."""
    return ON_MATRIX_UNITS[template].name


def cell(times: Times, problem: str, dtype: str, template: str) -> str:
    """``8x8 -> run / flat us (bricks of run over those of flat)`` of one walk."""
    plan = times[problem, dtype, template, "plan"]
    run, flat = (times[problem, dtype, on_units(template), variant] for variant in ("mpp-run", "mpp-flat"))
    given = f"{plan.microseconds:,.0f} -> {run.microseconds:,.0f} / {flat.microseconds:,.0f}"
    return f"{given} ({run.bricks / flat.bricks:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    times = best(parser.parse_args().result, (*WALKS, *map(on_units, WALKS)))
    print("| problem | dtype | forward, us | dQ, us | dK/dV, us |\n" + "|---" * 5 + "|")
    for problem in MATRIX_UNITS:
        for dtype in ("float16", "bfloat16"):
            if (problem, dtype, "na_fwd", "plan") in times:
                print(f"| {problem} | {dtype} | {' | '.join(cell(times, problem, dtype, walk) for walk in WALKS)} |")


if __name__ == "__main__":
    main()
