"""Call forms inside NATTEN's submodules, as data: what each generation had besides its public functions.

``INNER[generation][submodule]`` are functions: the launchers of single kernels (all of which run the same op here), the
split ops of nested tensors, the older names of the fused op. ``FUNCTIONS[generation]`` are the autograd functions of
:mod:`natten.functional`, whose arguments go to ``apply`` by position.

Source: upstream NATTEN's releases 0.14.4 to 0.21.7, their parameters.
"""

from typing import Any

from ..problem.ops import AV, FULL, QK
from ..problem.problem import RANKS
from .forms import FORMS, SEPARATE_DEPTH, Forms, form, per_rank

FLAT, VOLUME = RANKS[:2], RANKS[2:]

# --- kernels of 0.20 and later ---------------------------------------------------------------------

_WINDOW: dict[str, Any] = {"stride": 1, "dilation": 1, "is_causal": False, "scale": None}
_LSE = {"return_lse": False}


def _tiles(of: str, backward: bool = True) -> dict[str, Any]:
    names = [f"{way}{which}_tile_{of}" for way in ("", "backward_")[: 1 + backward] for which in ("q", "kv")]
    return dict.fromkeys(names)


_SPLITS = {"backward_kv_splits": None, "backward_use_pt_reduction": False}
_PERSISTENT, _SCHEDULE, _COMPILE = {"run_persistent_kernel": True}, {"kernel_schedule": None}, {"torch_compile": False}
_MORE_KEYS: dict[str, Any] = {"additional_keys": None, "additional_values": None}
_PACKED = dict.fromkeys(("cumulative_seqlen_Q", "cumulative_seqlen_KV", "max_seqlen_Q", "max_seqlen_KV"))


def _neighborhood(generic: str, ranked: str, **knobs: Any) -> Forms:
    """The launcher of any rank, and those of one rank."""
    given = _WINDOW | knobs | _LSE
    return {
        generic: form("fused", 0, "query key value kernel_size", **given),
        **per_rank(ranked, "fused", RANKS, "query key value kernel_size", **given),
    }


def _kernels(newest: bool) -> dict[str, Forms]:
    """Each backend's submodule. newest: from 0.21.5 on, with causal and packed attention."""
    # 0.20 and 0.21.0 differ in which of these two backends had a backward, and additional keys.
    blackwell = _tiles("shape") | _PERSISTENT | ({} if newest else _MORE_KEYS)

    def attention(name: str, **knobs: Any) -> Forms:
        causal = {"is_causal": False} if newest else {}
        given = causal | {"scale": None} | knobs | _LSE | (_PACKED if newest else {})
        return {name: form(FULL.name, 1, "query key value", **given)}

    flex = _neighborhood("flex_fna_generic", "na{}d_flex", **_tiles("shape", backward=False), **_COMPILE)
    return {
        "fna": _neighborhood("cutlass_fna_generic", "na{}d_cutlass_fna", **_tiles("shape"), **_SPLITS),
        "hopper_fna": _neighborhood(
            "cutlass_hopper_fna_generic", "na{}d_cutlass_hopper_fna", **_tiles("shape"), **_SCHEDULE
        ),
        "blackwell_fna": _neighborhood("cutlass_blackwell_fna_generic", "na{}d_cutlass_blackwell_fna", **blackwell),
        "reference": _neighborhood("reference_fna_generic", "na{}d_reference", **_MORE_KEYS),
        "fmha": attention("cutlass_fmha", **_tiles("size"), **_SPLITS),
        "hopper_fmha": attention("cutlass_hopper_fmha", **_tiles("size"), **_SCHEDULE),
        "blackwell_fmha": attention("cutlass_blackwell_fmha", **_tiles("size"), **_PERSISTENT),
        "flex": flex | attention("flex_fmha", **_tiles("size", backward=False), **_COMPILE),
    }


def _backends(newest: bool) -> dict[str, Forms]:
    """The backends' submodules; the package has all of them except the reference's."""
    kernels = _kernels(newest)
    everything = {name: its for part, forms in kernels.items() if part != "reference" for name, its in forms.items()}
    return {"backends": everything} | {f"backends.{part}": forms for part, forms in kernels.items()}


