"""What ``bench`` measured, as data, and as the JSON that it writes and ``report`` reads.

The fields of these classes are the format: docs/bench.md describes each, and a test holds it to them. A file
says the name of the format and its version; a field that is added leaves the version as it is, one that changes or
goes raises it.
"""

import json
import statistics
import types
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

FORMAT, VERSION = "natten-bench", 1

T = TypeVar("T")
# What a row's 'direction' may be. Training is the forward and all gradients, as one step of it computes them.
FORWARD, TRAINING = "forward", "training"
# What an entry's 'state' may be: its times are known; a limit of the command kept it from being timed; it raised an
# error; its output is not the package's.
TIMED, LEFT_OUT, FAILED, WRONG = "timed", "left out", "failed", "wrong"

# No number of a file is nearly as large; with it, figures made of several are numbers, too.
LARGEST = 1e30


class Unreadable(Exception):
    """A file that is not what ``bench`` writes; the message says why."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured.

    chip: the CPU's name, or the whole chip's on a Mac. gpu_cores: None without an Apple GPU. device: what computed.
    threads: of the framework on a CPU. instruction_set: of the CPU kernels, '' on a GPU. load: the load average before
    and after; empty where it is not known.
    """

    os: str
    architecture: str
    chip: str
    gpu_cores: int | None
    device: str
    cpus: int
    threads: int
    instruction_set: str
    memory_bytes: int
    load: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Peak:
    """The most that the framework reached in the same run: a product of square matrices, and a copy."""

    gflops: float
    gigabytes_per_second: float

    def best(self, other: "Peak") -> "Peak":
        """The better of both."""
        return Peak(max(self.gflops, other.gflops), max(self.gigabytes_per_second, other.gigabytes_per_second))


@dataclass(frozen=True, slots=True)
class Entry:
    """One way to compute a row's problem.

    name: 'natten-mps', 'sdpa', ... state: 'timed', 'left out', 'failed' or 'wrong'; unless it is the first, there are
    no times, and reason says why. times_us: microseconds of a call, one for each round. peak_bytes: memory beyond the
    inputs, None where it cannot be known. difference: the largest one of its outputs from the package's, over the
    largest output; None if it computes something else.
    """

    name: str
    state: str
    times_us: tuple[float, ...]
    peak_bytes: int | None
    difference: float | None
    reason: str

    @property
    def median_us(self) -> float | None:
        """The median time; None if it was not timed."""
        return statistics.median(self.times_us) if self.times_us else None


@dataclass(frozen=True, slots=True)
class Row:
    """One problem in one dtype and direction; the first entry is the package's own.

    quick: whether it is the small form. pairs: of a query and a key of its window, of one head of one batch item.
    flops: useful operations of a call. least_bytes: what must be read and written once. predicted_us: the planner's
    time, None if it has none for this device.
    """

    problem: str
    quick: bool
    dtype: str
    direction: str
    shape: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    is_causal: tuple[bool, ...]
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    pairs: int
    flops: int
    least_bytes: int
    backend: str
    plan: str
    predicted_us: float | None
    entries: tuple[Entry, ...]

    @property
    def own(self) -> Entry:
        """The package's entry."""
        return self.entries[0]

    @property
    def density(self) -> float:
        """The share of all pairs of a query and a key that the windows hold."""
        tokens = 1
        for size in self.shape:
            tokens *= size
        return self.pairs / tokens**2


@dataclass(frozen=True, slots=True)
class Results:
    """One run of ``bench``. peaks: by dtype. settings: the command's options that change what is measured."""

    format: str
    version: int
    package: str
    package_version: str
    framework: str
    python: str
    began: str
    machine: Machine
    settings: dict[str, str]
    peaks: dict[str, Peak]
    rows: tuple[Row, ...]


def to_json(results: Results) -> bytes:
    """The file's content, a line for each row."""
    whole = asdict(results)
    rows = ",\n  ".join(json.dumps(row) for row in whole.pop("rows"))
    return f'{json.dumps(whole, indent=1)[:-2]},\n "rows": [\n  {rows}\n ]\n}}\n'.encode()


