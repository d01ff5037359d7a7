"""Puts ``natten`` in place before any client is imported, and prints the errors that were measured."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

# How the other suites determine which backend ran.
sys.path.append(str(Path(__file__).parents[1] / "tests-parity"))
# hdit's own switch; with it torch would compile every small function of the model.
os.environ["K_DIFFUSION_USE_COMPILE"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"

from natten_mps import compat

# Clients look for natten when they are imported.
compat.install()
torch.set_num_threads(1)

_MEASURED: list[tuple[str, dict[str, float]]] = []


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> dict[str, float]:
    """Errors to print at the end, by name."""
    errors: dict[str, float] = {}
    _MEASURED.append((request.node.nodeid.rpartition("/")[2], errors))
    return errors


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("relative errors against the dense reference in float64")
    for name, errors in _MEASURED:
        terminalreporter.write_line(f"{name}: " + ", ".join(f"{what} {error:.1e}" for what, error in errors.items()))
