"""``all-in-one-infer``: the all-in-one music model over NATTEN 0.17's names, beside its own attention in torch."""

from __future__ import annotations

import dense
import pytest
import torch
from comparison import BACKENDS, Client, assert_notices, check, errors, replaced, run, truth_of
from stand_ins import MUSIC, stand_in
from torch import Tensor, nn

with stand_in(MUSIC | {"demucs_infer", "madmom_infer", "soundfile", "torchaudio"}):
    from allin1_infer.config import Config, HarmonixConfig
    from allin1_infer.models import AllInOne, dinat, neighborhood_attention

NAMES = ("na1d_qk", "na1d_av", "na2d_qk", "na2d_av")


def qk(query: Tensor, key: Tensor, kernel_size: int, dilation: int, rpb: Tensor | None = None) -> Tensor:
    return dense.logits(query, key, rpb, kernel_size, dilation)


def forward(model: nn.Module, spectrogram: Tensor) -> dict[str, Tensor]:
    return {name: value for name, value in vars(model(spectrogram)).items() if isinstance(value, Tensor)}


def client(name: str, frames: int) -> Client:
    return Client(
        name,
        lambda: AllInOne(Config(data=HarmonixConfig(), depth=3)),
        forward,
        ((1, 4, frames, 81),),
        dinat,
        {name: qk if "qk" in name else dense.weighted for name in NAMES},
        ("rpb", "query.weight", "key.weight", "value.weight"),
    )


CLIENTS = (client("all-in-one-infer", 48), client("all-in-one-infer, shorter than its window", 21))


def test_it_found_natten() -> None:
    assert dinat.NA_BACKEND == "natten"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_model(client: Client, backend: str, measured: dict[str, float]) -> None:
    measured |= check(client, backend)


def test_its_own_attention_in_torch_agrees() -> None:
    """The client's fallback without NATTEN agrees with :mod:`dense`: both give the arguments the same meaning."""
    for client in CLIENTS:
        with replaced(client.home, {name: getattr(neighborhood_attention, name) for name in NAMES}):
            found, ran = run(client, torch.float64)
        assert not ran
        assert all(error <= client.exact for error in errors(found, truth_of(client)).values())


def test_a_wrong_token_shows() -> None:
    assert_notices(CLIENTS[1])
