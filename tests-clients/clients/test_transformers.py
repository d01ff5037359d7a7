"""Hugging Face ``transformers``: Dinat's attention layer in the newest release, which is broken there.

The layer passes ``[batch, width, height, heads, dim]`` to functions that take ``[batch, heads, height, width, dim]``,
because it transposes two axes too many. The image's width is taken for heads, and heads for an axis. The group
``clients-older`` has the last release that is correct.
"""

from __future__ import annotations

from typing import Any

import dense
import pytest
import torch
from comparison import BACKENDS, Client, assert_notices, check, noise, replaced
from torch import Tensor, nn
from transformers import DinatConfig, DinatModel
from transformers.models.dinat import modeling_dinat
from transformers.utils import is_natten_available

HEADS, HEAD_DIM, KERNEL = 4, 6, 3
DENSE = {"natten2dqkrpb": dense.logits, "natten2dav": dense.weighted}


def test_natten_is_available() -> None:
    assert is_natten_available()


class Seen(Exception):
    """Carries the shape that the client passes."""


def test_the_client_mixes_up_its_axes() -> None:
    """On an image of 5 by 7 patches with 2 heads."""

    def look(query: Tensor, *rest: Any) -> None:
        raise Seen(tuple(query.shape))

    model = DinatModel(DinatConfig(embed_dim=16, depths=[1], num_heads=[2], dilations=[[1]], kernel_size=KERNEL))
    image = torch.zeros(1, 3, 20, 28)
    with replaced(modeling_dinat, {"natten2dqkrpb": look}), pytest.raises(Seen) as seen:
        model(image)
    assert seen.value.args[0] == (1, 7, 5, 2, 8), "heads first would be (1, 2, 5, 7, 8)"
    with pytest.raises(ValueError, match="na2d_qk: kernel_size"):
        model(image)


def layer() -> nn.Module:
    return modeling_dinat.NeighborhoodAttention(DinatConfig(), HEADS * HEAD_DIM, HEADS, KERNEL, 1)


def forward(model: nn.Module, hidden: Tensor) -> dict[str, Tensor]:
    out, attn = model(hidden, output_attentions=True)
    return {"out": out, "attention": attn}


# The layer runs only where the width equals the number of heads.
LAYER = Client(
    "dinat, layer",
    layer,
    forward,
    ((2, 5, HEADS, HEADS * HEAD_DIM),),
    modeling_dinat,
    DENSE,
    ("rpb", "query.weight", "key.weight", "value.weight"),
)


def test_every_column_is_seen() -> None:
    """Where the layer runs, a query's window is not 3 by 3, but 3 by the whole width: the model is not Dinat."""
    hidden = noise("hidden", LAYER.shapes[0]).requires_grad_()
    with replaced(modeling_dinat, DENSE):
        layer()(hidden)[0][0, 2, 0].sum().backward()
    reached = hidden.grad[0].abs().sum(-1) > 0
    assert reached.tolist() == [[1 <= y <= 3] * HEADS for y in range(5)], "columns 0 to 2 alone would be right"


@pytest.mark.parametrize("backend", BACKENDS)
def test_layer_alone(backend: str, measured: dict[str, float]) -> None:
    """Whatever the layer means to compute, its result is the same over the reference's functions."""
    measured |= check(LAYER, backend)


def test_a_wrong_token_shows() -> None:
    assert_notices(LAYER)
