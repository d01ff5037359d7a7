"""The fit of unit costs: it recovers known costs from synthetic times, with noise and without."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from natten_mps._metal.metal.costs import (
    MATRIX,
    NECESSARY,
    PRICES,
    SERIAL,
    SHARED,
    Cores,
    UnitCosts,
    features,
    kinds,
    microseconds,
)
from natten_mps._metal.metal.counts import Counts, counts_of
from natten_mps._metal.metal.source import Instance
from natten_mps._metal.plan.costs import predicted
from natten_mps._metal.problem.problem import Problem
from natten_mps._metal.tuning.design import FITTED, HELD_OUT, Room, trials
from natten_mps._metal.tuning.fit import COUNTS, MEMORIES, SLOTS, Sample, fit, fit_with, quantile

CORES = Cores(10, 24, 64 << 10)
# Without matrix units, and with them.
CHIPS = ("Apple M3", "Apple M5")
# Half of the problems: enough to find costs that are known, and quick.
SOME = FITTED[::2]


def truth(kind_factors: bool = False, chip: str = CHIPS[0]) -> UnitCosts:
    """Made-up costs of a made-up GPU, no two prices of one size."""
    own = predicted(chip).prices
    prices = {
        name: own[name] * random.Random(f"3 {name}").uniform(0.5, 2) for name in (*NECESSARY, *MATRIX) if name in own
    }
    costs = UnitCosts("made up", True, CORES, prices, 0.0)
    if kind_factors:
        rng, named = random.Random(3), {kinds(sample.instance)[1] for sample in samples(costs)}
        costs = replace(costs, kinds={name: rng.uniform(0.8, 1.25) for name in sorted(named)})
    return costs


@cache
def counted(problems: tuple, room: Room) -> list[tuple[Instance, Counts, tuple[Problem, str]]]:
    """The kernels, the exact work of the designed trials, and which are tilings of one kernel."""
    return [
        (trial.launch.instance, counts_of(trial.problem, trial.launch), (trial.problem, trial.template.name))
        for trial in trials(problems, room=room)
    ]


def samples(costs: UnitCosts, noise: float = 0.0, problems: tuple = SOME, seed: int = 1) -> list[Sample]:
    """The times that a device of these costs would take for the designed trials."""
    rng = np.random.default_rng(seed)
    return [
        Sample(instance, counts, microseconds(instance, counts, costs) * float(rng.lognormal(0, noise)), group)
        for instance, counts, group in counted(problems, Room(matrix_units=costs.has_matrix_units))
    ]


@pytest.mark.parametrize("chip", CHIPS)
def test_the_design_pays_every_price_and_varies_it(chip: str) -> None:
    """Each price is paid by many trials, in shares of the whole time that differ fourfold."""
    costs = truth(chip=chip)
    found = samples(costs, problems=FITTED)
    for name in costs.prices:
        shares = [
            features(s.instance, s.counts, CORES).get(name, 0) * costs.prices[name] / s.microseconds for s in found
        ]
        paid = [share for share in shares if share > 0]
        assert len(paid) >= 40, name
        assert max(paid) >= 4 * min(paid), name


@pytest.mark.parametrize("chip", CHIPS)
def test_exact_times_give_the_exact_costs(chip: str) -> None:
    costs = truth(chip=chip)
    found = fit_with("made up", samples(costs), CORES)
    assert set(found.costs.prices) == set(PRICES if chip == "Apple M5" else NECESSARY)
    for name in costs.prices:
        assert found.costs.prices[name] == pytest.approx(costs.prices[name], rel=1e-4), name
    assert max(map(abs, found.errors)) < 1e-6
    assert all(factor == pytest.approx(1, abs=1e-6) for factor in found.costs.kinds.values())


@pytest.mark.parametrize(("seed", "cores"), [(0, CORES.number), (2, CORES.number), (1, None)])
def test_noise_does_not_lead_far_away(seed: int, cores: int | None) -> None:
    """3 % of noise in every time. The number of cores, if it is not told, and what they hold are found to the nearest
    sizes that are tried; products within a fifth, their latency within a third; and problems that were not fitted are
    predicted as well as the noise allows.
    """
    costs = truth()
    found = fit("made up", samples(costs, noise=0.03, problems=FITTED, seed=seed), cores)
    for sizes, size, own in zip((COUNTS, SLOTS, MEMORIES), found.costs.cores, CORES, strict=True):
        assert abs(sizes.index(size) - sizes.index(own)) <= 1, found.costs.cores
    assert cores in (None, found.costs.cores.number)
    assert 0.01 < found.costs.error < 0.03
    new = samples(costs, problems=HELD_OUT)
    errors = [abs(microseconds(s.instance, s.counts, found.costs) / s.microseconds - 1) for s in new]
    assert quantile(errors, 0.9) < 0.04
    for name in (n for n in (*SHARED, *SERIAL) if "product" in n):
        bound = 1 / 3 if name in SERIAL else 0.2
        assert found.costs.prices[name] == pytest.approx(costs.prices[name], rel=bound), name


def test_kinds_of_kernels_have_factors_of_their_own() -> None:
    """Kernels whose code differs by more than what is counted: their factors are found, and kept apart from prices."""
    costs = truth(kind_factors=True)
    with_factors = fit_with("made up", samples(costs, noise=0.01), CORES)
    new = samples(costs, problems=HELD_OUT)
    errors = [abs(microseconds(s.instance, s.counts, with_factors.costs) / s.microseconds - 1) for s in new]
    assert quantile(errors, 0.9) < 0.06
    without = replace(with_factors.costs, kinds={})
    worse = [abs(microseconds(s.instance, s.counts, without) / s.microseconds - 1) for s in new]
    assert quantile(worse, 0.9) > 0.1


def test_what_a_kernel_s_tilings_have_in_common_is_not_charged_to_them() -> None:
    """Whole kernels are up to 1.3 times as slow or fast as the model can say: their tilings are still compared rightly,
    which prices do worse that are to explain those factors too.
    """
    costs, rng = truth(), random.Random(8)
    found = samples(costs, noise=0.01)
    factor = {group: rng.uniform(1 / 1.3, 1.3) for group in dict.fromkeys(s.group for s in found)}
    found = [s._replace(microseconds=s.microseconds * factor[s.group]) for s in found]
    mixed = [s._replace(group=number) for number, s in enumerate(found)]
    new = samples(costs, problems=HELD_OUT)

    def spread(known: UnitCosts) -> float:
        """How differently the tilings of a kernel are mispredicted."""
        errors: dict[object, list[float]] = {}
        for s in new:
            errors.setdefault(s.group, []).append(microseconds(s.instance, s.counts, known) / s.microseconds)
        return float(np.mean([np.std(each) / np.mean(each) for each in errors.values()]))

    alike, apart = (spread(fit_with("made up", some, CORES).costs) for some in (found, mixed))
    assert alike < 0.02 and alike < apart / 1.5, (alike, apart)


def test_prices_are_never_negative() -> None:
    """Times that contradict the model, such as these random ones, still give prices that mean something."""
    rng = random.Random(5)
    found = fit_with("nonsense", [s._replace(microseconds=rng.uniform(1, 1000)) for s in samples(truth())], CORES)
    assert all(price >= 0 for price in found.costs.prices.values()) and any(found.costs.prices.values())
    assert found.costs.error > 0.3
