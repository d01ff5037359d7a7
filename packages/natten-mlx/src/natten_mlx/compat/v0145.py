"""NATTEN 0.14.5: names, argument orders, layouts and modules.

As 0.14.6, but ``natten{1,2}dav(attn, value, dilation)``.
"""

from typing import TYPE_CHECKING, Any

from ._build import generation

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...


globals().update(generation("v0145", __name__))
