"""Unit costs from measured times.

Prices are a non-negative least-squares fit to relative errors. In turns with it, each kind of kernel gets the factor
that its own trials ask for, the more of them the more fully. What fits a core at once is not linear: of a few sizes,
those that explain the times best are taken.
"""

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..metal.costs import NECESSARY, OF_ANY_KERNEL, PRICES, Cores, UnitCosts, features, kinds, microseconds
from ..metal.counts import Counts
from ..metal.source import Instance

# Sizes that are tried: cores where the machine does not tell, simdgroups and bytes that fit a core at once.
COUNTS = (4, 8, 10, 16, 20, 32, 40, 64, 80, 108, 132)
SLOTS = (8, 12, 16, 20, 24, 32)
MEMORIES = tuple(kibibytes << 10 for kibibytes in (32, 64, 96, 128, 192, 224))
# How often prices and factors are fitted in turns, and how many trials of a kind weigh as much as knowing nothing.
TURNS, PRIOR = 5, 2.0
# How often the number of cores and what a core holds are chosen in turns, if neither is known.
ROUNDS = 2
# A relative error counts at most this much when sizes are compared, so that a few odd trials do not decide.
LARGEST_ERROR = 0.5


class Sample(NamedTuple):
    """One trial: the kernel, its exact work, its measured time."""

    instance: Instance
    counts: Counts
    microseconds: float


class Fit(NamedTuple):
    """Fitted unit costs, and how far each prediction is from its time: predicted / measured - 1."""

    costs: UnitCosts
    errors: tuple[float, ...]


def fit(device: str, samples: Sequence[Sample], cores: int | None) -> Fit:
    """The unit costs that explain the samples best. cores: of the GPU, if it is known how many it has."""
    held = Cores(cores or COUNTS[len(COUNTS) // 2], SLOTS[2], MEMORIES[1])
    for _ in range(1 if cores else ROUNDS):
        counts = [held._replace(number=number) for number in ((cores,) if cores else COUNTS)]
        held = _best(device, samples, counts)
        held = _best(device, samples, [Cores(held.number, *sizes) for sizes in itertools.product(SLOTS, MEMORIES)])
    return fit_with(device, samples, held)


def _best(device: str, samples: Sequence[Sample], choices: Sequence[Cores]) -> Cores:
    if len(choices) == 1:
        return choices[0]

    def misfit(cores: Cores) -> float:
        # Prices alone: factors of kinds would make up for wrong sizes.
        errors = fit_with(device, samples, cores, turns=0).errors
        return sum(min(abs(error), LARGEST_ERROR) ** 2 for error in errors)

    return min(choices, key=misfit)


def fit_with(device: str, samples: Sequence[Sample], cores: Cores, turns: int = TURNS) -> Fit:
    """The best unit costs of a device whose cores are known.

    Each sample is divided by its time, so that one of 20 us counts as much as one of 20 ms.
    """
    paid = [features(sample.instance, sample.counts, cores) for sample in samples]
    costs = UnitCosts(device, True, cores, _prices(samples, paid, {}), 0.0)
    for _ in range(turns):
        costs = replace(costs, kinds=_factors(samples, costs))
        costs = replace(costs, prices=_prices(samples, paid, costs.kinds))
    errors = tuple(microseconds(s.instance, s.counts, costs) / s.microseconds - 1 for s in samples)
    return Fit(replace(costs, error=typical(errors)), errors)


def _prices(
    samples: Sequence[Sample], paid: Sequence[dict[str, float]], factors: Mapping[str, float]
) -> dict[str, float]:
    """Non-negative least squares. Columns are scaled, so that prices of very different sizes are solved for equally
    well; a price that no sample pays is 0, and those of matrix units are left out if none was timed.
    """
    import numpy as np
    from scipy.optimize import nnls

    names, rows = list(PRICES if any(s.instance.record.mpp for s in samples) else NECESSARY), []
    for sample, row in zip(samples, paid, strict=True):
        factor = math.prod(factors.get(kind, 1.0) for kind in kinds(sample.instance))
        nanoseconds = sample.microseconds * 1e3
        rows.append([row.get(name, 0.0) * (1 if name in OF_ANY_KERNEL else factor) / nanoseconds for name in names])
    matrix: Any = np.array(rows)
    scale = matrix.max(axis=0)
    known = scale > 0
    solved = np.zeros(len(names))
    solved[known] = nnls(matrix[:, known] / scale[known], np.ones(len(rows)))[0] / scale[known]
    return dict(zip(names, map(float, solved), strict=True))


def _factors(samples: Sequence[Sample], costs: UnitCosts) -> dict[str, float]:
    """New factors, level by level: the median that is left of a kind's samples, drawn towards 1 if they are few."""
    found = dict(costs.kinds)
    left = [
        math.log(sample.microseconds / max(microseconds(sample.instance, sample.counts, costs), 1e-9))
        for sample in samples
    ]
    for level in range(len(kinds(samples[0].instance))):
        members: dict[str, list[int]] = {}
        for number, sample in enumerate(samples):
            members.setdefault(kinds(sample.instance)[level], []).append(number)
        for kind, numbers in members.items():
            shift = statistics.median(left[n] for n in numbers) * len(numbers) / (len(numbers) + PRIOR)
            found[kind] = found.get(kind, 1.0) * math.exp(shift)
            for n in numbers:
                left[n] -= shift
    return found


def typical(errors: Iterable[float]) -> float:
    """The size of a typical relative error: the median."""
    return statistics.median(abs(error) for error in errors)


def quantile(values: Iterable[float], fraction: float) -> float:
    """The smallest value that at least ``fraction`` of ``values`` do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]