def from_json(text: bytes, name: str) -> Results:
    """The results in a file's content; :class:`Unreadable` if it is another format, another version, or damaged."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{name}: not JSON: {error}") from None
    if not isinstance(given, dict) or given.get("format") != FORMAT:
        raise Unreadable(f"{name}: not a file of `bench --json`: its format is not '{FORMAT}'")
    if given.get("version") != VERSION:
        raise Unreadable(f"{name}: version {given.get('version')} of the format; this package reads version {VERSION}")
    found: Results = _read(Results, given, name)
    for where, wrong in _wrong(found):
        raise Unreadable(f"{name}{where}: {wrong}")
    return found


def _wrong(found: Results) -> Iterator[tuple[str, str]]:
    """Where what was read is no result that figures can be made of, and why."""
    for dtype, peak in found.peaks.items():
        if min(peak.gflops, peak.gigabytes_per_second) <= 0:
            yield f".peaks.{dtype}", "must be above zero"
    for at, row in enumerate(found.rows):
        for where, wrong in _wrong_row(row, found):
            yield f".rows[{at}]{where}", wrong


def _wrong_row(row: Row, found: Results) -> Iterator[tuple[str, str]]:
    if row.dtype not in found.peaks:
        yield ".dtype", f"'{row.dtype}' is not among the peaks"
    if row.direction not in (FORWARD, TRAINING):
        yield ".direction", f"must be '{FORWARD}' or '{TRAINING}'; got '{row.direction}'"
    for name in ("kernel_size", "stride", "dilation", "is_causal"):
        if len(getattr(row, name)) != len(row.shape):
            yield f".{name}", f"must have one number for each of {len(row.shape)} axes"
    numbers = ("batch", "heads", "kv_heads", "head_dim", "pairs", "flops", "least_bytes")
    if not row.shape or min(*row.shape, *(getattr(row, name) for name in numbers)) < 1:
        yield "", f"shape, {', '.join(numbers)} must be at least 1"
    if not row.entries:
        yield ".entries", "must have the package's own, the first"
    for at, entry in enumerate(row.entries):
        if entry.state not in (TIMED, LEFT_OUT, FAILED, WRONG):
            yield f".entries[{at}].state", f"is unknown: '{entry.state}'"
        if bool(entry.times_us) != (entry.state == TIMED):
            yield f".entries[{at}].times_us", f"must have times if the state is '{TIMED}', and else none"
        if min(entry.times_us, default=1) <= 0:
            yield f".entries[{at}].times_us", "must be above zero"
    if len({len(entry.times_us) for entry in row.entries} - {0}) > 1:
        yield ".entries", "must have as many times each: they took turns"


def load(path: Path) -> Results:
    """:func:`from_json` of a file; :class:`Unreadable` also if it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Unreadable(f"{path}: cannot be read: {error.strerror}") from None
    return from_json(content, str(path))


def _read(kind: Any, given: Any, where: str) -> Any:
    """``given``, as JSON has it, as a value of the annotated type ``kind``."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        return _read_object(kind, given, where)
    if origin in (Union, types.UnionType):
        return None if given is None else _read(arguments[0], given, where)
    if origin is tuple and isinstance(given, list):
        return tuple(_read(arguments[0], each, f"{where}[{at}]") for at, each in enumerate(given))
    if origin is dict and isinstance(given, dict):
        return {key: _read(arguments[1], each, f"{where}.{key}") for key, each in given.items()}
    if type(given) in (int, float) and not abs(given) <= LARGEST:
        raise Unreadable(f"{where}: must be a number of at most {LARGEST:g}")
    if kind is float and type(given) is int:
        return float(given)
    if origin is None and type(given) is kind:
        return given
    wanted = getattr(origin or kind, "__name__", str(kind))
    raise Unreadable(f"{where}: must be {wanted}; got {type(given).__name__}")


def _read_object(kind: type[T], given: Any, where: str) -> T:
    """A dataclass from an object; fields of later packages are left out."""
    if not isinstance(given, dict):
        raise Unreadable(f"{where}: must be an object; got {type(given).__name__}")
    hints = get_type_hints(kind)
    names = [each.name for each in fields(kind)]  # type: ignore[arg-type]
    missing = [name for name in names if name not in given]
    if missing:
        raise Unreadable(f"{where}: lacks {', '.join(missing)}")
    return kind(**{name: _read(hints[name], given[name], f"{where}.{name}") for name in names})
