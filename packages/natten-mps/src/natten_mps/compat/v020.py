"""NATTEN 0.20 to 0.21.1: names, argument orders, layouts and modules.

Fused ops with stride; ``merge_attentions`` returns the output alone. ``na{1,2,3}d_{qk,av}`` and the ``natten*`` ops
are here, heads-first as in 0.17, though upstream dropped them.
"""

from typing import TYPE_CHECKING, Any

from ._build import generation

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...


globals().update(generation("v020", __name__))
