"""The rules of a cache of keys and values: windows that can be streamed, and chunks that fit together."""

from typing import Any, NamedTuple

from ..problem import RANKS, TensorSpec
from . import window as windows
from .arguments import shown
from .tensors import no_zero, same, tensor_rank


class Window(NamedTuple):
    """The window arguments as they were given; their rank is known once the first chunk arrives."""

    kernel_size: Any
    stride: Any
    dilation: Any
    is_causal: Any

    def for_rank(self, face: str, rank: int) -> windows.Window:
        """The arguments, one entry per axis each. ``is_causal=None``: axis 0 alone."""
        causal = (True,) + (False,) * (rank - 1) if self.is_causal is None else self.is_causal
        return windows.window_arguments(face, rank, self.kernel_size, self.stride, self.dilation, causal)


def check_streams(face: str, given: Window) -> None:
    """ValueError unless tokens can arrive one after another along axis 0: it must be causal, with stride 1."""
    ranks = {len(each) for each in given if isinstance(each, (list, tuple))}
    for rank in ranks or {1}:
        if rank not in RANKS:
            raise ValueError(f"{face}: the window must have 1, 2 or 3 axes; got {rank}")
        kernel_size, stride, dilation, is_causal = given.for_rank(face, rank)
        windows.check_window(face, kernel_size, stride, dilation)
        if not is_causal[0]:
            raise ValueError(
                f"{face}: is_causal must hold for axis 0, along which the tokens arrive; got {shown(is_causal)}"
            )
        if stride[0] != 1:
            raise ValueError(
                f"{face}: stride must be 1 on axis 0: a larger one lets a query's window depend on tokens that have "
                f"not arrived yet; got {shown(stride)}"
            )


def check_chunk(
    face: str, given: Window, specs: list[TensorSpec], before: list[TensorSpec] | None
) -> tuple[windows.Window, int]:
    """The window for the chunk's rank, and how many tokens before a query it sees."""
    key, value = specs
    rank = tensor_rank(face, "key", key, None)
    tensor_rank(face, "value", value, rank)
    same(face, "dtype", {"key": key.dtype, "value": value.dtype}, TypeError)
    same(face, "device", {"key": key.device, "value": value.device})
    same(face, "batch, shape and number of heads", {"key": key.shape[:-1], "value": value.shape[:-1]})
    for name, spec, earlier in zip(("key", "value"), specs, before or specs, strict=True):
        same(face, "dtype", {name: spec.dtype, "the earlier tokens": earlier.dtype}, TypeError)
        same(face, "device", {name: spec.device, "the earlier tokens": earlier.device})
        others = [(*each.shape[:1], *each.shape[2:]) for each in (spec, earlier)]
        if others[0] != others[1]:
            raise ValueError(
                f"{face}: {name} must have the sizes of the earlier tokens, except on axis 0; "
                f"got {spec.shape} after {(earlier.shape[0], 'any', *earlier.shape[2:])}"
            )
    window = given.for_rank(face, rank)
    windows.check_window(face, *window[:3])
    return window, (window[0][0] - 1) * window[2][0]


def check_query(face: str, query: TensorSpec, newest: int) -> int:
    """How many of the newest tokens the query holds; ValueError if it has more tokens than the newest chunk."""
    tensor_rank(face, "query", query, None)
    no_zero(face, {"query shape": query.shape[1:-2]})
    length = query.shape[1]
    if length > newest:
        raise ValueError(
            f"{face}: query must hold tokens of the newest chunk, at most {newest}; got {length}. "
            "Append the keys and values of the tokens first"
        )
    return length
