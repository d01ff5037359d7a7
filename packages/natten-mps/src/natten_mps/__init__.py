"""Neighborhood attention for PyTorch on Apple Silicon (and any CPU).

    import torch, natten_mps
    q = k = v = torch.randn(1, 64, 64, 4, 32)              # [batch, X, Y, heads, dim]
    out = natten_mps.na2d(q, k, v, kernel_size=7)          # [1, 64, 64, 4, 32]

Importing the package does not import torch: names are found when they are first used, and torch knows the package's
ops, which saved programs name, as soon as both are imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._with_torch import register as _register

__version__ = "0.4.0"

# The module of each public name; the order is that of the documentation.
_HOMES = {
    "functional": (
        "neighborhood_attention", "na1d", "na2d", "na3d", "na1d_qk", "na2d_qk", "na3d_qk", "na1d_av", "na2d_av",
        "na3d_av", "attention", "merge_attentions", "explain",
    ),
    "varlen": ("na1d_varlen", "na2d_varlen", "na3d_varlen", "generate_varlen_parameters"),
    "modules": ("NeighborhoodAttention1D", "NeighborhoodAttention2D", "NeighborhoodAttention3D"),
    "weights": ("load_weights", "save_weights"),
    "_export": ("export_mode",),
    "_config": ("get_backend", "set_backend", "use_backend", "get_support_matrix", "has_metal", "has_mps"),
}  # fmt: skip
_SUBPACKAGES = ("compat", "extras")
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*_HOME_OF, "__version__"]  # noqa: PLE0604 - names are strings, gathered above

if TYPE_CHECKING:
    from ._config import get_backend as get_backend
    from ._config import get_support_matrix as get_support_matrix
    from ._config import has_metal as has_metal
    from ._config import has_mps as has_mps
    from ._config import set_backend as set_backend
    from ._config import use_backend as use_backend
    from ._export import export_mode as export_mode
    from .functional import attention as attention
    from .functional import explain as explain
    from .functional import merge_attentions as merge_attentions
    from .functional import na1d as na1d
    from .functional import na1d_av as na1d_av
    from .functional import na1d_qk as na1d_qk
    from .functional import na2d as na2d
    from .functional import na2d_av as na2d_av
    from .functional import na2d_qk as na2d_qk
    from .functional import na3d as na3d
    from .functional import na3d_av as na3d_av
    from .functional import na3d_qk as na3d_qk
    from .functional import neighborhood_attention as neighborhood_attention
    from .modules import NeighborhoodAttention1D as NeighborhoodAttention1D
    from .modules import NeighborhoodAttention2D as NeighborhoodAttention2D
    from .modules import NeighborhoodAttention3D as NeighborhoodAttention3D
    from .varlen import generate_varlen_parameters as generate_varlen_parameters
    from .varlen import na1d_varlen as na1d_varlen
    from .varlen import na2d_varlen as na2d_varlen
    from .varlen import na3d_varlen as na3d_varlen
    from .weights import load_weights as load_weights
    from .weights import save_weights as save_weights


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES or (name in _HOMES and not name.startswith("_")):
        return import_module(f".{name}", __name__)
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBPACKAGES})


_register()
