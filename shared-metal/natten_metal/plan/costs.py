"""What a plan will take: unit costs of a device, and the predicted time of a program on it.

    unit_costs(device) -> UnitCosts            those that tune measured here, else predicted ones of the chip
    predict(program, unit_costs) -> us         None where there is no model
    launch_counts(program) -> exact counts, launch by launch

The model and its counts: :mod:`..metal.costs`, :mod:`..metal.counts`, docs/planning.md.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..caches import cached
from .device import Device
from .programs import MetalLaunches, Program

if TYPE_CHECKING:
    from ..metal.costs import UnitCosts
    from ..metal.counts import Counts

TABLE = Path(__file__).parent / "devices.toml"
# Of memory's nominal rate, what a kernel that only copies reaches.
REACHED = 0.8


def measured(device: Device) -> "UnitCosts | None":
    """The unit costs that ``tune`` measured on this machine's ``device``; None if it did not."""
    from .tuning import measured_costs

    # A device by the name of a chip is that chip, which need not be this machine's: no file is read for it.
    return None if device.kind == "cpu" or device.name in chips() else measured_costs(not device.no_matrix_units)


def unit_costs(device: Device) -> "UnitCosts":
    """The unit costs of ``device``: measured ones if there are any, else predicted ones of its chip.

    A device that has the name of a chip in the table ('Apple M4 Max') stands for that chip; any other for this
    machine's.
    """
    from .chip import chip_name, gpu_cores

    found = measured(device)
    if found is not None:
        return found
    return predicted(device.name) if device.name in chips() else predicted(chip_name(), gpu_cores())


def of_matrix_units(device: Device) -> "UnitCosts | None":
    """The unit costs by which walks on matrix units are compared with others on ``device``; None where it has none."""
    if device.no_matrix_units:
        return None
    found = unit_costs(device)
    # What is called otherwise than the chips of the table may still have them: predicted as the least that has.
    return found if found.has_matrix_units else predicted(table()["matrix_units"])


# --- predicted figures of chips -------------------------------------------------------------------


@cached("table of chips", 1)
def table() -> dict[str, Any]:
    """``devices.toml``."""
    import tomllib  # only predictions need it

    return tomllib.loads(TABLE.read_text(encoding="utf-8"))


def chips() -> tuple[str, ...]:
    """The names of the chips that figures exist for."""
    return tuple(table()["chips"])


def family(name: str) -> dict[str, float]:
    """What the table says of a family of GPUs: clocks of one core for one of each count, and what a core holds."""
    own: dict[str, Any] = dict(table()["families"][name])
    like = own.pop("like", None)
    return own if like is None else family(like) | own


@cached("predicted unit costs", 64)
def predicted(chip: str, cores: int | None = None) -> "UnitCosts":
    """The predicted unit costs of a chip; of one that is not in the table, those of its default.

    cores: of its GPU, if they are known to be other than the table's.
    """
    from ..metal.costs import MATRIX_SERIAL, MATRIX_SHARED, SERIAL, SHARED, Cores, UnitCosts

    known = table()["chips"]
    one = known.get(chip) or known[table()["default"]]
    own, count = family(one["family"]), cores or int(one["cores"])
    prices = {"launch": 1e3 * table()["launch_microseconds"], "byte": 1 / (REACHED * one["gbps"])}
    # Families without matrix units have no figures for them.
    prices |= {name: own[name] / (one["ghz"] * count) for name in SHARED | MATRIX_SHARED if name in own}
    prices |= {name: own[name] / one["ghz"] for name in SERIAL | MATRIX_SERIAL if name in own}
    held = Cores(count, int(own["slots"]), int(own["memory_kibibytes"]) << 10)
    return UnitCosts(chip, False, held, prices, table()["error"])


# --- the model of a program -----------------------------------------------------------------------


def launch_counts(program: Program) -> "tuple[Counts, ...]":
    """The exact work of each of a program's launches."""
    from ..metal.counts import counts_of

    return tuple(counts_of(program.problem, launch) for launch in program.launches)


def launch_times(program: Program, costs: "UnitCosts") -> tuple[float, ...]:
    """Microseconds of each of a program's launches."""
    from ..metal.costs import microseconds

    counted = zip(program.launches, launch_counts(program), strict=True)
    return tuple(microseconds(launch.instance, counts, costs) for launch, counts in counted)


def predict(program: Program, costs: "UnitCosts") -> float | None:
    """Microseconds of a program; None where there is no model: of what the framework's own operations take."""
    return sum(launch_times(program, costs)) if isinstance(program, MetalLaunches) else None
