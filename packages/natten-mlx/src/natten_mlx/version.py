"""The package's version, where natten-mlx 0.3 had it."""

from . import __version__ as __version__
