"""The pure path of the split ops in MLX: :mod:`natten_metal.api.pure_split` over :mod:`.walk`."""

from functools import partial

from .._metal.api import pure_split
from . import walk

qk, av = partial(pure_split.qk, walk), partial(pure_split.av, walk)
qk_backward, av_backward = partial(pure_split.qk_backward, walk), partial(pure_split.av_backward, walk)
