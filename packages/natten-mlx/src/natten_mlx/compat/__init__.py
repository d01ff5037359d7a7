"""The call forms of NATTEN's generations: names, argument orders, defaults, layouts, modules, switches.

    from natten_mlx.compat import v017                          # as NATTEN 0.17
    from natten_mlx import compat
    natten = compat.for_version("0.14.6")

A module for each set of call forms: ``v0141`` (0.14.1 to 0.14.4), ``v0145``, ``v014`` (0.14.6), ``v015``, ``v017``,
``v020`` (0.20 to 0.21.1) and ``v021``. Each has the submodules of its releases (``v021.utils.checks``, ``v017.flops``).
Upstream's restrictions (odd windows only, no gradient of rpb, no causal rpb) do not apply; errors are this package's.
What only tunes CUDA kernels is accepted and logged once.

There is no ``install`` here: programs that ``import natten`` pass it torch tensors, which natten-mps takes.
"""

from types import ModuleType
from typing import TYPE_CHECKING

from .._metal.api.names import LazyNames
from .._metal.compat.generations import SINCE, generation_of

if TYPE_CHECKING:
    from . import v014 as v014
    from . import v0141 as v0141
    from . import v0145 as v0145
    from . import v015 as v015
    from . import v017 as v017
    from . import v020 as v020
    from . import v021 as v021

_NAMES = LazyNames(__name__, {}, SINCE)
__all__ = [*SINCE, "for_version"]  # noqa: PLE0604 - names are strings


def for_version(version: str) -> ModuleType:
    """The module with the call forms of a release: ``for_version("0.17.5")`` is :mod:`.v017`.

    Args:
        version: like ``"0.17.5"``; ``"0.14"`` is the last release of 0.14.

    Returns:
        The module, with the names that the release has at its top.

    Raises:
        TypeError: version is not a string. ValueError: it is not a version, older than 0.14.1, or was never released.
    """
    return _NAMES.module(generation_of(version))


__getattr__, __dir__ = _NAMES.find, _NAMES.listed
