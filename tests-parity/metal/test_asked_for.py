"""Metal requested by a context or as the process's default: failures are errors there, and launches are cached."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

import natten_mps
from natten_mps._metal.plan import backends
from natten_mps._metal.plan.verdicts import KernelFailure

from .host import EmulatedHost
from .test_failure import results, tensors, with_broken

GRADIENT = ["na_delta", "na_bwd_dq", "na_bwd_dkv"]


@contextmanager
def process_default(backend: str) -> Iterator[None]:
    """``backend`` as the process's default, and 'auto' afterwards."""
    natten_mps.set_backend(backend)
    try:
        yield
    finally:
        natten_mps.set_backend("auto")


Ask = Callable[[str], object]
ASKS = [pytest.param(natten_mps.use_backend, id="use_backend"), pytest.param(process_default, id="set_backend")]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has not logged anything yet."""
    backends.logged.clear()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def templates(metal: EmulatedHost) -> list[str]:
    return [name.rpartition("_r")[0] for name in metal.names]


@pytest.mark.parametrize("ask", ASKS)
def test_a_failing_forward(
    ask: Ask, metal: EmulatedHost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In the context, an error each time unless the call names a backend; outside, the pure backend and one warning."""
    with_broken(monkeypatch, "na_fwd")
    given = tensors()
    wanted = natten_mps.na1d(*given, 5, backend="pure")
    with ask("metal"):
        for _ in range(2):
            with pytest.raises(KernelFailure, match=r"^na_fwd_r1_.* does not compile: "):
                natten_mps.na1d(*given, 5)
        assert torch.equal(natten_mps.na1d(*given, 5, backend="pure"), wanted)
        assert not warnings_of(caplog)
        assert torch.equal(natten_mps.na1d(*given, 5, backend="auto"), wanted)
    assert torch.equal(natten_mps.na1d(*given, 5), wanted)
    assert len(warnings_of(caplog)) == 1 and len(metal.compilations) == 1 and not metal.launches


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("broken", GRADIENT)
def test_a_failing_gradient(
    ask: Ask, broken: str, metal: EmulatedHost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The request of the forward holds for its gradient, wherever that is computed."""
    with_broken(monkeypatch, broken)
    given = tensors()
    with ask("metal"):
        out = natten_mps.na1d(*given, 5)
        inside = natten_mps.na1d(*given, 5)
        with pytest.raises(KernelFailure, match=f"^{broken}_r1_.* does not compile: "):
            torch.autograd.grad(inside.sum(), given)
    with pytest.raises(KernelFailure, match=f"^{broken}_r1_.* does not compile: "):
        torch.autograd.grad(out.sum(), given)
    assert templates(metal) == ["na_fwd"] * 2 and not warnings_of(caplog)
    # A forward without a request gets its gradient from the pure backend, whatever is requested by then.
    out = natten_mps.na1d(*given, 5)
    with ask("metal"):
        found = torch.autograd.grad(out.sum(), given)
    (warning,) = warnings_of(caplog)
    assert warning.startswith("na1d: the Metal kernels failed on this machine and the pure backend runs instead. ")
    wanted = torch.autograd.grad(natten_mps.na1d(*given, 5, backend="pure").sum(), given)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("ask", ASKS)
def test_compiled_kernels_are_kept(ask: Ask, metal: EmulatedHost) -> None:
    """A second call of the same problem compiles nothing; one of another dtype compiles its own kernels."""
    given = tensors()
    with ask("metal"):
        first = results(None, given)
        assert len(metal.compilations) == len(set(metal.compilations)) == 1 + len(GRADIENT)
        compiled = list(metal.compilations)
        for a, b in zip(results(None, given), first, strict=True):
            assert torch.equal(a, b)
        assert metal.compilations == compiled
        assert templates(metal) == ["na_fwd", *GRADIENT] * 2
        results(None, [tensor.detach().half().requires_grad_() for tensor in given])
    more = metal.compilations[len(compiled) :]
    assert len(more) == len(compiled) and not set(more) & set(compiled)
    assert all("float16" in name for name in metal.names[-len(more) :])
