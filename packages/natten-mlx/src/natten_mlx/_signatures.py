"""The types of the faces that take ``return_lse``: what they return depends on it.

A face keeps its own signature and docstring at run time; type checkers read the overloads of a protocol here.
"""

from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeVar, overload

import mlx.core as mx

from ._metal.api.typed import Bools as Bools
from ._metal.api.typed import Face, Named, unchanged
from ._metal.api.typed import Ints as Ints
from ._tensors import StreamOrDevice

Result = mx.array | tuple[mx.array, mx.array]
Items = TypeVar("Items", mx.array, list[mx.array])
Padded = mx.array | list[mx.array]
PaddedResult = Padded | tuple[Padded, Padded]


class Fused(Named, Protocol):
    """``neighborhood_attention`` and ``na{1,2,3}d``."""

    @overload
    def __call__(
        self,
        query: mx.array,
        key: mx.array,
        value: mx.array,
        kernel_size: Ints,
        stride: Ints = 1,
        dilation: Ints = 1,
        is_causal: Bools = False,
        scale: float | None = None,
        *,
        additional_keys: mx.array | None = None,
        additional_values: mx.array | None = None,
        rpb: mx.array | None = None,
        key_mask: mx.array | None = None,
        full_shape: Ints | None = None,
        query_start: Ints = 0,
        key_start: Ints = 0,
        wrap: Bools = False,
        return_lse: Literal[False] = False,
        backend: str | None = None,
        stream: StreamOrDevice = None,
        **upstream: Any,
    ) -> mx.array: ...

    @overload
    def __call__(
        self,
        query: mx.array,
        key: mx.array,
        value: mx.array,
        kernel_size: Ints,
        stride: Ints = 1,
        dilation: Ints = 1,
        is_causal: Bools = False,
        scale: float | None = None,
        *,
        additional_keys: mx.array | None = None,
        additional_values: mx.array | None = None,
        rpb: mx.array | None = None,
        key_mask: mx.array | None = None,
        full_shape: Ints | None = None,
        query_start: Ints = 0,
        key_start: Ints = 0,
        wrap: Bools = False,
        return_lse: Literal[True],
        backend: str | None = None,
        stream: StreamOrDevice = None,
        **upstream: Any,
    ) -> tuple[mx.array, mx.array]: ...

    @overload
    def __call__(
        self,
        query: mx.array,
        key: mx.array,
        value: mx.array,
        kernel_size: Ints,
        stride: Ints = 1,
        dilation: Ints = 1,
        is_causal: Bools = False,
        scale: float | None = None,
        *,
        additional_keys: mx.array | None = None,
        additional_values: mx.array | None = None,
        rpb: mx.array | None = None,
        key_mask: mx.array | None = None,
        full_shape: Ints | None = None,
        query_start: Ints = 0,
        key_start: Ints = 0,
        wrap: Bools = False,
        return_lse: bool,
        backend: str | None = None,
        stream: StreamOrDevice = None,
        **upstream: Any,
    ) -> mx.array | tuple[mx.array, mx.array]: ...


class Full(Named, Protocol):
    """``attention``."""

    @overload
    def __call__(
        self,
        query: mx.array,
        key: mx.array,
        value: mx.array,
        is_causal: bool = False,
        scale: float | None = None,
        seqlens_Q: Any = None,
        seqlens_KV: Any = None,
        cumulative_seqlen_Q: Any = None,
        cumulative_seqlen_KV: Any = None,
        max_seqlen_Q: int | None = None,
        max_seqlen_KV: int | None = None,
        *,
        return_lse: Literal[False] = False,
        backend: str | None = None,
        stream: StreamOrDevice = None,
        **upstream: Any,
    ) -> mx.array: ...

    @overload
    def __call__(
        self,
        query: mx.array,
        key: mx.array,
        value: mx.array,
        is_causal: bool = False,
        scale: float | None = None,
        seqlens_Q: Any = None,
        seqlens_KV: Any = None,
        cumulative_seqlen_Q: Any = None,
        cumulative_seqlen_KV: Any = None,
        max_seqlen_Q: int | None = None,
        max_seqlen_KV: int | None = None,
        *,
        return_lse: Literal[True],
        backend: str | None = None,
        stream: StreamOrDevice = None,
        **upstream: Any,
    ) -> tuple[mx.array, mx.array]: ...

    @overload
    def __call__(
        self,
        query: mx.array,
        key: mx.array,
        value: mx.array,
        is_causal: bool = False,
        scale: float | None = None,
        seqlens_Q: Any = None,
        seqlens_KV: Any = None,
        cumulative_seqlen_Q: Any = None,
        cumulative_seqlen_KV: Any = None,
        max_seqlen_Q: int | None = None,
        max_seqlen_KV: int | None = None,
        *,
        return_lse: bool,
        backend: str | None = None,
        stream: StreamOrDevice = None,
        **upstream: Any,
    ) -> mx.array | tuple[mx.array, mx.array]: ...


