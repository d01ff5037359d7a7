"""The kernels that ``tune`` times: a designed set of problems and tilings, not the whole grid.

Between them, the trials vary the share of every price, and not all together: short and long windows, small and large
grids, masks and none, every rank, three head dims, 16 and 32 bits, and for each problem the patches, the numbers of
simdgroups and the ways to read columns that the planner would consider, one of them changed at a time. The problems
that a fit is judged by are others (:data:`HELD_OUT`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ..metal.launches import Launch
from ..metal.op_launches import backward, cautious_simdgroups, forward
from ..metal.templates import FORWARD, KEY_VALUE_GRAD, ON_MATRIX_UNITS, QUERY_GRAD, Template
from ..metal.tiles import Candidate, padded_dim
from ..metal.tiling import MAX_SIMDGROUPS, Target, candidates, on_matrix_units
from ..plan.backend import Backend
from ..plan.device import Device
from ..problem.ops import FUSED
from ..problem.problem import Problem

HALF, SINGLE = "float16", "float32"
TEMPLATES = (FORWARD, QUERY_GRAD, KEY_VALUE_GRAD)
# Simdgroups of the trials that compare patches.
USUAL = 4


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


# What unit costs are fitted to: for each rank the head dims and dtypes that models use, whose code is compiled apart,
# with small and large windows and grids.
FITTED = (
    problem((64, 64), 7, 64, HALF),
    problem((96, 96), 31, 64, HALF, heads=2),
    problem((64, 96), 13, 64, HALF, batch=2, dilation=2),
    problem((64, 64), 64, 64, HALF, heads=2),
    problem((64, 64), 7, 32, SINGLE),
    problem((64, 80), 15, 32, SINGLE, batch=2),
    problem((96, 96), 33, 32, SINGLE, heads=2),
    problem((128, 128), 5, 32, SINGLE, batch=2, dilation=4),
    problem((56, 56), 7, 32, HALF, batch=8),
    problem((80, 64), 27, 32, HALF),
    problem((96, 128), 12, 32, HALF, dilation=2),
    problem((64, 48), 9, 128, HALF),
    problem((80, 80), 29, 128, HALF, heads=2),
    problem((96, 64), 16, 128, HALF, dilation=2),
    problem((80, 80), 25, 64, SINGLE, heads=2),
    problem((64, 96), 9, 64, SINGLE, batch=2),
    problem((96, 72), 14, 64, SINGLE, dilation=2),
    problem((4096,), 129, 64, HALF, heads=8),
    problem((16384,), 17, 64, HALF),
    problem((8192,), 1025, 64, HALF, heads=2),
    problem((8192,), 33, 128, HALF),
    problem((4096,), 401, 128, HALF),
    problem((12288,), 201, 128, HALF, heads=8),
    problem((16384,), 25, 32, SINGLE),
    problem((6144,), 300, 32, SINGLE),
    problem((16, 16, 16), 3, 32, HALF, batch=2),
    problem((8, 24, 24), (5, 7, 7), 32, HALF),
    problem((12, 16, 24), (6, 12, 12), 32, HALF, heads=2),
    problem((24, 16, 16), 5, 64, HALF),
    problem((8, 24, 32), (3, 7, 9), 64, HALF),
    problem((16, 16, 24), (8, 8, 11), 64, HALF, heads=2),
    # Drawn at random, some of each kind.
    problem((104, 80), 9, 64, HALF, batch=2),
    problem((136, 56), 13, 64, HALF, batch=2),
    problem((56, 56), 9, 32, SINGLE, batch=2, heads=8, dilation=2),
    problem((88, 80), 38, 32, SINGLE, batch=2, heads=2),
    problem((120, 80), 20, 128, HALF, batch=2, dilation=4),
    problem((80, 80), 20, 128, HALF, heads=2, dilation=4),
    problem((40, 120), 10, 32, HALF, heads=8, dilation=4),
    problem((96, 96), 40, 64, SINGLE, heads=2),
    problem((9776,), 211, 64, HALF, heads=8),
    problem((6144,), 563, 128, HALF, batch=2, heads=2, dilation=2),
    problem((3752,), 517, 32, SINGLE, batch=2, heads=2, causal=True),
    problem((8, 16, 8), (8, 12, 8), 32, HALF, heads=8),
    problem((24, 24, 24), (7, 4, 12), 32, HALF),
    problem((8, 24, 8), (8, 11, 6), 64, HALF, heads=8),
    problem((16, 16, 16), (3, 11, 7), 64, HALF, heads=8),
)
# What a fit is judged by on a user's machine: windows, shapes and dilations that no price was fitted to.
HELD_OUT = (
    problem((80, 112), 9, 64, HALF),
    problem((72, 104), 21, 64, HALF, heads=2),
    problem((96, 64), 11, 32, SINGLE, dilation=2),
    problem((10000,), 65, 64, HALF),
    problem((12, 20, 28), (3, 5, 7), 32, HALF),
)


class Room(NamedTuple):
    """What a device leaves to choose: simdgroups that a threadgroup may have, and whether there are matrix units."""

    simdgroups: int = MAX_SIMDGROUPS
    matrix_units: bool = False


# Of a device of which nothing is known.
ANY_ROOM = Room()


@dataclass(frozen=True, slots=True)
class Trial:
    """One kernel to time: a launch of a program for ``problem``, with the tiling ``candidate``."""

    problem: Problem
    template: Template
    candidate: Candidate

    @property
    def words(self) -> str:
        """The problem in one line."""
        p = self.problem
        shape, dilated = "x".join(map(str, p.query_shape)), f" d{p.dilation[0]}" if max(p.dilation) > 1 else ""
        same = len(set(p.kernel_size)) == 1
        window = p.kernel_size[0] if same else ",".join(map(str, p.kernel_size))
        causal = " causal" if any(p.is_causal) else ""
        return f"{p.rank}-D {shape} K{window}{dilated}{causal} D{p.head_dim} B{p.batch} H{p.heads} {p.dtype}"

    @property
    def launch(self) -> Launch:
        """The launch, on contiguous tensors."""
        made = launches(self.problem, self.template, self.candidate)
        name = (ON_MATRIX_UNITS[self.template.name] if self.candidate.mpp else self.template).name
        return next(launch for launch in made if launch.instance.template == name)


def launches(one: Problem, template: Template, candidate: Candidate | None = None) -> tuple[Launch, ...]:
    """The program that has a launch of ``template``, or of the one that computes the same on matrix units."""
    target = Target(candidate=candidate)
    return forward(one, target) if template is FORWARD else backward(one, False, target)


def all_candidates(one: Problem, template: Template, room: Room) -> list[Candidate]:
    """Every tiling that the planner would consider."""
    dims = padded_dim(one.head_dim), padded_dim(one.head_dim_v)
    found = candidates(one, template, *dims, room.simdgroups, not template.transposed)
    return found + (on_matrix_units(one, template, *dims, room.simdgroups, every=True) if room.matrix_units else [])


def designed_candidates(one: Problem, template: Template, room: Room) -> list[Candidate]:
    """The rule's tiling; its patch with every number of simdgroups, in every way to read columns; and every patch once
    in every way, because compiled code differs from patch to patch by more than can be counted.
    """
    found = all_candidates(one, template, room)
    first, wanted = found[0], [found[0]]
    for way in dict.fromkeys(map(_way, found)):
        same = [c for c in found if _way(c) == way]
        patch = first.patch if any(c.patch == first.patch for c in same) else same[0].patch
        wanted += [c for c in same if c.patch == patch]
        for other in dict.fromkeys(c.patch for c in same):
            wanted.append(min((c for c in same if c.patch == other), key=lambda c: abs(c.simdgroups - USUAL)))
    return list(dict.fromkeys(wanted))


def _way(candidate: Candidate) -> tuple[bool, bool, int, bool]:
    return candidate.stage, candidate.flat, candidate.team, candidate.mpp


def trials(problems: Iterable[Problem], every: bool = False, room: Room = ANY_ROOM) -> Iterator[Trial]:
    """The trials of some problems: of every candidate, or of the designed ones."""
    chosen = all_candidates if every else designed_candidates
    for one in problems:
        for template in TEMPLATES:
            yield from (Trial(one, template, candidate) for candidate in chosen(one, template, room))


def room_of(device: Device, backend: Backend) -> Room:
    """What a backend leaves to choose on a device, whatever the kernel: as the planner takes it."""
    widest = max(FITTED, key=lambda one: one.head_dim)
    simdgroups = MAX_SIMDGROUPS if backend.tells_limits else cautious_simdgroups(widest)
    return Room(simdgroups, not device.no_matrix_units)
