"""What `tune` times: single launches through each package's own host, here on the emulator."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from natten_mps._metal.plan.backend import FAST_METAL, METAL
from natten_mps._metal.tuning.design import Trial, problem, trials

from .host import EmulatedHost

if TYPE_CHECKING:
    from .mlx_host import EmulatedMlxHost

T = TypeVar("T", bound=Any)


def small_trials() -> list[Trial]:
    """Every walk of a small problem: staged, direct and flat."""
    return every_walk(trials([problem((9, 10), 3, 16, "float16", heads=1)]))


def every_walk(found: Iterable[T]) -> list[T]:
    """A trial for each template and way to read and cut its columns; of either package."""
    walks = {(t.template.name, t.candidate.stage, t.candidate.flat): t for t in found}
    ways = ((True, False), (False, False), (False, True))
    assert set(walks) == {(name, *way) for name in ("na_fwd", "na_bwd_dq", "na_bwd_dkv") for way in ways}
    return list(walks.values())


def test_natten_mps_launches_what_is_to_be_timed(metal: EmulatedHost) -> None:
    from natten_mps._timer import TIMER

    assert TIMER.device().kind == "gpu" and TIMER.device().reason_missing(METAL.name) is None
    for trial in small_trials():
        metal.launches.clear()
        run = TIMER.prepare(trial.problem, trial.launch)
        assert not metal.launches  # compiled, and nothing launched
        run(2)
        launch = trial.launch
        assert [made.threads for made in metal.launches] == [launch.threads] * 2
        assert all(made.executed == launch.bricks and made.written_once for made in metal.launches)


def test_natten_mlx_launches_what_is_to_be_timed(mlx_metal: EmulatedMlxHost) -> None:
    from natten_mlx._metal.tuning import design
    from natten_mlx._timer import TIMER

    assert TIMER.device().kind == "gpu" and TIMER.device().reason_missing(FAST_METAL.name) is None
    one = design.problem((9, 10), 3, 16, "float16", heads=1)
    for trial in every_walk(design.trials([one])):
        run = TIMER.prepare(trial.problem, trial.launch)
        run(1)  # before that, the kernel's smallest launch proves that it runs
        before = len(mlx_metal.ran)
        run(2)
        made = mlx_metal.ran[before:]
        assert [trial.launch.instance.name in launch.name for launch in made] == [True, True], made
