"""Options of the test run, common fixtures, and cleaning up after each test."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import hypothesis
import pytest

# Plans must not depend on what somebody measured on this machine.
os.environ["NATTEN_TUNING"] = "off"

# The default run must be reproducible; with --all, examples are random. A slow machine is no reason to fail.
hypothesis.settings.register_profile("gate", derandomize=True, deadline=None)
hypothesis.settings.register_profile("all", derandomize=False, deadline=None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the long tests too (marked `all`)")


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.load_profile("all" if config.getoption("--all") else "gate")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --all, leave out tests marked `all`: deselected, not skipped, so that every skip is worth a look."""
    if config.getoption("--all"):
        return
    long = [item for item in items if item.get_closest_marker("all")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("all")]


@pytest.fixture(autouse=True)
def default_backend() -> Iterator[None]:
    """Reset the process's default backend after each test, so that tests do not depend on each other."""
    yield
    for package in ("natten_mps", "natten_mlx"):
        backends = sys.modules.get(f"{package}._backends")
        if backends is not None:
            backends.BACKENDS._default = None


@pytest.fixture(params=["native", "pure"])
def torch_path(request: pytest.FixtureRequest) -> Iterator[str]:
    """natten_mps's compiled and pure backends in turn: the default within the test, which must run no other."""
    from frameworks import MPS

    MPS.package.set_backend(request.param)
    with MPS.watch() as ran:
        yield request.param
    assert ran == {request.param}
