"""k-diffusion's image transformer v2 (HDiT): the neighborhood block, and a whole small hourglass.

The newest release of ``k-diffusion`` does not contain the model. ``hdit`` is that file as a package.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import dense
import natten
import pytest
import torch
from comparison import BACKENDS, Client, assert_notices, check, replaced, run
from stand_ins import SAMPLING, stand_in
from torch import Tensor, nn

import natten_mps
from natten_mps import compat

with stand_in(SAMPLING):
    from hdit import HDiT
    from hdit.modules import flags, things
    from hdit.modules.attention import neighborhood_attention
    from hdit.modules.attention.axial_rope import make_axial_pos

HEAD_DIM, WIDTH, MAPPING = 16, 32, 12


def near(context: Any) -> nn.Module:
    return things.SelectiveNeighborhoodTransformerLayer(
        context.width, context.width, HEAD_DIM, context.mapping_width, 5, 0.0
    )


def far(context: Any) -> nn.Module:
    return things.SelectiveGlobalTransformerLayer(context.width, context.width, HEAD_DIM, context.mapping_width, 0.0)


def hourglass() -> nn.Module:
    return HDiT(
        in_channels=3,
        out_channels=3,
        patch_size=[2, 2],
        widths=[WIDTH, 48],
        middle_width=64,
        depths=[1, 1],
        middle_depth=1,
        block_builders={0: near, 1: near, 2: far, 3: near, 4: near},
        mapping_width=MAPPING,
        mapping_depth=1,
    )


def hourglass_forward(model: nn.Module, image: Tensor, time: Tensor) -> dict[str, Tensor]:
    return {"image": model(image, time)}


def block() -> nn.Module:
    return neighborhood_attention.NeighborhoodSelfAttentionBlock(WIDTH, HEAD_DIM, MAPPING, 7)


def block_forward(model: nn.Module, x: Tensor, condition: Tensor) -> dict[str, Tensor]:
    height, width = x.shape[1:3]
    return {"x": model(x, make_axial_pos(height, width).view(height, width, 2), condition)}


def convolution() -> nn.Module:
    return neighborhood_attention.NeighborhoodConvAttention(WIDTH, kernel_size=5, dilation=2, num_groups=4)


def convolution_forward(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return {"x": model(x)}


# The client looks up its functions in the module natten at every call.
DENSE = {"na2d": dense.attend, "na2d_qk": dense.unbiased_logits, "na2d_av": dense.weighted}
LEARN = ("qkv_proj.weight", "self_attn.scale")
HOURGLASS = Client("hdit", hourglass, hourglass_forward, ((2, 3, 24, 40), (2,)), natten.functional, DENSE, LEARN)
BLOCK = Client(
    "hdit, block",
    block,
    block_forward,
    ((2, 9, 12, WIDTH), (2, MAPPING)),
    natten.functional,
    DENSE,
    ("qkv_proj.weight", "scale"),
)
# The same block where its check for fused kernels fails: na2d_qk, softmax, na2d_av, heads-first.
SPLIT_BLOCK = replace(BLOCK, name="hdit, block, split")
# The package's own layer in the call form of 0.15.
CONVOLUTION = Client(
    "hdit, convolutional",
    convolution,
    convolution_forward,
    ((2, WIDTH, 8, 12),),
    neighborhood_attention,
    {
        "na2d_qk_with_bias": dense.logits,
        "natten": SimpleNamespace(functional=SimpleNamespace(na2d_av=dense.weighted)),
    },
    ("rpb", "proj_q.weight", "proj_k.weight"),
)
CLIENTS = (HOURGLASS, BLOCK, CONVOLUTION)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_model(client: Client, backend: str, measured: dict[str, float]) -> None:
    measured |= check(client, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_the_fused_op(backend: str, measured: dict[str, float]) -> None:
    with replaced(natten, {"has_fused_na": lambda: False}):
        measured |= check(SPLIT_BLOCK, backend)


@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_a_wrong_token_shows(client: Client) -> None:
    assert_notices(client)


@pytest.mark.parametrize("fused", [True, False])
def test_the_call_forms_of_its_time(fused: bool) -> None:
    v017 = compat.for_version("0.17.1")
    with replaced(natten, {"has_fused_na": v017.has_fused_na if fused else lambda: False}):
        check(BLOCK if fused else SPLIT_BLOCK, BACKENDS[0], {name: getattr(v017, name) for name in DENSE})


@pytest.mark.parametrize("backend", BACKENDS)
def test_checkpointed(backend: str) -> None:
    """The client's activation checkpointing does not change any result."""
    with natten_mps.use_backend(backend):
        plain, _ = run(HOURGLASS, torch.float32)
        with flags.checkpointing():
            again, ran = run(HOURGLASS, torch.float32)
    assert ran == {backend}
    for kind, of in plain.items():
        for name, tensor in of.items():
            torch.testing.assert_close(again[kind][name], tensor, rtol=0, atol=0)


def test_k_diffusion_has_no_image_transformer_v2() -> None:
    files = [str(file) for file in importlib.metadata.files("k-diffusion") or ()]
    assert "k_diffusion/models/image_transformer_v1.py" in files
    assert "k_diffusion/models/image_transformer_v2.py" not in files
