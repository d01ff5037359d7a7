"""Skips tests that need the emulator where it cannot run, with its own reason."""

from pathlib import Path

import pytest

from metal_emulator import unavailable_reason


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = unavailable_reason()
    if reason is None:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents and item.path.stem != "test_availability":
            item.add_marker(pytest.mark.skip(reason=reason))
