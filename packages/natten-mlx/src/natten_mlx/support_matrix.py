"""get_support_matrix, where natten-mlx 0.3 had it."""

from ._config import get_support_matrix as get_support_matrix
from ._metal.compat.earlier import moved

moved(__name__, "import its names from natten_mlx")
