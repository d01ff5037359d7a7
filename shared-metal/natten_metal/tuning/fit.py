"""Unit costs from measured times.

Prices are a non-negative least-squares fit to relative errors. In turns with it, each kind of kernel gets the factor
that its own trials ask for, the more of them the more fully, and so has each kernel itself: what the model lacks for a
problem must not be charged to its tilings. What fits a core at once is not linear: of a few sizes, those that explain
the times best are taken.
"""

import itertools
import math
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..metal.costs import NECESSARY, OF_ANY_KERNEL, PRICES, Cores, UnitCosts, features, kinds, microseconds, summed
from ..metal.counts import Counts
from ..metal.source import Instance

# Sizes that are tried: cores where the machine does not tell, simdgroups and bytes that fit a core at once.
COUNTS = (4, 8, 10, 16, 20, 32, 40, 64, 80, 108, 132)
SLOTS = (8, 12, 16, 20, 24, 32)
MEMORIES = tuple(kibibytes << 10 for kibibytes in (32, 64, 96, 128, 192, 224))
# How often prices and factors are fitted in turns, and how many trials weigh as much as knowing nothing, of each of
# :func:`_levels`. Simdgroups and patches, the last two, change a time by little, so that few trials say little of them.
TURNS, PRIORS = 5, (2.0, 2.0, 2.0, 0.5, 30.0, 30.0)
# How often the number of cores and what a core holds are chosen in turns, if neither is known.
ROUNDS = 2
# A relative error counts at most this much when sizes are compared, so that a few odd trials do not decide.
LARGEST_ERROR = 0.5
# Errors beyond this count in proportion to themselves in the fit of prices, not to their squares (Huber): kernels that
# spill take several times what the model says. In so many steps, each with the weights of the one before it.
PROPORTIONAL, STEPS = 0.3, 4


class Sample(NamedTuple):
    """One trial: the kernel, its exact work, its measured time. group: the same for all tilings of one problem and
    template.
    """

    instance: Instance
    counts: Counts
    microseconds: float
    group: Hashable


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
    factors: dict[Hashable, float] = {}
    for _ in range(turns):
        factors = _factors(samples, paid, costs, factors)
        costs = replace(costs, prices=_prices(samples, paid, factors))
    known = {kind for sample in samples for kind in kinds(sample.instance)}
    costs = replace(costs, kinds={kind: factors[kind] for kind in sorted(known)} if factors else {})
    errors = tuple(microseconds(s.instance, s.counts, costs) / s.microseconds - 1 for s in samples)
    return Fit(replace(costs, error=typical(errors)), errors)


def _levels(sample: Sample) -> tuple[Hashable, ...]:
    """What has a factor, for each of :data:`PRIORS`: the kernel itself between the kinds that it is of whatever its
    tiling, and those of its tiling.
    """
    way, ranked, sized, *of_tiling = kinds(sample.instance)
    return way, ranked, sized, ("of", sample.group), *of_tiling


def _factor(sample: Sample, factors: Mapping[Hashable, float]) -> float:
    return math.prod(factors.get(each, 1.0) for each in _levels(sample))


def _prices(
    samples: Sequence[Sample], paid: Sequence[dict[str, float]], factors: Mapping[Hashable, float]
) -> dict[str, float]:
    """Non-negative least squares, reweighted for outliers. Columns are scaled, so that prices of very different sizes
    are solved for equally well; a price that no sample pays is 0, and those of matrix units are left out if none was
    timed.
    """
    import numpy as np
    from scipy.optimize import nnls

    names, rows = list(PRICES if any(s.instance.record.mpp for s in samples) else NECESSARY), []
    for sample, row in zip(samples, paid, strict=True):
        factor, nanoseconds = _factor(sample, factors), sample.microseconds * 1e3
        rows.append([row.get(name, 0.0) * (1 if name in OF_ANY_KERNEL else factor) / nanoseconds for name in names])
    matrix: Any = np.array(rows)
    scale = matrix.max(axis=0)
    known = scale > 0
    solved, weights = np.zeros(len(names)), np.ones(len(rows))
    for _ in range(STEPS):
        solved[known] = nnls(matrix[:, known] / scale[known] * weights[:, None], weights)[0] / scale[known]
        errors = np.abs(matrix @ solved - 1)
        weights = np.sqrt(np.minimum(1, PROPORTIONAL / np.maximum(errors, PROPORTIONAL)))
    return dict(zip(names, map(float, solved), strict=True))


def _factors(
    samples: Sequence[Sample],
    paid: Sequence[dict[str, float]],
    costs: UnitCosts,
    factors: Mapping[Hashable, float],
) -> dict[Hashable, float]:
    """New factors, level by level: the median that is left of the samples that share one, drawn towards 1 if they are
    few.
    """
    found, left = dict(factors), []
    for sample, row in zip(samples, paid, strict=True):
        known = summed(row, costs.prices, _factor(sample, factors))
        left.append(math.log(sample.microseconds / max(known, 1e-9)))
    levels = [_levels(sample) for sample in samples]
    for level, prior in enumerate(PRIORS):
        members: dict[Hashable, list[int]] = {}
        for number, each in enumerate(levels):
            members.setdefault(each[level], []).append(number)
        for kind, numbers in members.items():
            shift = statistics.median(left[n] for n in numbers) * len(numbers) / (len(numbers) + prior)
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
