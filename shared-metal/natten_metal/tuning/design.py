"""The kernels that ``tune`` times: a designed set of problems and tilings, not the whole grid.

Between them, the trials vary every count that has a price by at least a factor of ten, and not all together: short and
long windows, small and large grids, masks and none, every rank, two head dims, 16 and 32 bits, and for each problem the
rule's tiling with one choice changed at a time. The problems that a fit is judged by are others (:data:`HELD_OUT`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ..metal.launches import Launch
from ..metal.op_launches import MAX_SIMDGROUPS, backward, forward
from ..metal.templates import FORWARD, KEY_VALUE_GRAD, QUERY_GRAD, Template
from ..metal.tiles import padded_dim
from ..metal.tiling import Candidate, by_rule, candidates
from ..problem.ops import FUSED
from ..problem.problem import Problem

HALF, SINGLE = "float16", "float32"
TEMPLATES = (FORWARD, QUERY_GRAD, KEY_VALUE_GRAD)


def problem(
    shape: tuple[int, ...],
    window: int | tuple[int, ...],
    dim: int,
    dtype: str,
    batch: int = 1,
    heads: int = 4,
    dilation: int = 1,
    causal: bool = False,
) -> Problem:
    """A problem of fused attention; one window stands for all axes."""
    rank = len(shape)
    sizes = (window,) * rank if isinstance(window, int) else window
    every = (1,) * rank, (dilation,) * rank, (causal,) * rank
    return Problem(FUSED.name, batch, shape, shape, heads, heads, dim, dim, sizes, *every, dim**-0.5, dtype)


# What unit costs are fitted to.
FITTED = (
    problem((64, 64), 7, 64, HALF),
    problem((128, 128), 7, 64, HALF, batch=2),
    problem((64, 64), 13, 64, HALF, batch=2),
    problem((96, 96), 31, 64, HALF, heads=2),
    problem((64, 64), 64, 64, HALF, heads=2),
    problem((64, 64), 7, 32, SINGLE),
    problem((128, 128), 5, 32, SINGLE, batch=2),
    problem((64, 64), 15, 32, SINGLE, batch=2),
    problem((96, 96), 33, 32, SINGLE, heads=2),
    problem((56, 56), 7, 32, HALF, batch=8),
    problem((80, 80), 25, 64, SINGLE, heads=2),
    problem((4096,), 129, 64, HALF, heads=8),
    problem((16384,), 17, 64, HALF),
    problem((8192,), 1025, 64, HALF, heads=2),
    problem((16, 16, 16), 3, 32, HALF, batch=2),
    problem((8, 24, 24), (5, 7, 7), 32, HALF),
    problem((12, 16, 24), (6, 12, 12), 32, HALF, heads=2),
)


@dataclass(frozen=True, slots=True)
class Trial:
    """One kernel to time: a launch of a program for ``problem``, with the tiling ``candidate``."""

    problem: Problem
    template: Template
    candidate: Candidate

    @property
    def launch(self) -> Launch:
        """The launch, on contiguous tensors."""
        made = launches(self.problem, self.template, self.candidate)
        return next(launch for launch in made if launch.instance.template == self.template.name)


def launches(one: Problem, template: Template, candidate: Candidate | None = None) -> tuple[Launch, ...]:
    """The program that has a launch of ``template``."""
    if template is FORWARD:
        return forward(one, candidate=candidate)
    return backward(one, False, candidate=candidate)


def all_candidates(one: Problem, template: Template, max_simdgroups: int = MAX_SIMDGROUPS) -> list[Candidate]:
    """Every tiling that the planner would consider."""
    dims = padded_dim(one.head_dim), padded_dim(one.head_dim_v)
    return list(candidates(one, template, *dims, max_simdgroups, not template.transposed))


def designed_candidates(one: Problem, template: Template, max_simdgroups: int = MAX_SIMDGROUPS) -> list[Candidate]:
    """The rule's tiling, and those that change it in one way: staged or direct, simdgroups, the patch."""
    dims = padded_dim(one.head_dim), padded_dim(one.head_dim_v)
    rule = by_rule(one, template, *dims, max_simdgroups, not template.transposed)
    found = all_candidates(one, template, max_simdgroups)
    numbers = sorted({c.simdgroups for c in found})
    shapes = list(dict.fromkeys((c.patch, c.heads) for c in found))
    flipped = rule._replace(stage=not rule.stage)
    wanted = [rule, flipped]
    wanted += [own._replace(simdgroups=n) for own in (rule, flipped) for n in (numbers[0], numbers[-1])]
    wanted += [rule._replace(patch=patch, heads=heads) for patch, heads in (shapes[-1], shapes[len(shapes) // 2])]
    wanted += [flipped._replace(patch=shapes[-1][0], heads=shapes[-1][1], simdgroups=numbers[len(numbers) // 2])]
    return [candidate for candidate in dict.fromkeys(wanted) if candidate in found]


def trials(problems: Iterable[Problem], every: bool = False, max_simdgroups: int = MAX_SIMDGROUPS) -> Iterator[Trial]:
    """The trials of some problems: of every candidate, or of the designed ones."""
    chosen = all_candidates if every else designed_candidates
    for one in problems:
        for template in TEMPLATES:
            yield from (Trial(one, template, candidate) for candidate in chosen(one, template, max_simdgroups))


def half_as_large(one: Problem) -> Problem:
    """The same problem with half the heads: for devices that would take too long."""
    heads = max(1, one.heads // 2)
    return replace(one, heads=heads, kv_heads=heads)
