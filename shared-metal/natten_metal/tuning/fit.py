"""Unit costs from measured times: non-negative least squares on relative errors."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..metal.costs import PRICES, UnitCosts

Features = dict[str, float]


class Fit(NamedTuple):
    """Fitted unit costs, and how far each prediction is from its time: predicted / measured - 1."""

    costs: UnitCosts
    errors: tuple[float, ...]


def fit(device: str, features: Sequence[Features], microseconds: Sequence[float]) -> Fit:
    """The unit costs that explain times best. features: how often each trial pays each price.

    Each row is divided by its time, so that a trial of 20 us counts as much as one of 20 ms, and each column by its
    largest entry, so that prices of very different sizes are solved for equally well.
    """
    import numpy as np
    from scipy.optimize import nnls

    names = list(PRICES)
    times = np.array(microseconds) * 1e3
    paid = np.array([[row.get(name, 0.0) for name in names] for row in features]) / times[:, None]
    scale = paid.max(axis=0)
    known = scale > 0
    solved = np.zeros(len(names))
    solved[known] = nnls(paid[:, known] / scale[known], np.ones(len(times)))[0] / scale[known]
    errors = tuple(map(float, paid @ solved - 1))
    prices = dict(zip(names, map(float, solved), strict=True))
    return Fit(UnitCosts(device, True, prices, typical(errors)), errors)


def typical(errors: Sequence[float]) -> float:
    """The size of a typical relative error: the median."""
    return quantile([abs(error) for error in errors], 0.5)


def quantile(values: Sequence[float], fraction: float) -> float:
    """The smallest value that at least ``fraction`` of ``values`` do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]
