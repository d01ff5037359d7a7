"""``nvidia-physicsnemo``'s transformers with NATTEN's layers, and the Atlas model of ``earth2studio``."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import dense
import natten.functional
import pytest
import torch
from comparison import BACKENDS, Client, assert_notices, check
from stand_ins import WEATHER, stand_in
from torch import Tensor, nn

with stand_in(WEATHER), warnings.catch_warnings():
    warnings.simplefilter("ignore")  # part of physicsnemo is experimental and warns about it
    from earth2studio.models.nn import atlas
    from physicsnemo.experimental.models.strata.transformer import StrataTransformer3D
    from physicsnemo.models.dit import DiT

ROPE = 1e-6  # The client rotates in float32 whatever the model's dtype.


class Dense(nn.Module):
    """``NeighborhoodAttention2D`` over :mod:`dense`, with the same parameters in the same order."""

    def __init__(self, dim: int, num_heads: int, kernel_size: list[int], qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads, self.kernel_size = num_heads, kernel_size
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=qkv_bias), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        return self.proj(dense.attend(query, key, value, self.kernel_size).flatten(-2))


def transformer(attention: str, **options: Any) -> nn.Module:
    """physicsnemo's diffusion transformer on patches, with a dilated window of 3 by 3."""
    return DiT(
        (10, 14),
        in_channels=3,
        patch_size=(2, 2),
        hidden_size=32,
        depth=2,
        num_heads=4,
        condition_dim=5,
        attention_backend=attention,
        attn_kwargs={"attn_kernel": 3, "na2d_kwargs": {"dilation": (1, 2)}},
        **options,
    )


def denoise(model: nn.Module, x: Tensor, condition: Tensor) -> dict[str, Tensor]:
    return {"x": model(x, torch.tensor([3.0, 40.0], dtype=x.dtype), condition)}


def one(model: nn.Module, *given: Tensor) -> dict[str, Tensor]:
    return {"x": model(*given)}


def levels() -> nn.Module:
    """Its transformer over three axes. The last of three blocks is dilated; the backend is one of another device."""
    return StrataTransformer3D(
        in_channels=2,
        input_shape=(4, 12, 10),
        patch_size=(1, 2, 2),
        embed_dim=32,
        num_heads=4,
        num_layers=3,
        qk_norm=True,
        attn_kernel=(2, 3, 2),
        na_dilation=2,
        do_interleaved_dilation=True,
        gated_attention=True,
        rope_mode="axial",
        na3d_backend="cutlass-fna",
    )


def atlas_model() -> nn.Module:
    return atlas.NattenCombineDiT(
        input_size1=(10, 14),
        input_size2=(15, 21),
        input_channels1=3,
        input_channels2=2,
        hidden_channels1=32,
        hidden_channels2=32,
        n_patch=(5, 7),
        depth=2,
        num_heads=4,
        kernel_size=3,
    )


def step(model: nn.Module, state: Tensor, forced: Tensor) -> dict[str, Tensor]:
    return {"x": model(state, forced, torch.tensor([0.25, 0.5], dtype=state.dtype))}


def around_the_globe() -> nn.Module:
    """Atlas's layer with a window that continues across the last meridian."""
    return atlas.NattenAttention((5, 3), 16, num_heads=2, circular_pad_width=True)


IMAGE = ((2, 3, 10, 14), (2, 5))
FUNCTIONS = (natten.functional, {"na2d": dense.attend, "na3d": dense.attend})
LAYER = (atlas, {"NeighborhoodAttention2D": Dense})
LEARNS = ("qkv.weight", "proj.weight")
CLIENTS = (
    Client("physicsnemo DiT", partial(transformer, "natten2d"), denoise, IMAGE, *FUNCTIONS, LEARNS),
    Client("physicsnemo DiT, rotated", partial(transformer, "natten2d_rope"), denoise, IMAGE, *FUNCTIONS, LEARNS, ROPE),
    Client("physicsnemo Strata", levels, one, ((1, 2, 4, 12, 10),), *FUNCTIONS, (*LEARNS, "gate_proj"), ROPE),
    Client("earth2studio Atlas", atlas_model, step, ((2, 3, 10, 14), (2, 2, 15, 21)), *LAYER, LEARNS),
    Client("earth2studio Atlas's layer", around_the_globe, one, ((2, 7, 8, 16),), *LAYER, LEARNS),
)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_model(client: Client, backend: str, measured: dict[str, float]) -> None:
    measured |= check(client, backend)


@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_a_wrong_token_shows(client: Client) -> None:
    assert_notices(client)
