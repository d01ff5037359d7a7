"""Statistics of times: medians, spreads, and ratios that are not told where they mean nothing."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

# Fewer times than these have no spread worth the name.
FEWEST = 3


def quantile(times: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the times lie, linear between neighbors."""
    ordered = sorted(times)
    at = share * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


def spread(times: Sequence[float]) -> float:
    """Between the 10th and the 90th percentile."""
    return quantile(times, 0.9) - quantile(times, 0.1)


def digits(value: float) -> str:
    """Three digits, or all of those before the point; never as a power of ten."""
    if not value or not math.isfinite(value):
        return f"{value:g}"
    # Of the rounded number: 999.7 has four digits before the point.
    exponent = int(f"{value:.2e}".partition("e")[2])
    text = f"{value:.{max(0, 2 - exponent)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


class Ratio(NamedTuple):
    """How many times as long one thing takes as another: of medians; low and high are those of single rounds.

    reason: why it must not be told; '' if it may.
    """

    value: float
    low: float
    high: float
    reason: str

    def __str__(self) -> str:
        return "?" if self.reason else f"{digits(self.value)}x"


def ratio(times: Sequence[float], base: Sequence[float]) -> Ratio:
    """``times`` over ``base``, both from the same rounds, in which they took turns.

    low and high: the 10th and 90th percentile of each round's own ratio, which other work on the machine changes least.
    """
    if len(times) != len(base):
        raise AssertionError(f"{len(times)} times and {len(base)} are not from the same rounds")
    value = statistics.median(times) / statistics.median(base)
    rounds = [one / other for one, other in zip(times, base, strict=True)]
    low, high = quantile(rounds, 0.1), quantile(rounds, 0.9)
    reason = ""
    if len(rounds) < FEWEST:
        reason = f"fewer than {FEWEST} rounds: no spread is known"
    elif high - low > value:
        reason = "the ratio's spread is larger than the ratio; try again on a quiet machine, or with more --seconds"
    return Ratio(value, low, high, reason)
