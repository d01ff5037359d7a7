"""Fixtures of the Metal suites; where the emulator cannot run, they skip with its own sentence."""

from __future__ import annotations

import metal_emulator
import pytest


@pytest.fixture(scope="session")
def emulator() -> None:
    """Whether Metal kernels can be executed here at all."""
    reason = metal_emulator.unavailable_reason()
    if reason is not None:
        pytest.skip(reason)
