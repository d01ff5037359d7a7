"""Fixtures of the Metal suites; where the emulator cannot run, they skip with its own reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import frameworks
import metal_emulator
import pytest

from natten_mps._device import on_machine
from natten_mps._metal.metal.templates import MPP_CHECK
from natten_mps._metal.plan.backend import FAST_METAL, METAL
from natten_mps._metal.plan.matrix_units import System

from .host import NO_MATRIX_UNITS, EmulatedHost, EmulatedMachine

if TYPE_CHECKING:
    from .mlx_host import EmulatedMlxHost


@pytest.fixture(scope="session")
def emulator() -> None:
    """Skips the test if Metal kernels cannot be executed here."""
    reason = metal_emulator.unavailable_reason()
    if reason is not None:
        pytest.skip(f"Metal kernels cannot be executed here: {reason}")


@contextmanager
def installed(
    monkeypatch: pytest.MonkeyPatch, host: EmulatedHost, system: System = NO_MATRIX_UNITS
) -> Iterator[EmulatedHost]:
    """``host`` instead of torch's own, on a machine that has learned nothing from other tests."""
    monkeypatch.setitem(frameworks.BACKEND_MODULES, METAL.name, ("_launch.metal",))
    with on_machine(EmulatedMachine(host, system)):
        yield host


@pytest.fixture
def metal(emulator: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedHost]:
    """natten_mps with an emulated Apple GPU behind its CPU tensors."""
    with installed(monkeypatch, EmulatedHost()) as host:
        yield host


@contextmanager
def installed_mlx(
    monkeypatch: pytest.MonkeyPatch, host: EmulatedMlxHost, system: System | None = None
) -> Iterator[EmulatedMlxHost]:
    """natten_mlx on a machine that compiles and launches with ``host``, in a process that has not logged anything yet.

    Afterwards the emulator must have found no fault, and every output must have been written.
    """
    from mlx_abilities import RELEASE, makes_kernels

    from natten_mlx._device import on_machine
    from natten_mlx._metal.plan import backends, matrix_units

    from .mlx_host import EmulatedMlxMachine

    if not makes_kernels():  # before 0.32.0
        pytest.skip(f"{RELEASE} makes no kernel where there is no Apple GPU")
    frameworks.MLX.package  # noqa: B018 - selects the CPU
    monkeypatch.setitem(frameworks.BACKEND_MODULES, FAST_METAL.name, ("_launch.fast_metal",))
    backends.logged.clear()
    with on_machine(EmulatedMlxMachine(host, system and matrix_units.System(*system))):
        yield host
    assert not host.faults
    # The self-test of matrix units clears its results before it writes them.
    assert all(launch.written_once for launch in host.ran if not launch.name.startswith(MPP_CHECK.name))


@pytest.fixture
def mlx_metal(emulator: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedMlxHost]:
    """natten_mlx with an emulated Apple GPU behind its CPU stream."""
    from .mlx_host import EmulatedMlxHost

    with installed_mlx(monkeypatch, EmulatedMlxHost()) as host:
        yield host
