"""The modules of NATTEN's generations, over torch."""

from typing import TYPE_CHECKING, Any

from .. import _framework, functional, modules
from .._config import has_mps
from .._metal.compat.build import Generations
from .._metal.compat.inner import FUNCTIONS
from .._metal.compat.modules import Parts
from . import _helpers
from ._functions import function_class
from ._nested import over_nested
from ._tokens import TOKENS

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...


def _parts(made_by: Generations) -> Parts:
    def functions(name: str, module: str) -> dict[str, Any]:
        forms = FUNCTIONS[name].items()
        return {each: function_class(each, form, module, made_by.adapter(form)) for each, form in forms}

    return Parts(
        made_by.faces,
        _helpers.HELPERS,
        functions,
        _helpers.DEVICE,
        _helpers.DTYPE,
        _helpers.TENSOR,
        _helpers.OPS,
        _helpers.ATTN_MERGE,
        _helpers.FLOPS,
        _helpers.ENVIRONMENT,
        TOKENS,
        nested=True,
    )


GENERATIONS = Generations(
    _framework,
    functional,
    modules,
    "forward",
    {"has_mps": has_mps, "add_natten_handle": _helpers.add_natten_handle},
    _parts,
    over_nested,
)
define = GENERATIONS.define
