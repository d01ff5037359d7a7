"""get_support_matrix at its location in natten-mlx 0.3."""

from ._config import get_support_matrix as get_support_matrix
from ._metal.compat.earlier import moved

moved(__name__, "import its names from natten_mlx")
