"""The tuning file: what ``tune`` measured on this machine, and when it still counts.

A process reads it once, when the first plan of Metal kernels asks, so its plans do not change while it runs. The file
belongs to one package, its version and its kernels, one chip and one release of the operating system; a file of
anything else, or a broken one, is ignored with one sentence in the log. ``NATTEN_TUNING`` is 'off', or the path of a
file to read instead of the one in the user's cache folder.
"""

import hashlib
import json
import logging
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..caches import Cache
from .backends import log_once

if TYPE_CHECKING:
    from ..metal.costs import UnitCosts

OFF = "off"
VERSION = 2
# No tuning file is nearly as long; what is longer is something else.
MOST_BYTES = 1 << 20
# No figure is nearly as large; with it, times of the largest problems are still numbers.
LARGEST = 1e30
# The module that holds this code belongs to one package: natten_mps, natten_mlx, or none in this repository's tools.
MODULE = __name__.partition(".")[0]
PACKAGE = MODULE.replace("_", "-")

_read_once = Cache("tuning", 2)


class Read(NamedTuple):
    """What was found: unit costs, or None where nothing was measured that counts here."""

    costs: "UnitCosts | None"


class Broken(Exception):
    """Why a tuning file cannot be used, in words that follow 'because'."""


def identity() -> dict[str, str]:
    """What a measurement depends on: a file that says otherwise is of no use here."""
    from ..metal.source import headers, mpp_headers
    from .chip import chip_name, gpu_cores, macos_release

    cores, release = gpu_cores(), macos_release() or platform.release()
    return {
        "package": PACKAGE,
        "package version": str(getattr(sys.modules.get(MODULE), "__version__", "none")),
        "chip": chip_name() + (f", {cores} GPU cores" if cores else ""),
        "system": f"{'macOS' if sys.platform == 'darwin' else platform.system()} {release}",
        "kernels": hashlib.sha256((headers() + mpp_headers(False)).encode()).hexdigest()[:16],
    }


def default_path() -> Path:
    """Where ``tune`` writes: a file in the user's cache folder."""
    import platformdirs

    return Path(platformdirs.user_cache_dir(PACKAGE, appauthor=False)) / "tuning.json"


def path_in_force() -> Path | None:
    """The file that this process reads; None if ``NATTEN_TUNING`` is 'off'."""
    chosen = os.environ.get("NATTEN_TUNING")
    if not chosen:
        return default_path()
    return None if chosen == OFF else Path(chosen)


def measured_costs(matrix_units: bool) -> "UnitCosts | None":
    """The unit costs of this machine's GPU, read once in a process; None if it was not tuned.

    matrix_units: whether kernels there may be on matrix units; then a file of a time when they were not is of no use.
    """
    found: Read = _read_once.get_or_make_once("gpu", _find)
    if found.costs is None or not matrix_units or found.costs.has_matrix_units:
        return found.costs
    log_once(
        f"{PACKAGE}: what was measured without matrix units is ignored while they are used; `{PACKAGE} tune` measures "
        "this machine with them",
        logging.WARNING,
    )
    return None


def _find() -> Read:
    path = path_in_force()
    if path is None:
        return Read(None)
    try:
        return Read(read(path))
    except FileNotFoundError:
        if not os.environ.get("NATTEN_TUNING"):
            return Read(None)
        reason = "it does not exist"
    except OSError as error:
        reason = f"it cannot be read: {error.strerror or error}"
    except Broken as error:
        reason = str(error)
    log_once(
        f"{PACKAGE}: the tuning file {path} is ignored, because {reason}; `{PACKAGE} tune` measures this machine, "
        f"and NATTEN_TUNING={OFF} does without",
        logging.WARNING,
    )
    return Read(None)


def read(path: Path) -> "UnitCosts":
    """The unit costs in a tuning file. :class:`Broken` if it is none, or not of this machine; OSError."""
    from ..metal.costs import NECESSARY, PRICES, Cores, UnitCosts

    with path.open("rb") as file:
        text = file.read(MOST_BYTES + 1)
    content = _parsed(text)
    if content.get("version") != VERSION:
        raise Broken(f"its version is {content.get('version')!r}, and this package reads {VERSION}")
    for name, own in identity().items():
        if content.get(name) != own:
            raise Broken(f"it was measured with {name} {content.get(name)!r}, and this is {own!r}")
    prices = content.get("prices")
    if not isinstance(prices, dict) or set(prices) not in (set(PRICES), set(NECESSARY)):
        raise Broken("its prices are not those of this package's model")
    kinds, cores = content.get("kinds"), content.get("cores")
    if not isinstance(kinds, dict) or not isinstance(cores, dict) or set(cores) != set(Cores._fields):
        raise Broken("it lacks the kinds of kernels, or the cores")
    numbers = [*prices.values(), *kinds.values(), *cores.values(), content.get("error")]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n <= LARGEST for n in numbers):
        raise Broken("one of its figures is not a number, below zero, or too large")
    if not any(prices.values()) or min(*kinds.values(), *cores.values(), 1) <= 0:
        raise Broken("its prices, a kind or its cores are zero")
    held = Cores(**{name: max(1, int(number)) for name, number in cores.items()})
    return UnitCosts(str(content["chip"]), True, held, prices, numbers[-1], kinds)


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        if len(text) > MOST_BYTES:
            raise ValueError
        content = json.loads(text)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested without end
        content = None
    if not isinstance(content, dict):
        raise Broken("it is not a tuning file")
    return content


def content_of(costs: "UnitCosts", **more: Any) -> dict[str, Any]:
    """What a tuning file of these costs holds. more: for people to read; nothing here depends on it."""
    figures = {"cores": costs.cores._asdict(), "prices": dict(costs.prices), "kinds": dict(costs.kinds)}
    return {"version": VERSION, **identity(), "error": costs.error, **figures, **more}


def try_folder(path: Path) -> None:
    """OSError if no file can be made where ``path`` is to be; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    Path(name).unlink()


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a tuning file whole or not at all, whoever else writes it; OSError if that is not possible."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=1) + "\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
