"""The package's version at its location in natten-mps 0.3."""

from . import __version__ as __version__
