"""Illegal calls of every face, each with the full text of its error: one table for both packages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from frameworks import Framework


@dataclass(frozen=True)
class T:
    """A tensor of ones, to be created by the framework under test."""

    shape: tuple[int, ...]
    dtype: str = "float32"


def t(*shape: int, dtype: str = "float32") -> T:
    return T(shape, dtype)


def built(value: Any, framework: Framework) -> Any:
    """``value`` with every :class:`T` in it created."""
    if isinstance(value, T):
        return framework.tensor(np.ones(value.shape), value.dtype)
    if isinstance(value, list):
        return [built(item, framework) for item in value]
    return value


def _legal(rank: int) -> dict[str, Any]:
    """A legal call: 2 heads of 4; axes of 7; 5, 6; or 3, 4, 5 tokens; kernel_size 3."""
    shape = {1: (7,), 2: (5, 6), 3: (3, 4, 5)}[rank]
    return dict.fromkeys(("query", "key", "value"), T((1, *shape, 2, 4))) | {"kernel_size": 3}


def _without(call: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in call.items() if name not in names}


# A legal call of every face, to be broken one argument at a time.
LEGAL: dict[str, dict[str, Any]] = {
    "neighborhood_attention": _legal(2),
    **{f"na{r}d": _legal(r) for r in (1, 2, 3)},
    **{f"na{r}d_qk": _without(_legal(r), "value") for r in (1, 2, 3)},
    **{
        f"na{r}d_av": {"attn": T((*_legal(r)["query"].shape[:-1], 3**r))} | _without(_legal(r), "query", "key")
        for r in (1, 2, 3)
    },
    "attention": _without(_legal(1), "kernel_size"),
    "merge_attentions": {"outputs": [t(1, 7, 2, 4)] * 2, "lses": [t(1, 7, 2)] * 2},
    "na1d_varlen": _legal(1) | {"seq_lens": [7]},
    "na2d_varlen": _legal(2) | {"spatial_sizes": [[5, 6]]},
    "na3d_varlen": _legal(3) | {"spatial_sizes": [[3, 4, 5]]},
    "explain": {"op": "na1d"} | _legal(1),
    "set_backend": {"backend": "auto"},
    "use_backend": {"backend": "auto"},
}
OMIT = object()

TENSOR = "a tensor of this package's framework"
FLOATS = "float16, bfloat16, float32 or float64"
OTHER = t(1, 7, 3, 4)
FIVE = "query, key, value, additional_keys and additional_values must share "

# face, changed arguments, the error and its text, in which {package} and {backends} are replaced by the package's own.
Bad = tuple[str, dict[str, Any], type[Exception], str]
TENSORS: list[Bad] = [
    ("na1d", {"query": "x"}, TypeError, f"query must be {TENSOR}; got str"),
    ("na1d", {"query": None}, TypeError, f"query must be {TENSOR}; got NoneType"),
    ("na2d", {"key": np.ones((1, 5, 6, 2, 4), "float32")}, TypeError, f"key must be {TENSOR}; got ndarray"),
    ("na3d", {"value": [1.0]}, TypeError, f"value must be {TENSOR}; got list"),
    ("na1d", {"rpb": 1.0}, TypeError, f"rpb must be {TENSOR}; got float"),
    ("na1d", {"additional_keys": 3}, TypeError, f"additional_keys must be {TENSOR}; got int"),
    ("na1d_av", {"attn": ()}, TypeError, f"attn must be {TENSOR}; got tuple"),
    ("attention", {"key": {}}, TypeError, f"key must be {TENSOR}; got dict"),
    ("merge_attentions", {"lses": [1, 2]}, TypeError, f"lses[0] must be {TENSOR}; got int"),
    ("na1d_varlen", {"value": 1}, TypeError, f"value must be {TENSOR}; got int"),
    ("na1d", {"query": t(1, 7, 2, 4, dtype="int32")}, TypeError, f"query must be {FLOATS}; got int32"),
    ("na1d", {"rpb": t(2, 5, dtype="int64")}, TypeError, f"rpb must be {FLOATS}; got int64"),
    ("na1d_av", {"attn": t(1, 7, 2, 3, dtype="uint8")}, TypeError, f"attn must be {FLOATS}; got uint8"),
    ("attention", {"value": t(1, 7, 2, 4, dtype="int8")}, TypeError, f"value must be {FLOATS}; got int8"),
    (
        "na1d",
        {"key": t(1, 7, 2, 4, dtype="float16")},
        TypeError,
        "query, key and value must share one dtype; got float32, float16 and float32",
    ),
    (
        "na1d",
        {"additional_keys": t(1, 3, 2, 4), "additional_values": t(1, 3, 2, 4, dtype="bfloat16")},
        TypeError,
        FIVE + "one dtype; got float32, float32, float32, float32 and bfloat16",
    ),
    (
        "na2d_qk",
        {"key": t(1, 5, 6, 2, 4, dtype="float64")},
        TypeError,
        "query and key must share one dtype; got float32 and float64",
    ),
    (
        "na1d",
        {"query": t(1, 5, 6, 2, 4)},
        ValueError,
        "query must be [batch, L, heads, dim] (4-D); got (1, 5, 6, 2, 4)",
    ),
    ("na2d", {"query": t(1, 7, 2, 4)}, ValueError, "query must be [batch, X, Y, heads, dim] (5-D); got (1, 7, 2, 4)"),
    ("na3d", {"key": t(7, 2)}, ValueError, "key must be [batch, X, Y, Z, heads, dim] (6-D); got (7, 2)"),
    ("na2d", {"value": t(1, 7, 2, 4)}, ValueError, "value must be [batch, X, Y, heads, dim] (5-D); got (1, 7, 2, 4)"),
    (
        "neighborhood_attention",
        {"query": t(7, 2, 4)},
        ValueError,
        "query must be [batch, *shape, heads, dim] with 1, 2 or 3 axes in shape; got (7, 2, 4)",
    ),
    ("na1d_qk", {"query": t()}, ValueError, "query must be [batch, L, heads, dim] (4-D); got ()"),
    ("na1d_av", {"attn": t(7, 3)}, ValueError, "attn must be [batch, L, heads, dim] (4-D); got (7, 3)"),
    ("attention", {"key": t(1, 7, 4)}, ValueError, "key must be [batch, L, heads, dim] (4-D); got (1, 7, 4)"),
    ("na1d", {"key": t(2, 7, 2, 4)}, ValueError, "query, key and value must share one batch size; got 1, 2 and 1"),
    ("na1d_av", {"value": t(3, 7, 2, 4)}, ValueError, "attn and value must share one batch size; got 1 and 3"),
    (
        "na2d",
        {"value": t(1, 5, 7, 2, 4)},
        ValueError,
        "query, key and value must share one shape; got (5, 6), (5, 6) and (5, 7)",
    ),
    ("na1d_qk", {"key": t(1, 8, 2, 4)}, ValueError, "query and key must share one shape; got (7,) and (8,)"),
    ("na1d_av", {"value": t(1, 8, 2, 4)}, ValueError, "attn and value must share one shape; got (7,) and (8,)"),
    ("attention", {"value": t(1, 8, 2, 4)}, ValueError, "key and value must share one sequence length; got 7 and 8"),
    ("na1d", {"key": t(1, 7, 2, 5)}, ValueError, "query and key must share one head_dim; got 4 and 5"),
    ("na1d_qk", {"key": t(1, 7, 2, 3)}, ValueError, "query and key must share one head_dim; got 4 and 3"),
    ("na1d", {"value": t(1, 7, 1, 4)}, ValueError, "key and value must share one number of heads; got 2 and 1"),
    ("na1d", {"query": OTHER}, ValueError, "query heads must be a multiple of key/value heads; got 3 and 2"),
    ("na1d_av", {"value": OTHER}, ValueError, "query heads must be a multiple of key/value heads; got 2 and 3"),
    ("attention", {"query": OTHER}, ValueError, "query heads must be a multiple of key/value heads; got 3 and 2"),
    (
        "na1d",
        dict.fromkeys(("query", "key", "value"), t(1, 0, 2, 4)),
        ValueError,
        "query shape must not be zero; got (0,)",
    ),
    ("attention", dict.fromkeys(("key", "value"), t(1, 0, 2, 4)), ValueError, "key shape must not be zero; got (0,)"),
    ("na1d", {"query": t(1, 7, 0, 4)}, ValueError, "heads must not be zero; got 0"),
    ("na1d", dict.fromkeys(("key", "value"), t(1, 7, 0, 4)), ValueError, "kv heads must not be zero; got 0"),
    ("na1d", dict.fromkeys(("query", "key"), t(1, 7, 2, 0)), ValueError, "head_dim must not be zero; got 0"),
    ("na1d", {"value": t(1, 7, 2, 0)}, ValueError, "value head_dim must not be zero; got 0"),
    ("na1d_av", {"value": t(1, 7, 0, 4)}, ValueError, "value heads must not be zero; got 0"),
    ("na1d_av", {"attn": t(1, 7, 2, 4)}, ValueError, "attn must have prod(kernel_size) = 3 slots; got 4"),
    ("na2d_av", {"kernel_size": (3, 2)}, ValueError, "attn must have prod(kernel_size) = 6 slots; got 9"),
]
WINDOWS: list[Bad] = [
    ("na1d", {"kernel_size": 3.0}, TypeError, "kernel_size must be an int or a sequence of 1 ints; got 3.0"),
    ("na1d", {"kernel_size": True}, TypeError, "kernel_size must be an int or a sequence of 1 ints; got True"),
    ("na1d", {"kernel_size": "3"}, TypeError, "kernel_size must be an int or a sequence of 1 ints; got '3'"),
    ("na2d", {"kernel_size": None}, TypeError, "kernel_size must be an int or a sequence of 2 ints; got None"),
    ("na2d", {"kernel_size": (3, 2.5)}, TypeError, "kernel_size must be an int or a sequence of 2 ints; got (3, 2.5)"),
    ("na2d_qk", {"stride": (1, False)}, TypeError, "stride must be an int or a sequence of 2 ints; got (1, False)"),
    ("na3d_av", {"dilation": {1, 2}}, TypeError, "dilation must be an int or a sequence of 3 ints; got set"),
    ("na1d", {"is_causal": 1}, TypeError, "is_causal must be a bool or a sequence of 1 bools; got 1"),
    ("na2d", {"is_causal": (True, 0)}, TypeError, "is_causal must be a bool or a sequence of 2 bools; got (True, 0)"),
    ("attention", {"is_causal": 0}, TypeError, "is_causal must be a bool or a sequence of 1 bools; got 0"),
    ("na2d_varlen", {"is_causal": "no"}, TypeError, "is_causal must be a bool or a sequence of 2 bools; got 'no'"),
    ("na1d", {"kernel_size": (3, 3)}, ValueError, "kernel_size must have one entry per axis (1); got (3, 3)"),
    ("na3d", {"stride": [1, 1]}, ValueError, "stride must have one entry per axis (3); got (1, 1)"),
    ("na2d", {"is_causal": (True,)}, ValueError, "is_causal must have one entry per axis (2); got (True,)"),
    ("na1d", {"dilation": ()}, ValueError, "dilation must have one entry per axis (1); got ()"),
    ("na1d", {"kernel_size": 0}, ValueError, "kernel_size must be at least 1; axis 0 has 0"),
    ("na2d_qk", {"kernel_size": (3, -1)}, ValueError, "kernel_size must be at least 1; axis 1 has -1"),
    ("na1d", {"stride": 0}, ValueError, "stride must be at least 1; axis 0 has 0"),
    ("na1d_av", {"dilation": -2}, ValueError, "dilation must be at least 1; axis 0 has -2"),
    ("na3d", {"stride": (1, 4, 1)}, ValueError, "stride must not exceed kernel_size; axis 1 has 4 > 3"),
    ("na1d_varlen", {"stride": 4}, ValueError, "stride must not exceed kernel_size; axis 0 has 4 > 3"),
    (
        "na2d",
        {"kernel_size": (3, 4), "dilation": (1, 2)},
        ValueError,
        "kernel_size * dilation must not exceed the axis length; axis 1 has 4 * 2 = 8 > 6",
    ),
    (
        "na3d_qk",
        {"kernel_size": (3, 2, 3), "dilation": (1, 1, 2)},
        ValueError,
        "kernel_size * dilation must not exceed the axis length; axis 2 has 3 * 2 = 6 > 5",
    ),
    (
        "na1d_qk",
        {"kernel_size": 8},
        ValueError,
        "kernel_size * dilation must not exceed the axis length; axis 0 has 8 * 1 = 8 > 7",
    ),
    ("na1d", {"scale": "x"}, TypeError, "scale must be a number or None; got 'x'"),
    ("na1d_qk", {"scale": True}, TypeError, "scale must be a number or None; got True"),
    ("attention", {"scale": 1j}, TypeError, "scale must be a number or None; got complex"),
    ("na1d", {"scale": float("nan")}, ValueError, "scale must be finite; got nan"),
    ("attention", {"scale": float("-inf")}, ValueError, "scale must be finite; got -inf"),
    ("na2d", {"scale": 10**400}, ValueError, "scale must be finite; got a number beyond the range of floats"),
    ("na1d", {"kernel_size": 10**5000}, ValueError, "kernel_size must fit 64 bits; got an int of 16610 bits"),
    ("na1d", {"stride": "ab"}, TypeError, "stride must be an int or a sequence of 1 ints; got 'ab'"),
    (
        "na1d",
        {"dilation": [t(1, 7, 2, 4)]},
        TypeError,
        "dilation must be an int or a sequence of 1 ints; got [{tensor}]",
    ),
]
PAIR = {"additional_keys": t(1, 3, 2, 4), "additional_values": t(1, 3, 2, 4)}
COME_TOGETHER = "additional_keys and additional_values come together; "
ADDITIONAL = "must be [batch, any number, kv heads, dim] = (1, any, 2, 4); got"
OPTIONS: list[Bad] = [
    ("na1d", PAIR | {"additional_values": None}, ValueError, COME_TOGETHER + "additional_values is missing"),
    ("na1d", PAIR | {"additional_keys": None}, ValueError, COME_TOGETHER + "additional_keys is missing"),
    ("na1d", PAIR | {"additional_keys": t(1, 3, 1, 4)}, ValueError, f"additional_keys {ADDITIONAL} (1, 3, 1, 4)"),
    ("na2d", PAIR | {"additional_values": t(1, 3, 2, 5)}, ValueError, f"additional_values {ADDITIONAL} (1, 3, 2, 5)"),
    ("na1d", PAIR | {"additional_keys": t(1, 3, 4)}, ValueError, f"additional_keys {ADDITIONAL} (1, 3, 4)"),
    (
        "na1d",
        PAIR | {"additional_values": t(1, 2, 2, 4)},
        ValueError,
        "additional_keys and additional_values must share one length; got 3 and 2",
    ),
    (
        "na1d",
        PAIR | {"additional_values": t(2, 3, 2, 4)},
        ValueError,
        FIVE + "one batch size; got 1, 1, 1, 1 and 2",
    ),
    (
        "na2d",
        {"rpb": t(2, 5, 3)},
        ValueError,
        "rpb must be [heads, 2 * kernel_size - 1 per axis] = (2, 5, 5); got (2, 5, 3)",
    ),
    ("na1d_qk", {"rpb": t(1, 5)}, ValueError, "rpb must be [heads, 2 * kernel_size - 1 per axis] = (2, 5); got (1, 5)"),
    (
        "na1d",
        {"rpb": t(2, 5), "stride": 2},
        NotImplementedError,
        "rpb is defined for stride 1 only; got stride (2,). Use stride=1",
    ),
    (
        "na2d_qk",
        {"rpb": t(2, 5, 5), "stride": (1, 2)},
        NotImplementedError,
        "rpb is defined for stride 1 only; got stride (1, 2). Use stride=1",
    ),
    ("na1d", {"window": 3}, TypeError, "got an unexpected keyword argument 'window'"),
    ("neighborhood_attention", {"kernelsize": 3}, TypeError, "got an unexpected keyword argument 'kernelsize'"),
    ("attention", {"kernel_size": 3}, TypeError, "got an unexpected keyword argument 'kernel_size'"),
    ("merge_attentions", {"lse": 3}, TypeError, "got an unexpected keyword argument 'lse'"),
]
EXPLAINED = "neighborhood_attention, attention, na1d, na1d_qk, na1d_av, na2d, na2d_qk, na2d_av, na3d, na3d_qk, na3d_av"
LENGTH = "kernel_size * dilation must not exceed an item's length; item"
BETWEEN = "must lie between 0 and the padded length; item"


def _lists(*items: T) -> dict[str, Any]:
    return {name: list(items) for name in ("query", "key", "value")}


LISTS = {name: [t(7, 2, 4)] for name in ("query", "key", "value")}
ALONE = {"seq_lens": None}
TWO = dict.fromkeys(("query", "key", "value"), t(2, 7, 2, 4))
REST: list[Bad] = [
    ("na1d", {"backend": "warp"}, ValueError, "unknown backend 'warp'; {package} has {backends}"),
    ("na2d_qk", {"backend": "gpu"}, ValueError, "unknown backend 'gpu'; {package} has {backends}"),
    ("na1d_av", {"backend": ""}, ValueError, "unknown backend ''; {package} has {backends}"),
    ("attention", {"backend": 1}, TypeError, "backend must be a string or None; got int"),
    ("na1d", {"return_lse": 1}, TypeError, "return_lse must be a bool; got 1"),
    ("na2d_varlen", {"return_lse": "x"}, TypeError, "return_lse must be a bool; got 'x'"),
    ("attention", {"return_lse": None}, TypeError, "return_lse must be a bool; got None"),
    ("explain", {"query": None}, TypeError, "na1d needs query, key and value"),
    ("explain", {"rpb": True}, TypeError, f"rpb must be {TENSOR}; got bool"),
    ("set_backend", {"backend": "warp"}, ValueError, "unknown backend 'warp'; {package} has {backends}"),
    ("set_backend", {"backend": None}, TypeError, "backend must be a string or None; got NoneType"),
    ("use_backend", {"backend": "cuda"}, ValueError, "unknown backend 'cuda'; {package} has {backends}"),
    ("explain", {"op": "na4d"}, ValueError, f"unknown op 'na4d'; it explains {EXPLAINED}"),
    ("explain", {"window": 3}, TypeError, "na1d has no argument 'window'"),
    ("explain", {"kernel_size": OMIT}, TypeError, "na1d needs kernel_size"),
    ("explain", {"value": OMIT}, TypeError, "na1d needs query, key and value"),
    ("explain", {"op": None}, TypeError, "op must be the name of an op; got None"),
    ("explain", {"return_lse": 1}, TypeError, "return_lse must be a bool; got 1"),
    (
        "explain",
        {"op": "na1d_qk", "value": OMIT, "return_lse": True},
        TypeError,
        "na1d_qk has no argument 'return_lse'",
    ),
    ("merge_attentions", {"outputs": None}, TypeError, "outputs must be a list of tensors; got None"),
    ("merge_attentions", {"lses": 3}, TypeError, "lses must be a list of tensors; got 3"),
    ("merge_attentions", {"lses": None}, TypeError, "lses must be a list of tensors; got None"),
    ("merge_attentions", {"lse_tensors": 3}, TypeError, "give lses, or lse_tensors as upstream calls them, not both"),
    (
        "merge_attentions",
        {"outputs": [], "lses": []},
        ValueError,
        "outputs and lses must share one length of at least 1; got 0 and 0",
    ),
    (
        "merge_attentions",
        {"lses": [t(1, 7, 2)]},
        ValueError,
        "outputs and lses must share one length of at least 1; got 2 and 1",
    ),
    (
        "merge_attentions",
        {"outputs": [t(1, 7, 2, 4), t(1, 7, 2, 5)]},
        ValueError,
        "outputs[0] and outputs[1] must share one shape; got (1, 7, 2, 4) and (1, 7, 2, 5)",
    ),
    (
        "merge_attentions",
        {"outputs": [t(1, 7, 2, 4), t(1, 7, 2, 4, dtype="float16")]},
        TypeError,
        "outputs[0] and outputs[1] must share one dtype; got float32 and float16",
    ),
    (
        "merge_attentions",
        {"lses": [t(1, 7, 2), t(1, 7)]},
        ValueError,
        "lses[1] must be outputs[1] without its last axis, (1, 7, 2); got (1, 7)",
    ),
    ("na1d_varlen", {"seq_lens": "x"}, TypeError, "seq_lens must be ints of shape (1,); got 'x'"),
    ("na1d_varlen", {"seq_lens": [7.0]}, TypeError, "seq_lens must be ints of shape (1,); item 0 is 7.0"),
    ("na1d_varlen", {"seq_lens": [True]}, TypeError, "seq_lens must be ints of shape (1,); item 0 is True"),
    ("na1d_varlen", {"seq_lens": [7, 7]}, ValueError, "seq_lens must have one entry per batch item (1); got 2"),
    ("na1d_varlen", {"seq_lens": [8]}, ValueError, f"seq_lens {BETWEEN} 0, axis 0 has 8, padded to 7"),
    ("na1d_varlen", TWO | {"seq_lens": [7, -1]}, ValueError, f"seq_lens {BETWEEN} 1, axis 0 has -1, padded to 7"),
    ("na1d_varlen", TWO | {"seq_lens": [7, 2]}, ValueError, f"{LENGTH} 1, axis 0 has 3 * 1 = 3 > 2"),
    (
        "na1d_varlen",
        LISTS | {"key": [t(7, 2, 4)] * 2},
        ValueError,
        "query, key and value must list equally many items; got 1, 2 and 1",
    ),
    (
        "na1d_varlen",
        LISTS | {"seq_lens": [6]},
        ValueError,
        "seq_lens must be the items' own shapes; item 0 has (7,), not (6,)",
    ),
    ("na1d_varlen", LISTS | {"seq_lens": [7, 7]}, ValueError, "seq_lens must have one entry per item (1); got 2"),
    ("na1d_varlen", LISTS | {"seq_lens": "x"}, TypeError, "seq_lens must be the items' own shapes, or None; got 'x'"),
    (
        "na1d_varlen",
        LISTS | {"value": [t(6, 2, 4)]},
        ValueError,
        "item 0: query, key and value must share one shape; got (7,), (7,) and (6,)",
    ),
    (
        "na1d_varlen",
        LISTS | {"value": [t(1, 7, 2, 4)]},
        ValueError,
        "item 0: value must be [L, heads, dim] (3-D); got (1, 7, 2, 4)",
    ),
    (
        "na1d_varlen",
        _lists(t(7, 2, 4), t(2, 2, 4)) | ALONE,
        ValueError,
        "item 1: kernel_size * dilation must not exceed the axis length; axis 0 has 3 * 1 = 3 > 2",
    ),
    (
        "na1d_varlen",
        _lists(t(7, 2, 4)) | ALONE | {"value": [t(7, 2, 4, dtype="float16")]},
        TypeError,
        "item 0: query, key and value must share one dtype; got float32, float32 and float16",
    ),
    ("na1d_varlen", _lists(t(7, 2, 4), t(0, 2, 0)) | ALONE, ValueError, "item 1: head_dim must not be zero; got 0"),
    (
        "na1d_varlen",
        {n: [t(7, 2, 4), t(0, 2, 4 + (n == "key"))] for n in ("query", "key", "value")} | ALONE,
        ValueError,
        "item 1: query and key must share one head_dim; got 4 and 5",
    ),
    ("na1d_varlen", LISTS | {"value": [1]}, TypeError, f"value[0] must be {TENSOR}; got int"),
    ("na1d_varlen", LISTS | {"value": t(1, 7, 2, 4)}, TypeError, f"query must be {TENSOR}; got list"),
    ("na2d_varlen", {"spatial_sizes": [5]}, ValueError, "spatial_sizes must be ints of shape (1, 2); item 0 is 5"),
    (
        "na2d_varlen",
        {"spatial_sizes": [[5, 6, 1]]},
        ValueError,
        "spatial_sizes must be ints of shape (1, 2); item 0 is [5, 6, 1]",
    ),
    ("na1d_varlen", {"seq_lens": None}, TypeError, "seq_lens must be ints of shape (1,); got None"),
    (
        "na1d_varlen",
        {"seq_lens": [2**70]},
        ValueError,
        f"seq_lens {BETWEEN} 0, axis 0 has an int of 71 bits, padded to 7",
    ),
    ("na2d_varlen", {"spatial_sizes": [[5, 7]]}, ValueError, f"spatial_sizes {BETWEEN} 0, axis 1 has 7, padded to 6"),
    (
        "na3d_varlen",
        {"spatial_sizes": [[3, 3, 4]], "dilation": (1, 1, 1), "kernel_size": (3, 4, 3)},
        ValueError,
        f"{LENGTH} 0, axis 1 has 4 * 1 = 4 > 3",
    ),
]
BAD_CALLS = TENSORS + WINDOWS + OPTIONS + REST
