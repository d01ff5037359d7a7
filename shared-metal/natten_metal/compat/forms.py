"""The call forms of NATTEN's generations, as data: names, argument orders and defaults.

Source: upstream NATTEN's releases 0.14.1 to 0.21.7. A generation is the releases that share their call forms.
"""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from ..problem.ops import AV, FULL, QK
from ..problem.problem import RANKS


@dataclass(frozen=True, slots=True)
class Form:
    """How one public name is called.

    kind: what it computes: the name of an op, or 'fused', 'merge' or 'module'. rank: number of axes, 0 for any.
    names: the parameters in order, all of which may be given by position; defaults: those of the last of them. aliases:
    other names of some of them in some releases.
    """

    kind: str
    rank: int
    names: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)

    def bind(self, face: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Every parameter's value by name; TypeError for a call that does not fit, like Python's own."""
        if len(args) > len(self.names):
            raise TypeError(f"{face}: takes at most {len(self.names)} arguments; got {len(args)}")
        # Cut to one length: torch 2.9 traces zip(strict=False) as if it were strict.
        given = dict(zip(self.names[: len(args)], args, strict=True))
        for word, value in kwargs.items():
            name = self.aliases.get(word, word)
            if name not in self.names:
                raise TypeError(f"{face}: got an unexpected keyword argument '{word}'{_elsewhere(face, word)}")
            if name in given:
                raise TypeError(f"{face}: got multiple values for argument '{name}'")
            given[name] = value
        for name in self.names:
            if name not in given:
                if name not in self.defaults:
                    raise TypeError(f"{face}: missing argument '{name}'")
                given[name] = self.defaults[name]
        return given

    @property
    def signature(self) -> inspect.Signature:
        """The form as a Python signature."""
        kind, none = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
        return inspect.Signature(
            [inspect.Parameter(name, kind, default=self.defaults.get(name, none)) for name in self.names]
        )


Forms = dict[str, Form]


def form(kind: str, rank: int, required: str, **defaults: Any) -> Form:
    """A form: ``required`` names, separated by spaces, then the ones with a default."""
    return Form(kind, rank, (*required.split(), *defaults), MappingProxyType(defaults))


def per_rank(name: str, kind: str, ranks: Iterable[int], required: str, **defaults: Any) -> Forms:
    """One form under a name for every rank: ``natten{}dav``."""
    return {name.format(rank): form(kind, rank, required, **defaults) for rank in ranks}


MODULE = "NeighborhoodAttention{}D"
DROPOUT = {"qkv_bias": True, "qk_scale": None, "attn_drop": 0.0, "proj_drop": 0.0}
SEPARATE_DEPTH = "kernel_size_d kernel_size dilation_d dilation"

# 0.14.1 to 0.14.4: the window's size follows from rpb or from the weights; rpb is not optional.
_FIRST: Forms = {
    **per_rank("natten{}dqkrpb", QK.name, (1, 2), "query key rpb dilation"),
    **per_rank("natten{}dav", AV.name, (1, 2), "attn value dilation"),
    **per_rank(MODULE, "module", (1, 2), "dim kernel_size num_heads", **DROPOUT, dilation=None),
}
# 0.14.6: kernel_size everywhere, and heads before it in the modules.
_FOURTEEN: Forms = {
    **per_rank("natten{}dqkrpb", QK.name, (1, 2), "query key rpb kernel_size dilation"),
    **per_rank("natten{}dqk", QK.name, (1, 2), "query key kernel_size dilation"),
    **per_rank("natten{}dav", AV.name, (1, 2), "attn value kernel_size dilation"),
    **per_rank(MODULE, "module", (1, 2), "dim num_heads kernel_size", dilation=1, bias=True, **DROPOUT),
}
# 0.14.5: the same, except for the split op on weights.
_FOURTEEN_FIVE: Forms = _FOURTEEN | per_rank("natten{}dav", AV.name, (1, 2), "attn value dilation")

_NATTEN_VOLUME: Forms = {
    **per_rank("natten{}dqkrpb", QK.name, (3,), f"query key rpb {SEPARATE_DEPTH}"),
    **per_rank("natten{}dqk", QK.name, (3,), f"query key {SEPARATE_DEPTH}", additional_keys=None),
    **per_rank("natten{}dav", AV.name, (3,), f"attn value {SEPARATE_DEPTH}", additional_values=None),
}
# From 0.15 on these are the older names of the na*d ones, additional tensors included.
_NATTEN: Forms = {
    **_FOURTEEN,
    **per_rank("natten{}dqk", QK.name, (1, 2), "query key kernel_size dilation", additional_keys=None),
    **per_rank("natten{}dav", AV.name, (1, 2), "attn value kernel_size dilation", additional_values=None),
    **_NATTEN_VOLUME,
}
# 0.15: 3-D ops, whose depth has separate arguments.
_FIFTEEN: Forms = {
    **_NATTEN,
    **per_rank("na{}d_qk", QK.name, (1, 2), "query key kernel_size dilation", additional_keys=None),
    **per_rank("na{}d_qk_with_bias", QK.name, (1, 2), "query key bias kernel_size dilation", additional_keys=None),
    **per_rank("na{}d_av", AV.name, (1, 2), "attn value kernel_size dilation", additional_values=None),
    **per_rank("na{}d_qk", QK.name, (3,), f"query key {SEPARATE_DEPTH}", additional_keys=None),
    **per_rank("na{}d_qk_with_bias", QK.name, (3,), f"query key bias {SEPARATE_DEPTH}", additional_keys=None),
    **per_rank("na{}d_av", AV.name, (3,), f"attn value {SEPARATE_DEPTH}", additional_values=None),
    **per_rank(
        MODULE,
        "module",
        (3,),
        "dim num_heads kernel_size",
        kernel_size_d=None,
        dilation=1,
        dilation_d=None,
        bias=True,
        **DROPOUT,
    ),
}
_SPLIT: Forms = {
    **per_rank(
        "na{}d_qk", QK.name, RANKS, "query key kernel_size", dilation=1, additional_keys=None, is_causal=False, rpb=None
    ),
    **per_rank(
        "na{}d_av", AV.name, (1, 2), "attn value kernel_size", dilation=1, additional_values=None, is_causal=False
    ),
    **per_rank("na{}d_av", AV.name, (3,), "attn value kernel_size dilation", additional_values=None, is_causal=False),
}
# 0.17 deprecated the natten*d names and removed their additional tensors.
_DEPRECATED: Forms = {
    **_FOURTEEN,
    **per_rank("natten{}dqkrpb", QK.name, (3,), f"query key rpb {SEPARATE_DEPTH}"),
    **per_rank("natten{}dqk", QK.name, (3,), f"query key {SEPARATE_DEPTH}"),
    **per_rank("natten{}dav", AV.name, (3,), f"attn value {SEPARATE_DEPTH}"),
}
# 0.17: one argument per window, causal axes, and the fused op (heads-last, while the split ones are heads-first).
_SEVENTEEN: Forms = {
    **_DEPRECATED,
    **_SPLIT,
    **per_rank(
        "na{}d",
        "fused",
        RANKS,
        "query key value kernel_size",
        dilation=1,
        is_causal=False,
        rpb=None,
        scale=None,
        additional_keys=None,
        additional_values=None,
        xformers_kwargs=None,
    ),
    **per_rank(
        MODULE,
        "module",
        RANKS,
        "dim num_heads kernel_size",
        dilation=1,
        is_causal=False,
        rel_pos_bias=False,
        **DROPOUT,
        use_experimental_ops=False,
    ),
}

_KNOBS = {"run_persistent_kernel": True, "kernel_schedule": None, "torch_compile": False}
_TILE_SIZES = dict.fromkeys(
    ("backend", "q_tile_size", "kv_tile_size", "backward_q_tile_size", "backward_kv_tile_size", "backward_kv_splits")
)
_TILE_SHAPES = dict.fromkeys(
    (
        "backend",
        "q_tile_shape",
        "kv_tile_shape",
        "backward_q_tile_shape",
        "backward_kv_tile_shape",
        "backward_kv_splits",
    )
)
_PACKED = dict.fromkeys(
    ("seqlens_Q", "seqlens_KV", "cumulative_seqlen_Q", "cumulative_seqlen_KV", "max_seqlen_Q", "max_seqlen_KV")
)
_FUSED = {
    "stride": 1,
    "dilation": 1,
    "is_causal": False,
    "scale": None,
    "additional_keys": None,
    "additional_values": None,
    "attention_kwargs": None,
    **_TILE_SHAPES,
    "backward_use_pt_reduction": False,
    **_KNOBS,
}
_ATTENTION = {**_TILE_SIZES, "backward_use_pt_reduction": False, **_KNOBS, "return_lse": False}
_MODERN = {"stride": 1, "dilation": 1, "is_causal": False, "qkv_bias": True, "qk_scale": None, "proj_drop": 0.0}
_MODERN_MODULE: Forms = {
    **per_rank(MODULE, "module", RANKS, "embed_dim num_heads kernel_size", **_MODERN),
    "NeighborhoodAttentionGeneric": form("module", 0, "na_dim embed_dim num_heads kernel_size", **_MODERN),
}
# Only in 0.20.0 the modules' first argument was still called 'dim'.
_TWENTY_MODULE = {name: replace(its, aliases={"dim": "embed_dim"}) for name, its in _MODERN_MODULE.items()}
_FUSED_TWENTY = {**_FUSED, "try_fuse_additional_kv": False}
# 0.20 to 0.21.1: fused ops only, with stride where 0.17 had dilation.
_TWENTY: Forms = {
    **_TWENTY_MODULE,
    **per_rank("na{}d", "fused", RANKS, "query key value kernel_size", **_FUSED_TWENTY),
    "neighborhood_attention_generic": form("fused", 0, "query key value kernel_size", **_FUSED_TWENTY),
    "attention": form(FULL.name, 1, "query key value", scale=None, **_ATTENTION),
    "merge_attentions": form("merge", 0, "outputs lse_tensors", torch_compile=True),
}
# From 0.21.5 on: the log-sum-exp everywhere, causal and packed attention.
_LSE = {**_FUSED, "return_lse": False}
_TWENTY_ONE: Forms = {
    **_MODERN_MODULE,
    **per_rank("na{}d", "fused", RANKS, "query key value kernel_size", **_LSE),
    "neighborhood_attention_generic": form("fused", 0, "query key value kernel_size", **_LSE),
    "attention": form(FULL.name, 1, "query key value", is_causal=False, scale=None, **_PACKED, **_ATTENTION),
    "merge_attentions": form("merge", 0, "outputs lse_tensors", torch_compile=True, use_autograd_fix=True),
}

# Oldest first, each with upstream's names.
FORMS: dict[str, Forms] = {
    "v0141": _FIRST,
    "v0145": _FOURTEEN_FIVE,
    "v014": _FOURTEEN,
    "v015": _FIFTEEN,
    "v017": _SEVENTEEN,
    "v020": _TWENTY,
    "v021": _TWENTY_ONE,
}


def _elsewhere(face: str, word: str) -> str:
    """The generations whose form of a name has an argument, and its name in the newest, for an error."""
    having = [generation for generation, forms in FORMS.items() if face in forms and word in forms[face].names]
    if not having:
        return ""
    new = f"it is '{RENAMED[word]}' here, and " if word in RENAMED else ""
    return f"; {new}'{word}' is in the call forms {', '.join(having)}, which compat.for_version and compat.install have"


# Arguments that have another name in the newest form.
RENAMED = {"dim": "embed_dim"}
# What natten-mps and natten-mlx 0.3 had in a module where upstream had none, in the form of 0.17.
_ALL_SPLIT = tuple(name for name, its in _SEVENTEEN.items() if its.kind in (QK.name, AV.name))
_FUSED_NAMES = tuple(name for name, its in _SEVENTEEN.items() if its.kind == "fused")
ADDED: dict[str, Forms] = {generation: {} for generation in FORMS} | {
    "v015": {name: _SEVENTEEN[name] for name in _FUSED_NAMES},
    "v020": {name: _SEVENTEEN[name] for name in _ALL_SPLIT},
    "v021": {name: _SEVENTEEN[name] for name in _ALL_SPLIT}
    | {name: its for name, its in _FIFTEEN.items() if name.startswith("natten") or name.endswith("_with_bias")},
}
