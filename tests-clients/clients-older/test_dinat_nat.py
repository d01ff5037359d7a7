"""Hugging Face ``transformers``: Dinat in the last release whose attention layer works, and Nat, deprecated in it."""

from __future__ import annotations

import dense
import pytest
from comparison import BACKENDS, Client, assert_notices, check
from torch import Tensor, nn
from transformers import DinatConfig, DinatForImageClassification
from transformers.models.deprecated.nat import NatConfig, NatForImageClassification, modeling_nat
from transformers.models.dinat import modeling_dinat
from transformers.utils import is_natten_available

from natten_mps import compat

SMALL = {
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "mlp_ratio": 2.0,
    "layer_scale_init_value": 0.5,
    "num_labels": 5,
}


def dinat() -> nn.Module:
    # The second stage's map is shorter than its window of 3 * 3, so the client pads it.
    return DinatForImageClassification(DinatConfig(kernel_size=3, dilations=[[1, 3], [1, 3]], **SMALL))


def nat() -> nn.Module:
    return NatForImageClassification(NatConfig(kernel_size=5, **SMALL))


def forward(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    found = model(image, output_hidden_states=True, output_attentions=True)
    stages = {f"stage {i}": hidden for i, hidden in enumerate(found.hidden_states)}
    return {"logits": found.logits} | stages | {f"attention {i}": attn for i, attn in enumerate(found.attentions)}


def client(name: str, build: object, home: object, shape: tuple[int, ...]) -> Client:
    return Client(
        name,
        build,
        forward,
        (shape,),
        home,
        {"natten2dqkrpb": dense.logits, "natten2dav": dense.weighted},
        ("rpb", "query.weight", "key.weight", "value.weight"),
    )


CLIENTS = (
    client("dinat", dinat, modeling_dinat, (2, 3, 44, 60)),
    client("nat", nat, modeling_nat, (2, 3, 44, 60)),
)


def test_natten_is_available() -> None:
    assert is_natten_available()


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
    check(CLIENTS[0], BACKENDS[0], {name: getattr(generation, name) for name in CLIENTS[0].dense})
