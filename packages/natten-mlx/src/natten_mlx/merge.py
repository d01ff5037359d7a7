"""merge_attentions at its location in natten-mlx 0.3."""

from ._metal.compat.earlier import moved
from .functional import merge_attentions as merge_attentions

moved(__name__, "import its names from natten_mlx")
