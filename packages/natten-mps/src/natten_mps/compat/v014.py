"""NATTEN 0.14.6: names, argument orders, layouts and modules.

Split ops only, heads-first: ``natten{1,2}dqkrpb(query, key, rpb, kernel_size, dilation)``, ``natten{1,2}dqk``,
``natten{1,2}dav(attn, value, kernel_size, dilation)``. Modules pad inputs shorter than their window.
"""

from typing import TYPE_CHECKING, Any

from ._build import generation

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...


globals().update(generation("v014", __name__))