class Sequences(Named, Protocol):
    """``na1d_varlen``: a padded batch, or a list of one array per item."""

    @overload
    def __call__(
        self,
        query: Items,
        key: Items,
        value: Items,
        seq_lens: Any,
        kernel_size: Ints,
        dilation: Ints = 1,
        scale: float | None = None,
        *,
        stride: Ints = 1,
        is_causal: Bools = False,
        return_lse: Literal[False] = False,
        backend: str | None = None,
        stream: StreamOrDevice = None,
    ) -> Items: ...

    @overload
    def __call__(
        self,
        query: Items,
        key: Items,
        value: Items,
        seq_lens: Any,
        kernel_size: Ints,
        dilation: Ints = 1,
        scale: float | None = None,
        *,
        stride: Ints = 1,
        is_causal: Bools = False,
        return_lse: Literal[True],
        backend: str | None = None,
        stream: StreamOrDevice = None,
    ) -> tuple[Items, Items]: ...

    @overload
    def __call__(
        self,
        query: Items,
        key: Items,
        value: Items,
        seq_lens: Any,
        kernel_size: Ints,
        dilation: Ints = 1,
        scale: float | None = None,
        *,
        stride: Ints = 1,
        is_causal: Bools = False,
        return_lse: bool,
        backend: str | None = None,
        stream: StreamOrDevice = None,
    ) -> Items | tuple[Items, Items]: ...


class Grids(Named, Protocol):
    """``na2d_varlen`` and ``na3d_varlen``."""

    @overload
    def __call__(
        self,
        query: Items,
        key: Items,
        value: Items,
        spatial_sizes: Any,
        kernel_size: Ints,
        dilation: Ints = 1,
        scale: float | None = None,
        *,
        stride: Ints = 1,
        is_causal: Bools = False,
        return_lse: Literal[False] = False,
        backend: str | None = None,
        stream: StreamOrDevice = None,
    ) -> Items: ...

    @overload
    def __call__(
        self,
        query: Items,
        key: Items,
        value: Items,
        spatial_sizes: Any,
        kernel_size: Ints,
        dilation: Ints = 1,
        scale: float | None = None,
        *,
        stride: Ints = 1,
        is_causal: Bools = False,
        return_lse: Literal[True],
        backend: str | None = None,
        stream: StreamOrDevice = None,
    ) -> tuple[Items, Items]: ...

    @overload
    def __call__(
        self,
        query: Items,
        key: Items,
        value: Items,
        spatial_sizes: Any,
        kernel_size: Ints,
        dilation: Ints = 1,
        scale: float | None = None,
        *,
        stride: Ints = 1,
        is_causal: Bools = False,
        return_lse: bool,
        backend: str | None = None,
        stream: StreamOrDevice = None,
    ) -> Items | tuple[Items, Items]: ...


class Packed(Named, Protocol):
    """``neighborhood_attention_varlen``."""

    @overload
    def __call__(
        self,
        query: mx.array,
        key: mx.array,
        value: mx.array,
        metadata: dict[str, Any] | None = None,
        token_layout_list: Any = None,
        kernel_size: Ints | None = None,
        stride: Ints = 1,
        dilation: Ints = 1,
        is_causal: Bools = False,
        kernel_size_list: Any = None,
        stride_list: Any = None,
        dilation_list: Any = None,
        scale: float | None = None,
        backend: str | None = None,
        *,
        return_lse: Literal[False] = False,
        stream: StreamOrDevice = None,
        **upstream: Any,
    ) -> mx.array: ...

    @overload
    def __call__(
        self,
        query: mx.array,
        key: mx.array,
        value: mx.array,
        metadata: dict[str, Any] | None = None,
        token_layout_list: Any = None,
        kernel_size: Ints | None = None,
        stride: Ints = 1,
        dilation: Ints = 1,
        is_causal: Bools = False,
        kernel_size_list: Any = None,
        stride_list: Any = None,
        dilation_list: Any = None,
        scale: float | None = None,
        backend: str | None = None,
        *,
        return_lse: Literal[True],
        stream: StreamOrDevice = None,
        **upstream: Any,
    ) -> tuple[mx.array, mx.array]: ...

    @overload
    def __call__(
        self,
        query: mx.array,
        key: mx.array,
        value: mx.array,
        metadata: dict[str, Any] | None = None,
        token_layout_list: Any = None,
        kernel_size: Ints | None = None,
        stride: Ints = 1,
        dilation: Ints = 1,
        is_causal: Bools = False,
        kernel_size_list: Any = None,
        stride_list: Any = None,
        dilation_list: Any = None,
        scale: float | None = None,
        backend: str | None = None,
        *,
        return_lse: bool,
        stream: StreamOrDevice = None,
        **upstream: Any,
    ) -> mx.array | tuple[mx.array, mx.array]: ...


fused: Callable[[Face], Fused] = unchanged
full: Callable[[Face], Full] = unchanged
sequences: Callable[[Face], Sequences] = unchanged
grids: Callable[[Face], Grids] = unchanged
packed: Callable[[Face], Packed] = unchanged
