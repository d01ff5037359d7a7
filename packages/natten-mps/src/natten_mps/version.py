"""The version, which pyproject.toml states; natten-mps 0.3 had it in this module too."""

from importlib import metadata

__version__ = metadata.version("natten-mps")
