"""Prints run.py's table in short, as Markdown: forward, backward, and other kernels' forward beside it.

    python benchmarks/gpu/summary.py RESULT.tsv

Of a kernel's register limits the better one counts. Rows whose variant is not one of jobs.CHANGES are other kernels for
the same problem, timed in the same run; the fastest of them counts.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

from jobs import CHANGES

Best = dict[str, float]  # microseconds by template; those of other kernels under "other"


def best(rows: list[dict[str, str]]) -> dict[tuple[str, str], Best]:
    """By (problem, dtype), each template's best time as planned."""
    found: dict[tuple[str, str], Best] = defaultdict(dict)
    for row in rows:
        if not row["microseconds"] or row["variant"] in set(CHANGES) - {"plan"}:
            continue
        name = row["template"] if row["variant"] == "plan" else "other"
        times = found[row["problem"], row["dtype"]]
        times[name] = min(times.get(name, float("inf")), float(row["microseconds"]))
    return found


def line(problem: str, dtype: str, times: Best) -> str:
    forward, other = times["na_fwd"], times.get("other")
    parts = [times[name] for name in ("na_delta", "na_bwd_dq", "na_bwd_dkv")]
    beside = f"{other:,.0f} | {forward / other:.2f}" if other else "- | -"
    shown = " + ".join(f"{part:,.0f}" for part in parts)
    return f"| {problem} | {dtype} | {forward:,.0f} | {beside} | {shown} | {sum(parts) / forward:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    machine, *table = parser.parse_args().result.read_text().splitlines()
    print(machine.removeprefix("# "), "\n")
    print("| problem | dtype | forward, us | prototype, us | ratio | delta + dQ + dK/dV, us | backward / forward |")
    print("|---|---|---|---|---|---|---|")
    for (problem, dtype), times in best(list(csv.DictReader(table, delimiter="\t"))).items():
        if "na_fwd" in times:
            print(line(problem, dtype, times))


if __name__ == "__main__":
    main()
