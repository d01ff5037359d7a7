"""What the work of a launch costs on a device: exact counts times unit costs.

The model (docs/planning.md) adds two kinds of time. What all cores share: counts of the whole launch, as the busiest
core has them. And what a core cannot hide: the chains of work that one threadgroup does after another, round after
round, because only so many threadgroups fit a core at once. Every price is linear, so that prices can be fitted to
times; which of a kernel's choices changed its code beyond what can be counted (registers, above all) is one factor for
each kind of kernel.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .counts import Counts
from .dealing import busiest
from .source import ITEM_SIZES, Instance
from .tiles import COLUMNS

WIDTHS, READS = ("half", "single"), ("direct", "staged")
# What has a price, in nanoseconds for one. Those of the first group are of the whole device: its cores share the work.
SHARED = {
    "threadgroup": "a threadgroup that starts and ends",
    "patch": "a patch: its rows are loaded, its results written",
    "mask": "a brick that needs a mask, besides",
    "staged_byte": "a byte that is copied to threadgroup memory for all simdgroups of a threadgroup",
    **{f"brick_{w}_{r}": f"a brick apart from its products: {w}, {r}" for w in WIDTHS for r in READS},
    **{f"product_{w}_{r}": f"an 8x8 product: {w}, {r}" for w in WIDTHS for r in READS},
    **{f"chunk_{w}": f"a simdgroup that passes the two barriers of a chunk: {w}" for w in WIDTHS},
}
# Those of the second are of one threadgroup: what it does one after another.
SERIAL = {
    **{f"serial_product_{r}": f"a product in the chain of one patch: {r}" for r in READS},
    "serial_chunk": "a chunk of one threadgroup",
    "serial_row": "a row of a box that one threadgroup copies",
    "serial_word": "16 bytes that each thread copies",
}
# The same of kernels on matrix units. Costs of a device that has none, or where they were not measured, lack these.
MATRIX_SHARED = {
    "matrix_brick": "a 16x16 brick apart from its products, on matrix units",
    "matrix_product": "the worth of an 8x8 product, on matrix units",
    "gathered_byte": "a byte that a simdgroup gathers for itself in threadgroup memory",
}
MATRIX_SERIAL = {"serial_matrix_product": "a 16x16 product over 8 channels in the chain of one patch"}
MATRIX = MATRIX_SHARED | MATRIX_SERIAL
# Those that no factor changes, because they are the same whatever the kernel.
OF_ANY_KERNEL = {"launch": "a launch", "byte": "a byte of a tensor, each counted once"}
NECESSARY = OF_ANY_KERNEL | SHARED | SERIAL
PRICES = NECESSARY | MATRIX
# Bytes that the threads of a simdgroup copy at once.
SIMDGROUP_BYTES = 512
# Threadgroups of the first round begin together, and those of later ones ever less so: what is left of that from each
# round to the next. As far as it is, a last round that is partly filled takes as long as a full one.
IN_STEP = 0.7
# Launches of more rounds are not dealt: each core has many threadgroups then, and dealing takes time.
DEALT_ROUNDS = 6


class Cores(NamedTuple):
    """What runs at once. number: cores of the GPU. slots: simdgroups that a core holds; memory: bytes of threadgroup
    memory that it has for them.
    """

    number: int
    slots: int
    memory: int


@dataclass(frozen=True, slots=True, eq=False)
class UnitCosts:
    """Nanoseconds for one of each of :data:`PRICES` on one device; those of :data:`MATRIX` may be missing. Compared by
    identity, so that it is a cheap key.

    device: its name. measured: whether ``tune`` measured them there; if not, they are predicted. error: the model's
    typical relative error on problems that it was not fitted to (measured), or a guess (predicted). kinds: by the
    names of :func:`kinds`, the factor between what such kernels take and what the prices say; 1 where none is known.
    """

    device: str
    measured: bool
    cores: Cores
    prices: Mapping[str, float]
    error: float
    kinds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert set(self.prices) in (set(PRICES), set(NECESSARY)), set(self.prices) ^ set(PRICES)

    @property
    def has_matrix_units(self) -> bool:
        """Whether kernels on matrix units have prices."""
        return set(MATRIX) <= set(self.prices)


def kinds(instance: Instance) -> tuple[str, ...]:
    """The kinds of kernels that an instance belongs to. Rank, head dims and the patch change a kernel's code and
    registers; simdgroups change how many threadgroups a core has room for, which registers decide too.
    """
    i = instance
    first = f"{i.template} {WIDTHS[ITEM_SIZES[i.dtype] // 4]} {'flat' if i.flat else READS[i.stage]}"
    first += f" team of {i.team}" if i.team > 1 else ""
    ranked = f"{first} {i.rank}-D"
    sized = f"{ranked} {max(i.dim, i.dim_v)}"
    return first, ranked, sized, f"{first} x{i.simdgroups}", f"{sized} {'x'.join(map(str, i.patch))}"


def features(instance: Instance, counts: Counts, cores: Cores) -> dict[str, float]:
    """How often a launch pays each of :data:`PRICES`; those that it never pays are left out."""
    c, i = counts, instance
    each = c.threadgroups / cores.number
    # Threadgroups that a core holds at once, and how many rounds of them follow one another.
    held = max(
        1, min(cores.slots // (i.simdgroups * i.team), cores.memory // max(1, i.threadgroup_bytes), math.ceil(each))
    )
    rounds = math.ceil(math.ceil(each) / held)
    in_step = IN_STEP ** (rounds - 1)
    # As far as rounds are in step, the busiest core has a whole number of threadgroups, and its last round is full.
    whole = _between(1.0, math.ceil(each) / each, in_step)
    most = _most(c, cores.number, held, whole)
    before = _between(max(1.0, each / held), rounds, in_step) - 1
    found: dict[str, float] = {"launch": 1, "byte": c.tensor_bytes, "threadgroup": c.threadgroups * whole}
    if not c.bricks:
        return found
    if i.record.mpp:
        return found | _on_matrix_units(i, c, before, most)
    width = WIDTHS[ITEM_SIZES[i.dtype] // 4]
    shape = f"{width}_{READS[i.stage]}"
    # Every member of a team takes each brick, and passes one barrier, but makes only its share of the products.
    taken = c.bricks * i.team
    barriers = 2 * c.staged.chunks * i.simdgroups + (taken if i.team > 1 else 0)
    shared: dict[str, float] = {
        "patch": c.patches,
        "mask": c.masked * i.team,
        f"brick_{shape}": taken,
        f"product_{shape}": c.products,
    }
    shared |= {f"chunk_{width}": barriers / 2, "staged_byte": c.staged_bytes}
    found |= {name: number * most for name, number in shared.items()}
    # The last threadgroup may have the longest chain.
    chain = before * c.chained_bricks / c.threadgroups + c.longest_bricks
    found[f"serial_product_{READS[i.stage]}"] = chain * i.products / i.team
    if i.stage:
        chunks, rows, columns = (
            before * number / c.boxes + longest for number, longest in zip(c.staged, c.longest_staged, strict=True)
        )
        words = columns * (i.dim + i.dim_v) * ITEM_SIZES[i.dtype] / (SIMDGROUP_BYTES * i.simdgroups)
        found |= {"serial_chunk": chunks, "serial_row": rows, "serial_word": words}
    return found


def _most(c: Counts, cores: int, held: int, whole: float) -> float:
    """The work of the busiest core, over the average: half way between two estimates. It has ``whole`` times as many
    threadgroups, of average work; and each core takes the next one, of its exact work, when it is free.
    """
    if c.walk is None or not c.bricks or c.threadgroups > DEALT_ROUNDS * held * cores:
        return whole
    return (whole + busiest(c.walk, cores, held)) / 2


def _on_matrix_units(instance: Instance, c: Counts, before: float, most: float) -> dict[str, float]:
    """What is paid in bricks of matrix units. before: rounds of threadgroups before the last one; most: what the
    busiest core has, over the average.
    """
    scale = instance.record.side // COLUMNS
    shared = {
        # Rows and masks are as many as those of 8x8 bricks would be.
        "patch": c.patches * scale,
        "mask": c.masked * scale**2,
        "matrix_brick": c.bricks,
        "matrix_product": c.products,
        "gathered_byte": c.gathered_bytes,
    }
    chain = before * c.chained_bricks / c.threadgroups + c.longest_bricks
    serial = {"serial_matrix_product": chain * instance.products}
    return {name: number * most for name, number in shared.items() if number} | serial


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def microseconds(instance: Instance, counts: Counts, costs: UnitCosts) -> float:
    """The predicted time of a launch."""
    factor = math.prod(costs.kinds.get(kind, 1.0) for kind in kinds(instance))
    return summed(features(instance, counts, costs.cores), costs.prices, factor)


def summed(paid: Mapping[str, float], prices: Mapping[str, float], factor: float) -> float:
    """Microseconds of all that a launch pays. factor: of its kinds."""
    apart = sum(paid[name] * prices[name] for name in OF_ANY_KERNEL)
    own = sum(number * prices[name] for name, number in paid.items() if name not in OF_ANY_KERNEL)
    return (apart + own * factor) / 1e3
