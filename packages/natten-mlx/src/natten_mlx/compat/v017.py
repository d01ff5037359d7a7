"""NATTEN 0.17: names, argument orders, layouts and modules.

One argument a window, causal axes, and the fused ops ``na{1,2,3}d``, which are heads-last, and where dilation
follows kernel_size. Bias tables are called ``rpb``, and train in the fused ops too.
"""

from typing import TYPE_CHECKING, Any

from ._build import generation

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...


globals().update(generation("v017", __name__))
