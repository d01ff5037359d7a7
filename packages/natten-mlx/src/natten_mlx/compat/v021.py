"""NATTEN 0.21.5 and later: names, argument orders, layouts and modules.

The log-sum-exp from every op; causal and packed ``attention``. Every older name that means nothing else here is
here too: the split ops, heads-first, and the switches of 0.17.
"""

from typing import TYPE_CHECKING, Any

from ._build import generation

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...


globals().update(generation("v021", __name__))
