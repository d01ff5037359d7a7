"""What tuned.py measured, judged: unit costs are fitted to the designed trials, and choose among the others.

    python benchmarks/gpu/judge.py benchmarks/results/tuned-h100.tsv [--worst 10]

Prints the tables of docs/planning.md. Needs scipy, no GPU.
"""

import argparse
import re
import statistics
from collections import defaultdict
from pathlib import Path

from tuned import chosen, written

from natten_metal.metal.costs import UnitCosts, microseconds
from natten_metal.metal.counts import counts_of
from natten_metal.metal.op_launches import MAX_SIMDGROUPS
from natten_metal.metal.templates import FORWARD, TEMPLATES
from natten_metal.metal.tiles import padded_dim
from natten_metal.metal.tiling import Candidate, by_rule
from natten_metal.tuning.design import Trial
from natten_metal.tuning.fit import Sample, fit, quantile

Rows = list[tuple[Trial, Sample]]


def read(path: Path) -> tuple[int, dict[str, Rows]]:
    """The number of cores, and the trials of each set with their times."""
    first, _, *lines = path.read_text().splitlines()
    problems = {one.problem for _, one in chosen()}
    known = {Trial(one, FORWARD, by_rule(one, FORWARD, 16, 16, 8, True)).words: one for one in problems}
    found: dict[str, Rows] = defaultdict(list)
    for line in lines:
        purpose, problem, template, tiling, time, *_ = line.split("\t")
        trial = Trial(known[problem], TEMPLATES[template], candidate(tiling))
        launch = trial.launch
        sample = Sample(launch.instance, counts_of(trial.problem, launch), float(time))
        found[purpose].append((trial, sample))
    cores = re.search(r"(\d+) cores", first)
    assert cores is not None, "the first line names the GPU and its cores"
    return int(cores[1]), found


def candidate(word: str) -> Candidate:
    """The tiling that :func:`.tuned.written` wrote."""
    found = re.fullmatch(r"([\dx]+)h(\d)g(\d)([sdf])", word)
    assert found is not None, word
    *leading, y, x = 1, 1, *map(int, found[1].split("x"))
    return Candidate((leading[-1], y, x), int(found[2]), int(found[3]), found[4] == "s", found[4] == "f")


def rule_of(trial: Trial, flat: bool) -> object:
    """What the planner chooses without unit costs. flat: whether bricks that run on were timed too."""
    p, template = trial.problem, trial.template
    dims = padded_dim(p.head_dim), padded_dim(p.head_dim_v)
    return by_rule(p, template, *dims, MAX_SIMDGROUPS, not template.transposed, flat)


def choices(rows: Rows, costs: UnitCosts) -> list[tuple[Trial, float, float, float, Trial]]:
    """For each kernel of each problem: a trial; the fastest time, the tuned choice's and the rule's; the choice."""
    groups: dict[tuple[object, str], Rows] = defaultdict(list)
    for trial, sample in rows:
        groups[trial.problem, trial.template.name].append((trial, sample))
    found = []
    for members in groups.values():
        best = min(sample.microseconds for _, sample in members)
        tuned = min(members, key=lambda member: microseconds(member[1].instance, member[1].counts, costs))
        flat = any(trial.candidate.flat for trial, _ in rows)
        rule = next(sample for trial, sample in members if trial.candidate == rule_of(trial, flat))
        found.append((members[0][0], best, tuned[1].microseconds, rule.microseconds, tuned[0]))
    return found


def errors(rows: Rows, costs: UnitCosts) -> list[float]:
    """Relative errors of predictions, without signs."""
    samples = (sample for _, sample in rows)
    return [abs(microseconds(s.instance, s.counts, costs) / s.microseconds - 1) for s in samples]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("times", type=Path)
    parser.add_argument("--worst", type=int, default=8, help="how many of the worst choices to list")
    options = parser.parse_args()
    cores, sets = read(options.times)
    costs = fit("GPU", [sample for _, sample in sets["fitted"]], cores).costs
    print(f"cores {tuple(costs.cores)}\n")
    print("| problems | launches | median error | nine of ten below |\n|---|---|---|---|")
    for name, rows in sets.items():
        off = errors(rows, costs)
        print(f"| {name} | {len(rows)} | {statistics.median(off):.1%} | {quantile(off, 0.9):.1%} |")
    print("\n| problems | kernels | choice | within 5 % | within 15 % | worst | mean |\n|---|---|---|---|---|---|---|")
    for name in ("development", "held out"):
        found = choices(sets[name], costs)
        for label, at in (("tuned", 2), ("rule", 3)):
            slower = [one[at] / one[1] for one in found]
            shares = [f"{sum(s <= limit for s in slower) / len(slower):.0%}" for limit in (1.05, 1.15)]
            mean = statistics.mean(slower)
            print(f"| {name} | {len(found)} | {label} | {' | '.join(shares)} | {max(slower):.2f} | {mean:.3f} |")
    print(f"\nthe {options.worst} worst choices of problems held out:\n")
    worst = sorted(choices(sets["held out"], costs), key=lambda one: -one[2] / one[1])
    for trial, best, tuned, rule, choice in worst[: options.worst]:
        times = f"{best:.0f} us; {written(choice)} {tuned / best:.2f}, rule {rule / best:.2f}"
        print(f"{trial.words}, {trial.template.name}: {times}")
    print("\nprices, ns:", {name: round(price, 5) for name, price in costs.prices.items() if price})


if __name__ == "__main__":
    main()
