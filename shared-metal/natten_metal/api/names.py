"""Names of a package that are imported on first use."""

import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

# The modules of the public names that both packages have, in the order of the documentation.
HOMES: dict[str, tuple[str, ...]] = {
    "functional": (
        "neighborhood_attention",
        "na1d",
        "na2d",
        "na3d",
        "na1d_qk",
        "na2d_qk",
        "na3d_qk",
        "na1d_av",
        "na2d_av",
        "na3d_av",
        "attention",
        "merge_attentions",
        "explain",
        "key_range",
        "query_range",
    ),
    "counting": ("flops",),
    "key_value_cache": ("KeyValueCache",),
    "varlen": ("na1d_varlen", "na2d_varlen", "na3d_varlen", "generate_varlen_parameters"),
    "slabs": ("tiled",),
    "tuning": ("tune",),
    "modules": ("NeighborhoodAttention1D", "NeighborhoodAttention2D", "NeighborhoodAttention3D"),
    "weights": ("load_weights", "save_weights"),
    "version": ("__version__",),
}
BACKEND_NAMES = ("get_backend", "set_backend", "use_backend", "get_support_matrix", "has_metal")


class LazyNames:
    """What ``__getattr__`` and ``__dir__`` of the package ``package`` answer.

    homes: by module, the names that the package takes from it. modules: those that are public by their own names.
    """

    def __init__(self, package: str, homes: Mapping[str, tuple[str, ...]], modules: Iterable[str]) -> None:
        self.package, self.homes, self.modules = package, homes, frozenset(modules)
        self.home_of = {name: home for home, names in homes.items() for name in names}

    def module(self, name: str) -> ModuleType:
        """A module of the package."""
        return import_module(f".{name}", self.package)

    def find(self, name: str) -> Any:
        """The value of a name; AttributeError if the package has none."""
        if name in self.modules:
            return self.module(name)
        if name not in self.home_of:
            raise AttributeError(f"module {self.package!r} has no attribute {name!r}")
        value = getattr(self.module(self.home_of[name]), name)
        setattr(sys.modules[self.package], name, value)
        return value

    def listed(self) -> list[str]:
        """All names."""
        own = vars(sys.modules[self.package])
        return sorted({*own, *own["__all__"], *self.modules})