# --- up to 0.17 ------------------------------------------------------------------------------------

_NESTED_FIFTEEN: Forms = {
    **per_rank("na{}d_qk_nested", QK.name, FLAT, "query key rpb kernel_size dilation", additional_keys=None),
    **per_rank("na{}d_qk_nested", QK.name, VOLUME, f"query key rpb {SEPARATE_DEPTH}", additional_keys=None),
    **per_rank("na{}d_av_nested", AV.name, FLAT, "attn value kernel_size dilation", additional_values=None),
    **per_rank("na{}d_av_nested", AV.name, VOLUME, f"attn value {SEPARATE_DEPTH}", additional_values=None),
}
_NESTED_SEVENTEEN: Forms = {
    **per_rank(
        "na{}d_qk_nested", QK.name, RANKS, "query key bias kernel_size dilation", additional_keys=None, is_causal=False
    ),
    **per_rank(
        "na{}d_av_nested", AV.name, RANKS, "attn value kernel_size dilation", additional_values=None, is_causal=False
    ),
}
_FLEX_SEVENTEEN = per_rank(
    "flex_na{}d",
    "fused",
    RANKS,
    "query key value kernel_size",
    dilation=1,
    is_causal=False,
    **_MORE_KEYS,
    xformers_kwargs=None,
)
_FUSED_SEVENTEEN = {name: its for name, its in FORMS["v017"].items() if its.kind == "fused"}

INNER: dict[str, dict[str, Forms]] = {
    "v0141": {},
    "v0145": {},
    "v014": {},
    "v015": {"nested": _NESTED_FIFTEEN},
    "v017": {"nested": _NESTED_SEVENTEEN, "experimental": _FUSED_SEVENTEEN, "flex": _FLEX_SEVENTEEN},
    "v020": _backends(newest=False),
    "v021": _backends(newest=True),
}

# --- autograd functions ----------------------------------------------------------------------------

_FIRST_QK, _FIRST_AV = "NATTEN{}DQKRPBFunction", "NATTEN{}DAVFunction"
_QK, _AV = "NeighborhoodAttention{}DQKAutogradFunction", "NeighborhoodAttention{}DAVAutogradFunction"
_FIFTEEN_QK, _FIFTEEN_AV = "query key bias additional_keys", "attn value additional_values"

FUNCTIONS: dict[str, Forms] = {
    "v0141": {
        **per_rank(_FIRST_QK, QK.name, FLAT, "query key rpb dilation"),
        **per_rank(_FIRST_AV, AV.name, FLAT, "attn value dilation"),
    },
    "v0145": {
        **per_rank(_FIRST_QK, QK.name, FLAT, "query key rpb kernel_size dilation"),
        **per_rank(_FIRST_AV, AV.name, FLAT, "attn value dilation"),
    },
    "v014": {
        **per_rank(_FIRST_QK, QK.name, FLAT, "query key rpb kernel_size dilation"),
        **per_rank(_FIRST_AV, AV.name, FLAT, "attn value kernel_size dilation"),
    },
    "v015": {
        **per_rank(_QK, QK.name, FLAT, f"{_FIFTEEN_QK} kernel_size dilation"),
        **per_rank(_QK, QK.name, VOLUME, f"{_FIFTEEN_QK} {SEPARATE_DEPTH}"),
        **per_rank(_AV, AV.name, FLAT, f"{_FIFTEEN_AV} kernel_size dilation"),
        **per_rank(_AV, AV.name, VOLUME, f"{_FIFTEEN_AV} {SEPARATE_DEPTH}"),
    },
    "v017": {
        **per_rank(_QK, QK.name, RANKS, f"{_FIFTEEN_QK} kernel_size dilation is_causal"),
        **per_rank(_AV, AV.name, RANKS, f"{_FIFTEEN_AV} kernel_size dilation is_causal"),
        **per_rank(
            "FusedNeighborhoodAttention{}D",
            "fused",
            RANKS,
            "query key value rpb kernel_size dilation is_causal scale",
            tiling_config=None,
            tiling_config_backward=None,
        ),
    },
    "v020": {},
    "v021": {},
}
