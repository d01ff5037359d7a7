"""Fixtures of the Metal suites; where the emulator cannot run, they skip with its own sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import frameworks
import metal_emulator
import pytest

from natten_mps import _launch

from .host import EmulatedHost


@pytest.fixture(scope="session")
def emulator() -> None:
    """Whether Metal kernels can be executed here at all."""
    reason = metal_emulator.unavailable_reason()
    if reason is not None:
        pytest.skip(reason)


@contextmanager
def installed(monkeypatch: pytest.MonkeyPatch, host: EmulatedHost) -> Iterator[EmulatedHost]:
    """``host`` in place of torch's own, with nothing left over from another."""
    kept: list[Any] = [_launch._kernels, _launch._failures, _launch._params]
    for cache in kept:
        cache.clear()
    monkeypatch.setattr(_launch, "HOST", host)
    monkeypatch.setitem(frameworks.TIER_MODULES, "metal", ("_launch",))
    yield host
    for cache in kept:
        cache.clear()


@pytest.fixture
def metal(emulator: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedHost]:
    """natten_mps with an emulated Apple GPU behind its CPU tensors."""
    with installed(monkeypatch, EmulatedHost()) as host:
        yield host
