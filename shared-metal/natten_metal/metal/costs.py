"""What the work of a launch costs on a device: exact counts times unit costs.

The model is linear (docs/planning.md): every count of :class:`.counts.Counts` that takes time has a price, and the
predicted time is the sum. It says what a launch takes once its kernel is compiled and while nothing else runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .counts import Counts
from .source import ITEM_SIZES, Instance

# What has a price, in nanoseconds for one. Those of the first group are of the whole device: its cores share the work.
# Those of the second are of one threadgroup: what it does one after another, which no other core can take over.
PRICES = {
    "launch": "a launch",
    "threadgroup": "a threadgroup that starts and ends",
    "patch": "a patch: its rows are loaded and its results written",
    "brick": "a brick: its address, and its softmax apart from exponentials of masks",
    "mask": "a brick that needs a mask, besides",
    "product_half_direct": "an 8x8 product in 16 bits whose columns come from device memory",
    "product_half_staged": "the same, from threadgroup memory",
    "product_single_direct": "an 8x8 product in float32 whose columns come from device memory",
    "product_single_staged": "the same, from threadgroup memory",
    "chunk": "a chunk: two barriers",
    "staged_byte": "a byte that is copied to threadgroup memory",
    "byte": "a byte of a tensor, each counted once",
    "serial_brick": "a brick in the longest chain: those of one patch",
    "serial_chunk": "a chunk in the longest chain: those of one threadgroup",
}


@dataclass(frozen=True, slots=True, eq=False)
class UnitCosts:
    """Nanoseconds for one of each of :data:`PRICES` on one device. Compared by identity, so that it is a cheap key.

    device: its name. measured: whether ``tune`` measured them there; if not, they are predicted. error: the model's
    typical relative error on problems that it was not fitted to (measured), or a guess (predicted).
    """

    device: str
    measured: bool
    prices: Mapping[str, float]
    error: float

    def __post_init__(self) -> None:
        assert set(self.prices) == set(PRICES), set(self.prices) ^ set(PRICES)
        object.__setattr__(self, "prices", MappingProxyType(dict(self.prices)))


def features(instance: Instance, counts: Counts) -> dict[str, float]:
    """How often a launch pays each of :data:`PRICES`; those that it never pays are left out."""
    c, i = counts, instance
    found: dict[str, float] = {"launch": 1, "threadgroup": c.threadgroups, "byte": c.tensor_bytes}
    if not c.bricks:
        return found
    width = "single" if ITEM_SIZES[i.dtype] == 4 else "half"
    reads = "staged" if i.stage else "direct"
    found |= {"patch": c.patches, "brick": c.bricks, "mask": c.masked, f"product_{width}_{reads}": c.products}
    found |= {"chunk": c.chunks, "staged_byte": c.staged_bytes}
    found |= {"serial_brick": c.bricks / max(c.patches, 1), "serial_chunk": c.chunks / max(c.boxes, 1)}
    return found


def microseconds(instance: Instance, counts: Counts, costs: UnitCosts) -> float:
    """The predicted time of a launch."""
    prices = costs.prices
    return sum(number * prices[name] for name, number in features(instance, counts).items()) / 1e3
