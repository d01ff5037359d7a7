"""The first call of a process works in every context of its framework: tracers meet nothing that they cannot trace.

Each case has a process of its own (``first_calls``). Without --all: most contexts, with a few calls each.
"""

from __future__ import annotations

import first_calls
import pytest
from first_calls import CALLS, Case
from frameworks import FRAMEWORKS, MLX, MPS, Framework
from processes import LIMIT

CONTEXTS = {
    "mps": (
        "compile",
        "compile, dynamic",
        "compile, training",
        "export",
        "export, strict",
        "make_fx, real",
        "make_fx, fake",
        "make_fx, symbolic",
        "inference_mode",
        "fake tensors",
        "meta tensors",
        "vmap",
        "grad",
        "functional_call",
        "threads",
        "fork",
    ),
    "mlx": (
        "compile",
        "compile of grad",
        "grad of compile",
        "grad",
        "vmap",
        "vmap of grad",
        "checkpoint",
        "threads",
        "stream",
    ),
}
BACKENDS = {"mps": ("native", "pure", "dense"), "mlx": ("nanobind", "pure", "dense")}
# The calls that are tried in a context in each run.
SHORT = {
    "compile": ("knobs", "NeighborhoodAttention2D", "na1d_varlen"),
    "compile, dynamic": ("compat 0.21.0",),
    "export, strict": ("knobs", "NeighborhoodAttention2D"),
    "make_fx, real": (),
    "make_fx, fake": (),
    "fake tensors": ("na2d", "na1d_varlen"),
    "vmap": ("na2d",),
    "functional_call": ("NeighborhoodAttention2D",),
    "threads": ("merge_attentions", "na1d_varlen"),
    "compile of grad": ("NeighborhoodAttention2D",),
}
OTHERWISE = ("na2d",)
# What a context rejects, and the error's text.
REFUSED = {
    (
        "meta tensors",
        "generate_varlen_parameters",
    ): "attention: cumulative_seqlen_Q must be known when the call is made",
}


def tried(framework: Framework, cases: list[Case]) -> None:
    found = first_calls.outcomes(f"first_calls_{framework.name}", cases, timeout=3000)
    for (context, call, _), error in found.items():
        words = REFUSED.get((context, call))
        assert words in error if words else not error, f"{framework}, {context}, {call}\n{error}"


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_first_calls(framework: Framework) -> None:
    """For the backend that 'auto' picks."""
    backend = BACKENDS[framework.name][0]
    tried(framework, [(c, k, backend) for c in CONTEXTS[framework.name] for k in SHORT.get(c, OTHERWISE)])


@pytest.mark.all
@pytest.mark.parametrize(
    ("framework", "context"), [(f, context) for f in FRAMEWORKS for context in CONTEXTS[f.name]], ids=str
)
def test_every_first_call(framework: Framework, context: str) -> None:
    tried(framework, [(context, call, backend) for backend in BACKENDS[framework.name] for call in CALLS])


# Public functions that do not compute tensors.
NO_TENSORS = {"explain", "key_range", "query_range"}


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_every_face_is_tried(framework: Framework) -> None:
    """A new public function must be tried, too."""
    named = {word for call in CALLS for word in call.split()}
    homes = framework.package._NAMES.homes
    assert {name for home in ("functional", "varlen", "modules") for name in homes[home]} - NO_TENSORS <= named


def test_every_context_is_tried() -> None:
    import first_calls_mlx
    import first_calls_mps

    found = {MPS.name: tuple(first_calls_mps.CONTEXTS), MLX.name: tuple(first_calls_mlx.CONTEXTS)}
    assert found == CONTEXTS


def test_a_failure_is_reported() -> None:
    """The checks above can fail."""
    (error,) = first_calls.outcomes("first_calls_mps", [("grad", "na1d", "metal")], timeout=LIMIT).values()
    assert "NotImplementedError: na1d: backend='metal' cannot take" in error, error
