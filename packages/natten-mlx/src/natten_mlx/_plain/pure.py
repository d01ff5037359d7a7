"""The pure path of fused and full attention in MLX: :mod:`natten_metal.api.pure` over :mod:`.walk`."""

from functools import partial

from .._metal.api import pure
from . import walk

forward, backward = partial(pure.forward, walk), partial(pure.backward, walk)
