"""The modules of NATTEN's generations, over MLX."""

from typing import TYPE_CHECKING, Any

import mlx.core as mx

from .. import _framework, functional, modules, varlen
from .._metal.compat.build import Generations, tensor_helpers
from .._metal.compat.modules import Parts

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...


def has_mlx() -> bool:
    """True: this package runs on MLX."""
    return True


def has_mps() -> bool:
    """Whether MLX can compute on this machine's Apple GPU."""
    return mx.metal.is_available()


def add_natten_handle(flop_ctr: Any) -> Any:
    """The counter unchanged: MLX has none of its own."""
    return flop_ctr


_HELPERS = tensor_helpers(_framework, varlen.generate_varlen_parameters)
GENERATIONS = Generations(
    _framework,
    functional,
    modules,
    "__call__",
    {"has_mlx": has_mlx, "has_mps": has_mps, "add_natten_handle": add_natten_handle},
    lambda made_by: Parts(made_by.faces, _HELPERS, flops={"add_natten_handle": add_natten_handle}),
)
define = GENERATIONS.define
