"""The all-in-one music model (``allin1``): DiNAT layers over time, and over instruments by time."""

from __future__ import annotations

import dense
import pytest
from comparison import BACKENDS, Client, assert_notices, check
from stand_ins import MUSIC, stand_in
from torch import Tensor, nn

from natten_mps import compat

with stand_in(MUSIC):
    from allin1.config import Config, HarmonixConfig
    from allin1.models import AllInOne, dinat

NAMES = ("natten1dqkrpb", "natten1dav", "natten2dqkrpb", "natten2dav")


def build(**options: object) -> nn.Module:
    # Three blocks: dilations 1, 2 and 4 over time, and twice that in the second attention of each.
    return AllInOne(Config(data=HarmonixConfig(), depth=3, **options))


def forward(model: nn.Module, spectrogram: Tensor) -> dict[str, Tensor]:
    return dict(vars(model(spectrogram)))


def client(name: str, frames: int, **options: object) -> Client:
    return Client(
        name,
        lambda: build(**options),
        forward,
        ((1, 4, frames, 81),),
        dinat,
        {name: dense.logits if "qk" in name else dense.weighted for name in NAMES},
        ("rpb", "query.weight", "key.weight", "value.weight"),
    )


CLIENTS = (
    client("allin1", 48),
    client("allin1, shorter than its window", 21),  # 21 frames, padded to 40 by the client
    client("allin1, one attention, over time only", 27, double_attention=False, instrument_attention=False),
)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_model(client: Client, backend: str, measured: dict[str, float]) -> None:
    measured |= check(client, backend)


@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_a_wrong_token_shows(client: Client) -> None:
    assert_notices(client)


@pytest.mark.parametrize("version", ["0.14.6", "0.15.1", "0.17.4"])
def test_older_generations(version: str) -> None:
    generation = compat.for_version(version)
    check(CLIENTS[1], BACKENDS[0], {name: getattr(generation, name) for name in NAMES})
