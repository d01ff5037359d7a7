"""Neighborhood attention for PyTorch on Apple Silicon (and any CPU).

    import torch, natten_mps
    q = k = v = torch.randn(1, 64, 64, 4, 32)              # [batch, X, Y, heads, dim]
    out = natten_mps.na2d(q, k, v, kernel_size=7)          # [1, 64, 64, 4, 32]

Importing the package does not import torch: names are imported when they are first used. The ops, to which saved
programs refer by name, are registered as soon as both this package and torch are imported.
"""

from typing import TYPE_CHECKING

from ._metal.api import names
from ._with_torch import register as _register

_NAMES = names.LazyNames(
    __name__,
    names.HOMES | {"_export": ("export_mode",), "_config": (*names.BACKEND_NAMES, "has_mps")},
    (*names.HOMES, "compat", "distributed", "extras"),
)
__all__ = [*_NAMES.home_of]  # noqa: PLE0604 - names are strings

if TYPE_CHECKING:
    from ._config import get_backend as get_backend
    from ._config import get_support_matrix as get_support_matrix
    from ._config import has_metal as has_metal
    from ._config import has_mps as has_mps
    from ._config import set_backend as set_backend
    from ._config import use_backend as use_backend
    from ._export import export_mode as export_mode
    from .counting import flops as flops
    from .functional import attention as attention
    from .functional import explain as explain
    from .functional import key_range as key_range
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
    from .functional import query_range as query_range
    from .key_value_cache import KeyValueCache as KeyValueCache
    from .modules import NeighborhoodAttention1D as NeighborhoodAttention1D
    from .modules import NeighborhoodAttention2D as NeighborhoodAttention2D
    from .modules import NeighborhoodAttention3D as NeighborhoodAttention3D
    from .slabs import tiled as tiled
    from .tuning import tune as tune
    from .varlen import generate_varlen_parameters as generate_varlen_parameters
    from .varlen import na1d_varlen as na1d_varlen
    from .varlen import na2d_varlen as na2d_varlen
    from .varlen import na3d_varlen as na3d_varlen
    from .version import __version__ as __version__
    from .weights import load_weights as load_weights
    from .weights import save_weights as save_weights


__getattr__, __dir__ = _NAMES.find, _NAMES.listed


_register()
