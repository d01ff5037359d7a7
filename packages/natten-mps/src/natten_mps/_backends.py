"""The backends of this package, and which of them calls use."""

import torch

from ._metal.plan.backend import DENSE, METAL, NATIVE, PURE
from ._metal.plan.backends import Backends

# 'auto' tries them in this order.
ORDER = (METAL.name, NATIVE.name, PURE.name, DENSE.name)
BACKENDS = Backends("natten-mps", ORDER, traced=torch.compiler.is_dynamo_compiling)
