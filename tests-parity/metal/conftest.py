"""Fixtures of the Metal suites; where the emulator cannot run, they skip with its own reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import frameworks
import metal_emulator
import pytest

from natten_mps import _call, functional
from natten_mps._config import TIERS
from natten_mps._launch import metal as _launch
from natten_mps._metal.plan import backends, verdicts

from .host import EmulatedHost

if TYPE_CHECKING:
    from .mlx_host import MlxHost


@pytest.fixture(scope="session")
def emulator() -> None:
    """Whether Metal kernels can be executed here at all."""
    reason = metal_emulator.unavailable_reason()
    if reason is not None:
        pytest.skip(reason)


@contextmanager
def installed(monkeypatch: pytest.MonkeyPatch, host: EmulatedHost) -> Iterator[EmulatedHost]:
    """``host`` in place of torch's own, without anything left over from another test."""
    kept: list[Any] = [_launch._kernels, _launch._params]
    verdicts.forget()
    for cache in kept:
        cache.clear()
    monkeypatch.setattr(_launch, "HOST", host)
    # An emulated GPU poses as a CPU, where 'auto' would prefer the CPU kernels to the failing ones.
    for module in (_call, functional):
        monkeypatch.setattr(module, "TIERS", tuple(tier for tier in TIERS if tier != "native"))
    monkeypatch.setattr(backends, "warn_of_missing_kernels", lambda *words: None)
    monkeypatch.setitem(frameworks.TIER_MODULES, "metal", ("_launch.metal",))
    yield host
    verdicts.forget()
    for cache in kept:
        cache.clear()


@pytest.fixture
def metal(emulator: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedHost]:
    """natten_mps with an emulated Apple GPU behind its CPU tensors."""
    with installed(monkeypatch, EmulatedHost()) as host:
        yield host


@contextmanager
def installed_mlx(monkeypatch: pytest.MonkeyPatch, host: MlxHost) -> Iterator[MlxHost]:
    """``host`` in place of MLX's own; the emulator must find no fault in what runs there, and no unwritten output."""
    from natten_mlx._launch import fast_metal as _launch_fast
    from natten_mlx._launch import nanobind as _launch_nanobind
    from natten_mlx._metal.plan import backends as named
    from natten_mlx._metal.plan import verdicts as learned

    learned.forget()
    frameworks.MLX.package  # noqa: B018 - selects the CPU
    monkeypatch.setattr(_launch_fast, "HOST", host)
    # The emulated GPU poses as a CPU stream, where 'auto' would prefer the CPU kernels.
    monkeypatch.setattr(_launch_nanobind, "_found", lambda: "the extension is left out")
    monkeypatch.setitem(frameworks.TIER_MODULES, "fast_metal", ("_launch.fast_metal",))
    monkeypatch.setattr(named, "_said", set())
    monkeypatch.setattr(named, "warn_of_missing_kernels", lambda *words: None)  # of the CPU that it poses as
    yield host
    learned.forget()
    assert not host.faults
    assert all(launch.written_once for launch in host.ran)


@pytest.fixture
def mlx_metal(emulator: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlxHost]:
    """natten_mlx with an emulated Apple GPU behind its CPU stream."""
    from .mlx_host import MlxHost

    with installed_mlx(monkeypatch, MlxHost()) as host:
        yield host
