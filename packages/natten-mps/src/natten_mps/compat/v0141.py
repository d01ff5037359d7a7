"""NATTEN 0.14.1 to 0.14.4: names, argument orders, layouts and modules.

Split ops only, heads-first: ``natten{1,2}dqkrpb(query, key, rpb, dilation)`` and ``natten{1,2}dav(attn, value,
dilation)``; the window's size follows from the bias table or the weights. Modules take kernel_size before num_heads,
always have a bias table, and with ``dilation=None`` dilate as far as the input allows.
"""

from typing import TYPE_CHECKING, Any

from ._build import generation

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...


globals().update(generation("v0141", __name__))
