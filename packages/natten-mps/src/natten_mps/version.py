"""The package's version, where natten-mps 0.3 had it."""

from . import __version__ as __version__
