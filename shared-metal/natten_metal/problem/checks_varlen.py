"""Moved to :mod:`.checks.varlen`."""

from .checks.varlen import *  # noqa: F403
