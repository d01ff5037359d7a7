"""NATTEN 0.17: names, argument orders, layouts and modules."""

from typing import TYPE_CHECKING

from ._build import define

if TYPE_CHECKING:
    from ._build import __getattr__ as __getattr__

define(__name__)
