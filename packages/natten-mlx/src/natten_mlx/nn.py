"""The modules at their location in natten-mlx 0.3."""

from ._metal.compat.earlier import moved
from .modules import NeighborhoodAttention1D as NeighborhoodAttention1D
from .modules import NeighborhoodAttention2D as NeighborhoodAttention2D
from .modules import NeighborhoodAttention3D as NeighborhoodAttention3D

moved(__name__, "import its names from natten_mlx")
