"""The problems that are timed: attention layers of published models, two series in which one number grows, and a small
problem of each kind of window.

Each has a quick form, which has the kind of window of the whole one and few enough tokens for any CPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..problem import faces
from ..problem.problem import Problem, TensorSpec

FACE = "neighborhood_attention"


@dataclass(frozen=True, slots=True)
class Named:
    """One problem: fused attention of a batch of equal grids.

    layer: what it is in its model. source: where its numbers are from. quick: what the quick form has instead.
    kv_heads: None for as many as heads.
    """

    name: str
    layer: str
    source: str
    shape: tuple[int, ...]
    kernel_size: tuple[int, ...]
    dim: int
    heads: int
    kv_heads: int | None = None
    batch: int = 1
    stride: tuple[int, ...] | int = 1
    dilation: tuple[int, ...] | int = 1
    is_causal: bool = False
    quick: dict[str, Any] = field(default_factory=dict)

    def form(self, quick: bool) -> "Named":
        """The quick form, or the whole one."""
        return replace(self, **self.quick) if quick else self

    @property
    def window(self) -> dict[str, Any]:
        """The window arguments of the public functions."""
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "dilation": self.dilation,
            "is_causal": self.is_causal,
        }

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of query, key and value, heads-last."""
        kv = (self.batch, *self.shape, self.kv_heads or self.heads, self.dim)
        return (self.batch, *self.shape, self.heads, self.dim), kv, kv

    def problem(self, dtype: str) -> Problem:
        """What the planner is asked; raises the errors of the public functions if it is not legal."""
        query, key, value = (TensorSpec(shape, dtype) for shape in self.shapes)
        return faces.fused(FACE, query, key, value, scale=None, **self.window)


NAT, DINAT = "NAT, arXiv 2204.07143", "DiNAT, arXiv 2209.15001"
GNA = "GNA, arXiv 2504.16922, its table of benchmarked layers"
LTX = "diffusers 0.42.1, defaults of LTX2VideoDiffusionDecoderModel"

MODELS = (
    Named("nat", "NAT-Tiny, stage 1", NAT, (56, 56), (7, 7), 32, 2, batch=16, quick={"batch": 1}),
    Named("dinat", "DiNAT-Tiny, stage 1", DINAT, (56, 56), (7, 7), 32, 2, batch=16, dilation=8, quick={"batch": 1}),
    Named(
        "hdit",
        "HDiT, a level of 128x128 tokens",
        "arXiv 2401.11605; window and head dim of k-diffusion's image_transformer_v2",
        (128, 128),
        (7, 7),
        64,
        8,
        quick={"shape": (64, 64), "heads": 2},
    ),
    Named(
        "flux",
        "FLUX.1 at 4096x4096 pixels",
        GNA,
        (256, 256),
        (80, 80),
        128,
        24,
        quick={"shape": (64, 64), "kernel_size": (20, 20), "heads": 1},
    ),
    Named(
        "flux-strided",
        "the same with stride 16: nothing to mask",
        GNA,
        (256, 256),
        (80, 80),
        128,
        24,
        stride=16,
        quick={"shape": (64, 64), "kernel_size": (20, 20), "heads": 1, "stride": 4},
    ),
    Named(
        "hunyuan",
        "HunyuanVideo at 1280x768, 117 frames",
        GNA,
        (30, 48, 80),
        (18, 24, 24),
        128,
        24,
        quick={"shape": (8, 24, 24), "kernel_size": (4, 12, 12), "heads": 1},
    ),
    Named(
        "hunyuan-strided",
        "the same with stride 16, 8, 8: nothing to mask",
        GNA,
        (30, 48, 80),
        (18, 24, 24),
        128,
        24,
        stride=(16, 8, 8),
        quick={"shape": (8, 24, 24), "kernel_size": (4, 12, 12), "heads": 1, "stride": (4, 4, 4)},
    ),
    Named(
        "ltx",
        "LTX-2.5's video decoder, its last stage",
        f"{LTX}; the grid that its comments name",
        (69, 64, 96),
        (11, 11, 11),
        64,
        4,
        quick={"shape": (12, 16, 16), "kernel_size": (5, 5, 5), "heads": 2},
    ),
    Named(
        "all-in-one",
        "All-In-One, block 6 of 11: five minutes of music, four stems",
        "arXiv 2307.16425; allin1 1.1.0, its defaults",
        (30000,),
        (5,),
        12,
        2,
        batch=4,
        dilation=32,
        quick={"shape": (6000,), "batch": 1},
    ),
    Named(
        "aurora",
        "Aurora's windows, as neighborhoods",
        "arXiv 2405.13063: 3-D windows of 2 x 12 x 6 patches",
        (8, 90, 180),
        (2, 12, 6),
        64,
        8,
        quick={"shape": (4, 24, 36), "heads": 2},
    ),
    Named(
        "mistral",
        "Mistral 7B on 32768 tokens",
        "arXiv 2310.06825: a causal window of 4096, 32 heads on 8",
        (32768,),
        (4096,),
        128,
        32,
        kv_heads=8,
        is_causal=True,
        quick={"shape": (4096,), "kernel_size": (512,), "heads": 4, "kv_heads": 1},
    ),
)
SERIES, KIND = "a series: one number grows", "one of each kind"
SMALL = {"shape": (64, 64), "heads": 2}
WINDOWS = tuple(
    Named(f"windows-{size}", f"window {size} x {size}", SERIES, (96, 96), (size, size), 64, 8, quick=SMALL)
    for size in (3, 5, 7, 9, 13, 17, 25, 33, 49, 63)
)
TOKENS = tuple(
    Named(f"tokens-{side}", f"{side} x {side} tokens", SERIES, (side, side), (9, 9), 64, 8, quick={"heads": 2})
    for side in (16, 24, 32, 48, 64, 96, 128, 192, 256)
)
# Of each kind of window one that takes milliseconds on a CPU: every rank, small and large, strided, dilated, causal.
KINDS = (
    Named("kinds-small", "a small window", KIND, (56, 56), (7, 7), 32, 2),
    Named("kinds-dilated", "a small window, dilated", KIND, (56, 56), (7, 7), 32, 2, dilation=4),
    Named("kinds-wide", "a wide window", KIND, (64, 64), (13, 13), 64, 2),
    Named("kinds-strided", "a wide window, strided", KIND, (64, 64), (16, 16), 64, 2, stride=4),
    Named("kinds-long", "a long window", KIND, (4096,), (255,), 64, 2),
    Named("kinds-short", "a short window", KIND, (8192,), (5,), 32, 4),
    Named("kinds-causal", "a causal window", KIND, (4096,), (256,), 64, 2, is_causal=True),
    Named("kinds-cube", "a 3-D window", KIND, (12, 16, 16), (5, 5, 5), 64, 2),
    Named("kinds-strided-cube", "a large 3-D window, strided", KIND, (8, 24, 24), (4, 12, 12), 128, 1, stride=4),
    Named("kinds-small-cube", "a small 3-D window", KIND, (16, 16, 16), (3, 3, 3), 32, 4),
)
GROUPS: dict[str, tuple[Named, ...]] = {"models": MODELS, "windows": WINDOWS, "tokens": TOKENS, "kinds": KINDS}
BY_NAME = {named.name: named for group in GROUPS.values() for named in group}


def chosen(names: Sequence[str]) -> list[Named]:
    """The problems of some names and groups, each once; of the models if no name is given. KeyError: no such name."""
    found: dict[str, Named] = {}
    for name in names or ["models"]:
        for named in GROUPS.get(name) or (BY_NAME[name],):
            found[named.name] = named
    return list(found.values())
