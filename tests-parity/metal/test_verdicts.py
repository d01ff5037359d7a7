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

# As the support matrix asks about it: rank 1, float32, head dims of 16.
SHAPE, WINDOW = (1, 8, 1, 16), 3
GRADIENT = ["na_delta", "na_bwd_dq", "na_bwd_dkv"]


class HalfBroken(EmulatedHost):
    """A host that compiles no kernel whose name holds ``breaks``."""

    breaks = ""

    def compile_shader(self, source: str) -> Any:
        broken = self.breaks and f"{self.breaks}_r" in source
        return super().compile_shader(source + "#error planted\n" if broken else source)


@dataclass
class Place:
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
def on_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with installed(monkeypatch, HalfBroken()) as host:
        yield Place(MPS, "metal", host)


@contextmanager
def on_mlx(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with installed_mlx(monkeypatch, EmulatedMlxHost()) as host:
        yield Place(MLX, "fast_metal", host)


@pytest.fixture(params=[on_torch, on_mlx])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    make: Callable[..., Any] = request.param
    with make(monkeypatch) as made:
        yield made


def templates(names: list[str]) -> list[str]:
    return [name.partition("_r")[0] for name in names]


def narrow(name: str) -> str:
    """A kernel's name without the flag of 16-byte copies, which the tensors' addresses decide."""
    start, _, flags = name.rpartition("_")
    return f"{start}_{flags.replace('w', '')}"


def test_forward_and_backward_of_the_plan_are_what_runs(place: Place) -> None:
    place.run()  # where every kernel is proved first, in MLX
    planned = place.plan()
    ran, launched = place.run()
    # torch says where no gradient flows into lse, MLX gives zeros.
    backward = planned.gradient(has_lse_grad=place.framework is MLX)
    steps = (*planned.forward.launches, *backward.launches)
    assert sorted(map(narrow, launched)) == sorted(step.instance.name for step in steps)
    assert {planned.backend, planned.forward.backend, backward.backend} == {place.backend} and "pure" not in ran
    assert f"backend: {place.backend} " in place.explain() and "gradients" not in place.explain()
    assert place.matrix()["forward"] and place.matrix()["backward"] and "failed" not in place.matrix()["limits"]


def test_a_failing_forward(place: Place) -> None:
    """All of the call runs on the pure backend, and everyone says so."""
    place.host.breaks = "na_fwd"
    assert f"backend: {place.backend} " in place.explain()  # nobody knows yet
    place.run()
    planned, words = place.plan(), r"na_fwd_r1_\w+ does not (compile|run): "
    assert (planned.backend, planned.forward.backend, planned.backward.backend) == ("pure",) * 3
    assert re.search(rf"^backend: pure \(.*{place.backend}: {words}", place.explain(), re.MULTILINE)
    assert re.search(words, planned.why) and "gradients" not in place.explain()
    assert re.match(words, place.matrix()["limits"]["failed"])
    ran, launched = place.run()
    assert ran == {"pure"} and not launched


def test_a_failing_gradient(place: Place) -> None:
    """The forward runs where it ran, the gradient on the pure backend, and everyone says so."""
    place.host.breaks = "na_bwd_dkv"
    place.run()
    planned, words = place.plan(), r"na_bwd_dkv_r1_\w+ does not (compile|run): "
    assert (planned.backend, planned.forward.backend, planned.backward.backend) == (
        place.backend,
        place.backend,
        "pure",
    )
    assert re.match(words, planned.backward.why)
    told = place.explain()
    assert f"backend: {place.backend} " in told and re.search(rf"^gradients: pure \({words}", told, re.MULTILINE)
    assert place.matrix()["forward"] and not place.matrix()["backward"]
    ran, launched = place.run()
    assert ran == {place.backend, "pure"} and templates(launched) == ["na_fwd"]
    # Asked for, it is refused, and the plan says that too.
    assert re.search(rf"^gradients: none \({words}", place.explain(backend=place.backend), re.MULTILINE)
    failure = place.framework.module("_metal.plan.verdicts").KernelFailure
    with pytest.raises(failure, match=words):
        place.run(backend=place.backend)
