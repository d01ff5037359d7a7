"""A client's own code twice, on the same random weights: with this project's functions, and with dense ones.

The truth is the client in float64 over :mod:`dense`. In float64 a client over this project's functions must agree up to
rounding. In float32 its error may be at most 2 (outputs) or 3 (gradients) times the error of the client over the dense
functions, plus 4 ulp. Because the largest error of one small model varies by chance, the latter is the largest over
:data:`DRAWS` draws of the weights.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from frameworks import MPS
from torch import Tensor, nn

import natten_mps

BACKENDS = tuple(
    backend
    for backend, of in natten_mps.get_support_matrix().items()
    if backend not in ("dense", "metal") and of["backward"]
)
FACTORS = {"output": 2, "gradient": 3}
FLOOR_ULP = 4
DRAWS = 4
# A gradient that is zero in exact arithmetic (that of a key's bias) has no magnitude to measure an error against.
LEAST_SHARE = 1e-3

Replacements = dict[str, Any]
Results = dict[str, dict[str, Tensor]]


@dataclass(frozen=True, eq=False)  # hashed by identity
class Client:
    """One client at one size.

    build: its model, random weights. forward: named outputs of the model on ``given``. shapes: of each input.
    home: the object whose attributes the client calls. dense: their replacements for the reference.
    must_learn: parts of the names of parameters that get a gradient only through the attention.
    exact: the relative error allowed in float64.
    """

    name: str
    build: Callable[[], nn.Module]
    forward: Callable[..., dict[str, Tensor]]
    shapes: tuple[tuple[int, ...], ...]
    home: Any
    dense: Replacements
    must_learn: tuple[str, ...]
    exact: float = 1e-11

    def __str__(self) -> str:
        return self.name


@contextlib.contextmanager
def replaced(home: Any, names: Replacements) -> Iterator[None]:
    """Replaces attributes of ``home`` inside the context."""
    before = {name: getattr(home, name) for name in names}
    try:
        for name, value in names.items():
            setattr(home, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(home, name, value)


def noise(name: str, shape: tuple[int, ...]) -> Tensor:
    """Normal numbers that depend on the name alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def run(client: Client, dtype: torch.dtype, draw: int = 0) -> tuple[Results, set[str]]:
    """Outputs, gradients of every input and parameter (float64), and the backends that ran."""
    torch.manual_seed(draw)
    model = client.build().eval()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            # Added to the client's own values: many start at zero, and would hide everything before them.
            parameter += 0.2 * noise(f"{name} {draw}", parameter.shape)
    model.to(dtype)
    inputs = {f"input {i}": shape for i, shape in enumerate(client.shapes)}
    given = {name: noise(f"{name} {draw}", shape).to(dtype).requires_grad_() for name, shape in inputs.items()}
    leaves = given | dict(model.named_parameters())
    with MPS.watch() as ran:
        outputs = client.forward(model, *given.values())
        total = sum((out * noise(name, out.shape).to(out.dtype)).sum() for name, out in outputs.items())
        total.backward()
    found = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    results = {"output": outputs, "gradient": found}
    return {kind: {n: t.detach().double() for n, t in of.items()} for kind, of in results.items()}, ran


def errors(found: Results, truth: Results) -> dict[str, float]:
    """The largest relative error over all outputs, and over all gradients."""
    made = {}
    for kind, of in truth.items():
        assert of.keys() == found[kind].keys()
        top = max(float(tensor.abs().max()) for tensor in of.values())
        made[kind] = max(
            float((found[kind][name] - tensor).abs().max()) / max(float(tensor.abs().max()), LEAST_SHARE * top)
            for name, tensor in of.items()
        )
    return made


@cache
def truth_of(client: Client, draw: int = 0) -> Results:
    """The client over the dense functions in float64; every parameter that should learn gets a gradient."""
    with replaced(client.home, client.dense):
        truth, ran = run(client, torch.float64, draw)
    assert not ran, f"the reference called {ran}"
    for part in client.must_learn:
        names = [name for name in truth["gradient"] if part in name]
        assert names, f"no parameter is called {part}"
        for name in names:
            assert truth["gradient"][name].abs().max() > 1e-6, f"{name} does not learn"
    return truth


@cache
def baseline(client: Client) -> dict[str, float]:
    """The errors of the client over the dense functions, in float32."""
    with replaced(client.home, client.dense):
        draws = [errors(run(client, torch.float32, draw)[0], truth_of(client, draw)) for draw in range(DRAWS)]
    return {kind: max(of[kind] for of in draws) for kind in FACTORS}


def assert_notices(client: Client) -> None:
    """Assert that the comparison can fail: with every function's result shifted by one token, nothing agrees."""

    def shifted(function: Any) -> Any:
        if isinstance(function, type):  # a module
            return type("Shifted", (function,), {"forward": shifted(function.forward)})
        return lambda *args, **kwargs: function(*args, **kwargs).roll(1, 2)

    wrong = {name: shifted(function) for name, function in client.dense.items() if callable(function)}
    with replaced(client.home, client.dense | wrong):
        found, _ = run(client, torch.float64)
    for kind, error in errors(found, truth_of(client)).items():
        assert error > 1e-2, (kind, error)


def check(client: Client, backend: str, functions: Replacements | None = None) -> dict[str, float]:
    """Assert that ``client`` agrees with its reference, over what it imported or over ``functions``; the errors."""
    measured = {}
    for dtype in (torch.float64, torch.float32):
        with replaced(client.home, functions or {}), natten_mps.use_backend(backend):
            found, ran = run(client, dtype)
        assert ran == {backend}
        for kind, error in errors(found, truth_of(client)).items():
            measured[f"{str(dtype)[6:]} {kind}"] = error
            bound = client.exact
            if dtype is torch.float32:
                measured[f"dense {kind}"] = baseline(client)[kind]
                bound = FACTORS[kind] * baseline(client)[kind] + FLOOR_ULP * torch.finfo(dtype).eps
            assert error <= bound, f"{dtype} {kind}: error {error}, bound {bound}"
    return measured
