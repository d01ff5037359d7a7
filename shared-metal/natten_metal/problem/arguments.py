"""Moved to :mod:`.checks.arguments`."""

from .checks.arguments import *  # noqa: F403
