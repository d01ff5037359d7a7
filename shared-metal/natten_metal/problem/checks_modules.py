"""Moved to :mod:`.checks.modules`."""

from .checks.modules import *  # noqa: F403
