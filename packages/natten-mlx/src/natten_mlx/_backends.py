"""The backends of this package, and which of them calls use."""

from ._metal.plan.backend import DENSE, FAST_METAL, METAL, NANOBIND, PURE
from ._metal.plan.backends import Backends

# 'auto' tries them in this order.
ORDER = (NANOBIND.name, FAST_METAL.name, PURE.name, DENSE.name)
BACKENDS = Backends("natten-mlx", ORDER, {METAL.name: FAST_METAL.name}, preferences=(METAL.name, "mlx"))
