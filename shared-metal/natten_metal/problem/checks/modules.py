"""The rules of the modules' constructors and inputs, in the words of the ops that they call."""

from typing import Any, NamedTuple, NoReturn

from ..problem import TensorSpec
from . import arguments
from .arguments import bools_per_axis
from .window import Window, check_rpb_stride, check_window, reject_causal_wrap, window_arguments


class ModuleArguments(NamedTuple):
    """What a module's constructor was given, checked; the window has one entry per axis."""

    embed_dim: int
    num_heads: int
    num_kv_heads: int
    window: Window
    scale: float
    qkv_bias: bool
    attn_drop: float
    proj_drop: float
    rel_pos_bias: bool


def constructor(
    face: str,
    rank: int,
    embed_dim: Any,
    num_heads: Any,
    num_kv_heads: Any,
    window: tuple[Any, ...],
    qk_scale: Any,
    qkv_bias: Any,
    drops: tuple[Any, Any],
    rel_pos_bias: Any,
) -> ModuleArguments:
    """A module's checked arguments; raises TypeError, ValueError or NotImplementedError where its op would.

    window: kernel_size, stride, dilation and is_causal; drops: attn_drop and proj_drop. Only the lengths of the axes
    are left to be checked in each call.
    """
    width, heads, kv_heads = _heads(face, embed_dim, num_heads, num_kv_heads)
    kernel_size, stride, dilation, is_causal = window_arguments(face, rank, *window)
    check_window(face, kernel_size, stride, dilation)
    has_rpb = arguments.flag(face, "rel_pos_bias", rel_pos_bias)
    if has_rpb:
        check_rpb_stride(face, "rel_pos_bias", stride)
    return ModuleArguments(
        width,
        heads,
        kv_heads,
        (kernel_size, stride, dilation, is_causal),
        arguments.scale_or_default(face, qk_scale, width // heads, "qk_scale"),
        arguments.flag(face, "qkv_bias", qkv_bias),
        arguments.probability(face, "attn_drop", drops[0]),
        arguments.probability(face, "proj_drop", drops[1]),
        has_rpb,
    )


def _heads(face: str, embed_dim: Any, num_heads: Any, num_kv_heads: Any) -> tuple[int, int, int]:
    width, heads = arguments.count(face, "embed_dim", embed_dim), arguments.count(face, "num_heads", num_heads)
    kv_heads = heads if num_kv_heads is None else arguments.count(face, "num_kv_heads", num_kv_heads)
    if width % heads:
        raise ValueError(f"{face}: embed_dim must be a multiple of num_heads; got {width} and {heads}")
    if heads % kv_heads:
        raise ValueError(f"{face}: num_heads must be a multiple of num_kv_heads; got {heads} and {kv_heads}")
    return width, heads, kv_heads


def check_input(face: str, given: TensorSpec, rank: int, embed_dim: int) -> None:
    """ValueError unless a module's input is ``[batch, *shape, embed_dim]``."""
    if len(given.shape) != rank + 2 or given.shape[-1] != embed_dim:
        axes = ", ".join("XYZ"[:rank]) if rank > 1 else "L"
        raise ValueError(f"{face}: input must be [batch, {axes}, {embed_dim}]; got {given.shape}")


def check_projection(face: str, layer: str, width: int, parts: int, heads: tuple[str, int], head_dim: int) -> None:
    """ValueError unless a projection returns as many channels as the module's heads have: callers may change either.

    heads: the attribute that counts them, and its value. parts: how many of query, key and value it projects.
    """
    name, count = heads
    if width != parts * count * head_dim:
        factors = f"{parts} * {count} * {head_dim}" if parts > 1 else f"{count} * {head_dim}"
        raise ValueError(
            f"{face}: {layer} gives {width} channels, but {name}={count} with head_dim {head_dim} needs {factors}; "
            f"after heads are pruned or sharded, set {name} to the number that is left"
        )


def reject_dropout(face: str, sizes: str) -> None:
    """NotImplementedError: dropping weights needs the split ops, which do not take items of different sizes."""
    raise NotImplementedError(
        f"{face}: attn_drop in training cannot be combined with {sizes}; set attn_drop=0.0 or call the items one by one"
    )


def reject_together(face: str, sizes: str, other: str) -> None:
    """NotImplementedError: items of different sizes with axes that wrap around, or with a cache."""
    raise NotImplementedError(f"{face}: {other} cannot be combined with {sizes}; call the items one by one")


def reject_key_mask(face: str, other: str, advice: str) -> None:
    """NotImplementedError: the split ops, items of different sizes, caches and shards take no key mask."""
    raise NotImplementedError(f"{face}: key_mask cannot be combined with {other}; {advice}")


def wraps(face: str, wrap: Any, is_causal: tuple[bool, ...]) -> tuple[bool, ...]:
    """``wrap`` as one bool per axis; ValueError if a causal axis wraps."""
    found = bools_per_axis(face, "wrap", wrap, len(is_causal))
    for axis, both in enumerate(zip(found, is_causal, strict=True)):
        if all(both):
            reject_causal_wrap(face, axis)
    return found


def check_cache_window(face: str, own: Window, wrap: Any, window: Window, cache_wrap: Any) -> None:
    """ValueError unless a cache has the window of the module that it serves."""
    names = ("kernel_size", "stride", "dilation", "is_causal", "wrap")
    for name, mine, its in zip(names, (*own, wrap or False), (*window, cache_wrap or False), strict=True):
        if mine != its:
            raise ValueError(f"{face}: cache must have the module's {name}, {mine}; got one with {its}")


def reject_counted(asked: str) -> NoReturn:
    """``flops`` of a module is given more than the module's input."""
    raise TypeError(f"{asked}: of a module only its input is needed")
