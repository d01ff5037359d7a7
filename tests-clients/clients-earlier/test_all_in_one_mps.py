"""``all-in-one-mps``: the all-in-one music model as written for natten-mps 0.3. It does not import ``natten``."""

from __future__ import annotations

import sys

import dense
import pytest
from comparison import BACKENDS, Client, assert_notices, check
from stand_ins import MUSIC, stand_in
from torch import Tensor, nn

with pytest.MonkeyPatch.context() as patch, stand_in(MUSIC | {"soundfile"}):
    # The client's own switch; on a Mac it prefers natten-mps.
    patch.setenv("NATTEN_MPS", "1")
    from allin1.config import Config, HarmonixConfig
    from allin1.models import AllInOne, dinat

NAMES = ("natten1dqkrpb", "natten1dav", "natten2dqkrpb", "natten2dav")


def forward(model: nn.Module, spectrogram: Tensor) -> dict[str, Tensor]:
    return dict(vars(model(spectrogram)))


def client(name: str, frames: int) -> Client:
    return Client(
        name,
        lambda: AllInOne(Config(data=HarmonixConfig(), depth=3)),
        forward,
        ((1, 4, frames, 81),),
        dinat,
        {name: dense.logits if "qk" in name else dense.weighted for name in NAMES},
        ("rpb", "query.weight", "key.weight", "value.weight"),
    )


CLIENTS = (client("all-in-one-mps", 48), client("all-in-one-mps, shorter than its window", 21))


def test_it_uses_the_module_of_0_3() -> None:
    """And not NATTEN's call forms, which this suite installs for the other clients."""
    assert dinat._prefer_mps and dinat._natf is sys.modules["natten_mps.extras.allin1.functional"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_model(client: Client, backend: str, measured: dict[str, float]) -> None:
    measured |= check(client, backend)


def test_a_wrong_token_shows() -> None:
    assert_notices(CLIENTS[1])
