"""The plan is what runs: explain, the support matrix and the launches agree, before a kernel fails and after it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from frameworks import MLX, MPS, Framework

from .conftest import installed, installed_mlx
from .host import EmulatedHost
from .mlx_host import EmulatedMlxHost

pytestmark = pytest.mark.usefixtures("emulator")

# The problem that the support matrix asks about: rank 1, float32, head dims of 16.
SHAPE, WINDOW = (1, 8, 1, 16), 3
GRADIENT = ["na_delta", "na_bwd_dq", "na_bwd_dkv"]


class HalfBroken(EmulatedHost):
    """A host that compiles no kernel whose name contains ``breaks``."""

    breaks = ""

    def compile_shader(self, source: str) -> Any:
        broken = self.breaks and f"{self.breaks}_r" in source
        return super().compile_shader(source + "#error planted\n" if broken else source)


@dataclass
class OnGpu:
    """A package on an emulated GPU."""

    framework: Framework
    backend: str
    host: Any

    def tensors(self) -> list[Any]:
        rng = np.random.default_rng(0)
        return [self.framework.tensor(rng.standard_normal(SHAPE), "float32") for _ in range(3)]

    def explain(self, **arguments: Any) -> str:
        found: str = self.framework.package.explain("na1d", *self.tensors(), kernel_size=WINDOW, **arguments)
        return found

    def matrix(self) -> dict[str, Any]:
        found: dict[str, Any] = self.framework.package.get_support_matrix()[self.backend]
        return found

    def plan(self) -> Any:
        """The plan of the call that :meth:`run` makes."""
        machine = self.framework.module("_device").machine()
        (query, *_), faces = self.tensors(), self.framework.module("_metal.problem.faces")
        spec = self.framework.module("_tensors").spec
        problem = faces.fused(
            "na1d", *(spec("na1d", n, query) for n in ("query", "key", "value")), WINDOW, 1, 1, False, None
        )
        where = query.device if self.framework is MPS else self.framework.module("_tensors").stream_of("na1d", None)
        return machine.plan_on(where, problem, "auto")

    def run(self, **arguments: Any) -> tuple[set[str], list[str]]:
        """The backends and the kernel templates that forward and gradient ran."""
        attend = self.framework.face("na1d")
        before = len(self.launched())
        given = self.tensors()
        with self.framework.watch() as ran:
            _, gradients = self.framework.vjp(lambda *t: (attend(*t, WINDOW, **arguments),), given, [given[0]])
            self.framework.evaluate(*gradients)
        return ran, self.launched()[before:]

    def launched(self) -> list[str]:
        if isinstance(self.host, EmulatedMlxHost):
            return [launch.name for launch in self.host.ran]
        return list(self.host.names)


@contextmanager
def on_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[OnGpu]:
    with installed(monkeypatch, HalfBroken()) as host:
        yield OnGpu(MPS, "metal", host)


@contextmanager
def on_mlx(monkeypatch: pytest.MonkeyPatch) -> Iterator[OnGpu]:
    with installed_mlx(monkeypatch, EmulatedMlxHost()) as host:
        yield OnGpu(MLX, "fast_metal", host)


@pytest.fixture(params=[on_torch, on_mlx])
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[OnGpu]:
    make: Callable[..., Any] = request.param
    with make(monkeypatch) as made:
        yield made


def templates(names: list[str]) -> list[str]:
    return [name.partition("_r")[0] for name in names]


def narrow(name: str) -> str:
    """A kernel's name without the flag for 16-byte copies, which depends on the tensors' addresses."""
    start, _, flags = name.rpartition("_")
    return f"{start}_{flags.replace('w', '')}"


def test_forward_and_backward_of_the_plan_are_what_runs(package: OnGpu) -> None:
    package.run()  # in MLX, this probes every kernel first
    planned = package.plan()
    ran, launched = package.run()
    # If no gradient flows into lse, torch says so, and MLX passes zeros.
    backward = planned.gradient(has_lse_grad=package.framework is MLX)
    launches = (*planned.forward.launches, *backward.launches)
    assert sorted(map(narrow, launched)) == sorted(launch.instance.name for launch in launches)
    assert {planned.backend, planned.forward.backend, backward.backend} == {package.backend} and "pure" not in ran
    assert f"backend: {package.backend} " in package.explain() and "gradients" not in package.explain()
    assert package.matrix()["forward"] and package.matrix()["backward"] and "failed" not in package.matrix()["limits"]


def test_a_failing_forward(package: OnGpu) -> None:
    """The whole call runs on the pure backend, and plan, explain and matrix say so."""
    package.host.breaks = "na_fwd"
    assert f"backend: {package.backend} " in package.explain()  # the failure is not known yet
    package.run()
    planned, words = package.plan(), r"na_fwd_r1_\w+ does not (compile|run): "
    assert (planned.backend, planned.forward.backend, planned.backward.backend) == ("pure",) * 3
    assert re.search(rf"^backend: pure \(.*{package.backend}: {words}", package.explain(), re.MULTILINE)
    assert re.search(words, planned.why) and "gradients" not in package.explain()
    assert re.match(words, package.matrix()["limits"]["failed"])
    ran, launched = package.run()
    assert ran == {"pure"} and not launched


def test_a_failing_gradient(package: OnGpu) -> None:
    """The forward stays on its backend, the gradient runs on the pure one, and plan, explain and matrix say so."""
    package.host.breaks = "na_bwd_dkv"
    package.run()
    planned, words = package.plan(), r"na_bwd_dkv_r1_\w+ does not (compile|run): "
    assert (planned.backend, planned.forward.backend, planned.backward.backend) == (
        package.backend,
        package.backend,
        "pure",
    )
    assert re.match(words, planned.backward.why)
    text = package.explain()
    assert f"backend: {package.backend} " in text and re.search(rf"^gradients: pure \({words}", text, re.MULTILINE)
    assert package.matrix()["forward"] and not package.matrix()["backward"]
    ran, launched = package.run()
    assert ran == {package.backend, "pure"} and templates(launched) == ["na_fwd"]
    # If the backend is requested, the gradient is an error, and explain says that too.
    assert re.search(rf"^gradients: none \({words}", package.explain(backend=package.backend), re.MULTILINE)
    failure = package.framework.module("_metal.plan.verdicts").KernelFailure
    with pytest.raises(failure, match=words):
        package.run(backend=package.backend)
