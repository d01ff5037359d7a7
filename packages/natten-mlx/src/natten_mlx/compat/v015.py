"""NATTEN 0.15: names, argument orders, layouts and modules.

Adds volumes (their depth has arguments of its own), the names ``na{1,2,3}d_{qk,qk_with_bias,av}`` and additional
keys and values. ``na1d``, ``na2d`` and ``na3d`` are here because 0.3 had them; upstream had none yet.
"""

from typing import TYPE_CHECKING, Any

from ._build import generation

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...


globals().update(generation("v015", __name__))
