"""The LTX-2 video decoder of ``diffusers``, with its neighborhood processor for NATTEN."""

from __future__ import annotations

import sys
from types import ModuleType

import dense
import natten
import pytest
import torch
from comparison import BACKENDS, Client, assert_notices, check, noise
from diffusers.models.autoencoders import ltx2_diffusion_decoder as ltx2
from torch import Tensor, nn

import natten_mps

# The processor takes NATTEN from a hub of kernels through a package of this name.
HUB = ModuleType("kernels")
ROPE = 1e-6  # The client rotates in float32 whatever the model's dtype.


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_kernel(repository: str, version: int) -> ModuleType:
        assert (repository, version) == ("shi-labs/natten", 1)
        return natten

    monkeypatch.setattr(HUB, "get_kernel", get_kernel, raising=False)
    monkeypatch.setitem(sys.modules, "kernels", HUB)
    monkeypatch.setattr(ltx2, "is_kernels_available", lambda: True)


def decoder() -> nn.Module:
    """The client's model at a small size, unmodified: over torch's flex_attention."""
    return ltx2.LTX2VideoDiffusionDecoderModel(
        latent_channels=8,
        patch_size=2,
        decoder_head_dim=8,
        decoder_stage_channels=(32, 16, 16),
        decoder_stage_depths=(1, 1, 2),
        decoder_stage_kernels=((3, 3, 5), (3, 5, 3)),
        decoder_upsample_strides=((1, 2, 2), (2, 1, 1)),
        decoder_upsample_channel_reductions=(2, 1),
        decoder_stage5_kernel=(3, 5, 5),
        decoder_t_emb_dim=16,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
    )


def build(backend: str | None = None) -> nn.Module:
    model = decoder()
    model.set_attn_processor(ltx2.LTX2VideoVaeNeighborhoodNattenProcessor(backend))
    return model


def forward(model: nn.Module, latent: Tensor, noised: Tensor) -> dict[str, Tensor]:
    context = model.decoder.forward_stage_4(model.decoder.forward_stages_1_to_3(latent))
    return {"context": context, "video": model.decoder.denoise(context, noised, 1)}


SHAPES = ((1, 8, 2, 5, 6), (1, 3, 3, 20, 24))
LTX2 = Client(
    "ltx2", build, forward, SHAPES, natten, {"na3d": dense.attend}, ("attn.to_q", "attn.norm_k", "attn.to_v"), ROPE
)


@pytest.mark.parametrize("backend", BACKENDS)
def test_model(backend: str, measured: dict[str, float]) -> None:
    measured |= check(LTX2, backend)


def test_a_wrong_token_shows() -> None:
    assert_notices(LTX2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_as_the_clients_own_processor(backend: str) -> None:
    """A second reference: the client's other processor, flex_attention, which has no backward on a CPU."""
    torch.manual_seed(0)
    model = decoder().eval()
    given = [noise(f"input {i}", shape) for i, shape in enumerate(SHAPES)]
    with torch.no_grad(), natten_mps.use_backend(backend):
        flex = forward(model, *given)
        model.set_attn_processor(ltx2.LTX2VideoVaeNeighborhoodNattenProcessor())
        ours = forward(model, *given)
        # Upstream's kernels for another device: logged and ignored.
        model.set_attn_processor(ltx2.LTX2VideoVaeNeighborhoodNattenProcessor(backend="cutlass-fna"))
        named = forward(model, *given)
    for name, video in flex.items():
        for found in (ours[name], named[name]):
            torch.testing.assert_close(found, video, rtol=0, atol=1e-5 * float(video.abs().max()))


def test_without_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens on a Mac today: the package ``kernels`` is missing, and the error names it."""
    monkeypatch.setattr(ltx2, "is_kernels_available", lambda: False)
    with pytest.raises(ImportError, match="fetches NATTEN from the Hub with the `kernels` package"):
        ltx2.LTX2VideoVaeNeighborhoodNattenProcessor()
