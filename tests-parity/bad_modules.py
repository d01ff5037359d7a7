"""Modules that must fail, when they are made or called: the full text of each error, for both packages."""

from __future__ import annotations

from typing import Any

# The module's name, its arguments, the shape of the input (None: construction fails), the error and its text.
BadModule = tuple[str, dict[str, Any], tuple[int, ...] | None, type[Exception], str]
NAT = "NeighborhoodAttention"
BAD_MODULES: list[BadModule] = [
    (
        f"{NAT}1D",
        {"embed_dim": 7, "num_heads": 2},
        None,
        ValueError,
        "embed_dim must be a multiple of num_heads; got 7 and 2",
    ),
    (f"{NAT}2D", {"num_heads": 0}, None, ValueError, "num_heads must be at least 1; got 0"),
    (f"{NAT}2D", {"num_heads": 2.0}, None, TypeError, "num_heads must be an int; got 2.0"),
    (f"{NAT}2D", {"num_heads": True}, None, TypeError, "num_heads must be an int; got True"),
    (f"{NAT}1D", {"embed_dim": 0}, None, ValueError, "embed_dim must be at least 1; got 0"),
    (f"{NAT}1D", {"embed_dim": "8"}, None, TypeError, "embed_dim must be an int; got '8'"),
    (f"{NAT}3D", {"num_kv_heads": 0}, None, ValueError, "num_kv_heads must be at least 1; got 0"),
    (f"{NAT}2D", {"kernel_size": 0}, None, ValueError, "kernel_size must be at least 1; axis 0 has 0"),
    (f"{NAT}2D", {"kernel_size": (3, -3)}, None, ValueError, "kernel_size must be at least 1; axis 1 has -3"),
    (f"{NAT}2D", {"stride": (3, 4)}, None, ValueError, "stride must not exceed kernel_size; axis 1 has 4 > 3"),
    (f"{NAT}1D", {"dilation": 0}, None, ValueError, "dilation must be at least 1; axis 0 has 0"),
    (f"{NAT}1D", {"qkv_bias": None}, None, TypeError, "qkv_bias must be a bool; got None"),
    (f"{NAT}1D", {"attn_drop": 1.5}, None, ValueError, "attn_drop must be at least 0 and below 1; got 1.5"),
    (f"{NAT}1D", {"proj_drop": "0"}, None, TypeError, "proj_drop must be a number; got '0'"),
    (
        f"{NAT}1D",
        {"rel_pos_bias": True, "stride": 2},
        None,
        NotImplementedError,
        "rel_pos_bias is defined for stride 1 only; got stride (2,). Use stride=1",
    ),
    (f"{NAT}2D", {"num_kv_heads": 3}, None, ValueError, "num_heads must be a multiple of num_kv_heads; got 2 and 3"),
    (f"{NAT}3D", {"kernel_size": 2.5}, None, TypeError, "kernel_size must be an int or a sequence of 3 ints; got 2.5"),
    (f"{NAT}1D", {"is_causal": 1}, None, TypeError, "is_causal must be a bool or a sequence of 1 bools; got 1"),
    (f"{NAT}1D", {"qk_scale": "x"}, None, TypeError, "qk_scale must be a number or None; got 'x'"),
    (f"{NAT}1D", {}, (1, 7, 9), ValueError, "input must be [batch, L, 8]; got (1, 7, 9)"),
    (f"{NAT}2D", {}, (1, 7, 8), ValueError, "input must be [batch, X, Y, 8]; got (1, 7, 8)"),
    (f"{NAT}3D", {}, (1, 7, 8), ValueError, "input must be [batch, X, Y, Z, 8]; got (1, 7, 8)"),
]
