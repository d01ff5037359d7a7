"""The package's version at its location in natten-mlx 0.3."""

from . import __version__ as __version__
