"""``cosmos-predict2``'s attention layer with its sparse windows over video."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import dense
import pytest
import torch
from comparison import BACKENDS, Client, assert_notices, check
from stand_ins import COSMOS, stand_in
from torch import Tensor, nn

with stand_in(COSMOS):
    from cosmos_predict2.models import text2image_dit
    from cosmos_predict2.module import neighborhood_attn

    # The norm of a CUDA library; torch has the same one.
    text2image_dit.te.pytorch.RMSNorm = nn.RMSNorm

VIDEO = neighborhood_attn.VideoSize(4, 6, 8)
TOKENS = VIDEO.T * VIDEO.H * VIDEO.W
CUDA = SimpleNamespace(
    cuda=SimpleNamespace(is_available=lambda: True), version=SimpleNamespace(cuda="12.8"), Tensor=torch.Tensor
)


class OnCuda:
    """A CPU tensor that claims to be on CUDA, because the client refuses anything else."""

    device = torch.device("cuda")

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.requires_grad, self.view = tensor.shape, tensor.requires_grad, tensor.view


@pytest.fixture(autouse=True, params=[90, 100])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The two kinds of GPU that the client has settings for."""
    monkeypatch.setattr(neighborhood_attn, "torch", CUDA)
    monkeypatch.setattr(neighborhood_attn, "get_device_cc", lambda device: request.param)
    return request.param


def layer(**window: Any) -> nn.Module:
    model = text2image_dit.Attention(32, n_heads=2, head_dim=16, backend="natten", natten_params=window)
    model.attn_op.natten_op.register_forward_pre_hook(lambda module, given: tuple(map(OnCuda, given)))
    return model


def attend(
    *,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Any,
    stride: Any,
    dilation: Any,
    is_causal: Any,
    backend: str,
    **tiles: Any,
) -> Tensor:
    assert backend in ("hopper-fna", "blackwell-fna")
    assert {"q_tile_shape", "backward_kv_tile_shape"} <= tiles.keys()
    return dense.attend(query, key, value, kernel_size, dilation, stride=stride, is_causal=is_causal)


def client(name: str, **window: Any) -> Client:
    return Client(
        name,
        lambda: layer(**window),
        lambda model, x: {"x": model(x, video_size=VIDEO)},
        ((2, TOKENS, 32),),
        neighborhood_attn,
        {"neighborhood_attention_generic": attend},
        ("q_proj.weight", "k_proj.weight", "v_proj.weight", "q_norm.weight"),
    )


CLIENTS = (
    client("cosmos-predict2", window_size=(-1, 4, 6), stride=(1, 2, 3)),
    client("cosmos-predict2, dilated", window_size=(2, 3, 4), dilation=(2, 1, 2)),
    client("cosmos-predict2, causal", window_size=(3, 3, 8), stride=(1, 3, 4), is_causal=(True, False, False)),
    client("cosmos-predict2, scaled", window_size=(4, 8, 8), stride=(1, 4, 4), base_size=(-1, 12, 16)),
)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_layer(client: Client, backend: str, device: int, measured: dict[str, float]) -> None:
    measured |= check(client, backend)


def test_a_wrong_token_shows() -> None:
    for each in CLIENTS:
        assert_notices(each)


def test_unmodified_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On other devices the client raises its own error, before it calls NATTEN."""
    monkeypatch.undo()
    assert neighborhood_attn.HAS_NATTEN
    model = text2image_dit.Attention(
        32, n_heads=2, head_dim=16, backend="natten", natten_params={"window_size": (2, 3, 3)}
    )
    with pytest.raises(NotImplementedError, match="requires CUDA"):
        model(torch.randn(2, TOKENS, 32), video_size=VIDEO)
