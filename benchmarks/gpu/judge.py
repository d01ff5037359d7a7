"""What tuned.py measured, judged: unit costs are fitted to the designed trials, and choose among the others.

    python benchmarks/gpu/judge.py benchmarks/results/tuned-h100.tsv [--worst 10]

Prints the tables of docs/planning.md. Needs scipy, no GPU.
"""

import argparse
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tuned import chosen, written

from natten_metal.metal.costs import UnitCosts
from natten_metal.metal.op_launches import MAX_SIMDGROUPS
from natten_metal.metal.templates import TEMPLATES
from natten_metal.metal.tiles import Candidate
from natten_metal.tuning.design import Trial
from natten_metal.tuning.fit import fit, quantile
from natten_metal.tuning.measure import Timed
from natten_metal.tuning.tune import Choice, judge, predicted, sample_of

# How much slower than the fastest tiling a choice is, at these shares of the kernels.
QUANTILES = (0.5, 0.75, 0.9, 0.95)


def read(path: Path) -> tuple[int, dict[str, list[Timed]]]:
    """The number of cores, and the trials of each set with their times."""
    first, _, *lines = path.read_text().splitlines()
    known = {trial.words: trial.problem for _, trial in chosen()}
    found: dict[str, list[Timed]] = defaultdict(list)
    for line in lines:
        purpose, problem, template, tiling, time, *_ = line.split("\t")
        found[purpose].append(Timed(Trial(known[problem], TEMPLATES[template], candidate(tiling)), float(time)))
    cores = re.search(r"(\d+) cores", first)
    assert cores is not None, "the first line names the GPU and its cores"
    return int(cores[1]), found


def candidate(word: str) -> Candidate:
    """The tiling that :func:`.tuned.written` wrote."""
    found = re.fullmatch(r"([\dx]+)h(\d)g(\d)([sdf])(?:t(\d))?", word)
    assert found is not None, word
    *leading, y, x = 1, 1, *map(int, found[1].split("x"))
    team = int(found[5] or 1)
    return Candidate((leading[-1], y, x), int(found[2]), int(found[3]), found[4] == "s", found[4] == "f", team=team)


def errors(rows: Sequence[Timed], costs: UnitCosts) -> list[float]:
    """Relative errors of predictions, without signs."""
    return [abs(predicted(one.trial, costs) / (one.microseconds or 0.0) - 1) for one in rows]


def losses(choices: Sequence[Choice], name: str) -> list[float]:
    """Times of the choices of 'tuned' or 'rule' over those of the fastest tilings."""
    return [getattr(choice, name) / choice.best for choice in choices]


def row(label: str, slower: Sequence[float]) -> str:
    """One line of the table of choices."""
    shares = [f"{sum(s <= limit for s in slower) / len(slower):.0%}" for limit in (1.05, 1.15)]
    at = [f"{quantile(slower, share):.3f}" for share in QUANTILES]
    return f"| {label} | {' | '.join(shares + at)} | {max(slower):.2f} | {statistics.mean(slower):.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("times", type=Path)
    parser.add_argument("--worst", type=int, default=8, help="how many of the worst choices to list")
    options = parser.parse_args()
    cores, sets = read(options.times)
    costs = fit("GPU", [sample_of(one) for one in sets["fitted"]], cores).costs
    print(f"cores {tuple(costs.cores)}\n")
    print("| problems | launches | median error | nine of ten below |\n|---|---|---|---|")
    for name, rows in sets.items():
        off = errors(rows, costs)
        print(f"| {name} | {len(rows)} | {statistics.median(off):.1%} | {quantile(off, 0.9):.1%} |")
    choices = judge(costs, sets["held out"], MAX_SIMDGROUPS)
    print(f"\n{len(choices)} kernels of problems held out, each beside the fastest of its tilings:\n")
    print(f"| choice | within 5 % | within 15 % | {' | '.join(f'{q:.0%}' for q in QUANTILES)} | worst | mean |")
    print("|---" * 9 + "|")
    for name in ("tuned", "rule"):
        print(row(name, losses(choices, name)))
        for template in TEMPLATES.values():
            own = [one for one in choices if one.timed.trial.template is template]
            if own:
                print(row(f"{name}, {template.name}", losses(own, name)))
    print(f"\nthe {options.worst} worst choices:\n")
    for one in sorted(choices, key=lambda one: -one.tuned / one.best)[: options.worst]:
        trial = one.timed.trial
        times = f"{one.best:.0f} us; {written(trial)} {one.tuned / one.best:.2f}, rule {one.rule / one.best:.2f}"
        print(f"{trial.words}, {trial.template.name}: {times}")
    print("\nprices, ns:", {name: round(price, 5) for name, price in costs.prices.items() if price})


if __name__ == "__main__":
    main()
