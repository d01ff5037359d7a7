"""The plain operations that the shared bodies need: each package has one module, ``_operations``, that provides them.

Besides these, they use what torch's and MLX's tensors have by the same name: ``shape``, ``dtype``, ``flatten``,
``swapaxes``, ``sum``, ``cumsum``, ``all``, ``any``, indexing by slices, and operators.
"""

from collections.abc import Hashable, Sequence
from typing import Any, Protocol, TypeAlias

from ..problem.interval import TableNamespace

Tensor: TypeAlias = Any
Dtype: TypeAlias = Any
Tensors = tuple[Tensor, ...]


class Operations(Protocol):
    """Operations on the current stream. All are differentiable any number of times, unless stated otherwise."""

    # --- dtypes and new tensors --------------------------------------------------------------------

    @property
    def float32(self) -> Dtype: ...

    @property
    def float64(self) -> Dtype: ...

    @property
    def int32(self) -> Dtype: ...

    @property
    def int64(self) -> Dtype: ...

    def detach(self, tensor: Tensor, /) -> Tensor:
        """The same numbers, through which no gradient flows."""

    def astype(self, tensor: Tensor, dtype: Dtype) -> Tensor: ...

    def zeros(self, shape: tuple[int, ...], dtype: Dtype, like: Tensor) -> Tensor:
        """Zeros on the device of ``like``."""

    def integers(self, values: Sequence[int], dtype: Dtype, like: Tensor) -> Tensor:
        """A vector on the device of ``like``."""

    def device(self, tensor: Tensor) -> Hashable:
        """Where a tensor is; None for MLX, whose arrays have no device."""

    def tables(self, device: Any) -> TableNamespace:
        """The array namespace of index arithmetic on a device."""

    def fixed_shape(self, tensor: Tensor) -> Tensor:
        """The same tensor, after telling a tracer with symbolic sizes that these are its sizes."""

    # --- element by element ------------------------------------------------------------------------

    def where(self, condition: Tensor, a: Any, b: Any) -> Tensor: ...

    def exp(self, tensor: Tensor) -> Tensor: ...

    def log(self, tensor: Tensor) -> Tensor: ...

    def isfinite(self, tensor: Tensor) -> Tensor: ...

    def either(self, a: Tensor, b: Tensor) -> Tensor:
        """Logical or of bools."""

    def spoil(self, result: Tensor, marks: Tensor) -> Tensor:
        """``result`` with NaN where ``marks`` is true; no gradient flows through those."""

    # --- along axes --------------------------------------------------------------------------------

    def amax(self, tensor: Tensor, axis: int, keepdims: bool, /) -> Tensor:
        """The maximum along an axis."""

    def softmax(self, tensor: Tensor, /) -> Tensor:
        """Over the last axis, with sums in float32 at least."""

    def stack(self, tensors: list[Tensor], /) -> Tensor:
        """Along a new first axis."""

    def concatenate(self, tensors: list[Tensor], axis: int, /) -> Tensor: ...

    def contiguous(self, tensor: Tensor) -> Tensor:
        """The same tensor, in memory in the order of its axes, if the framework lets users see that."""

    def moveaxis(self, tensor: Tensor, source: int, target: int, /) -> Tensor: ...

    def unflatten(self, tensor: Tensor, axis: int, shape: tuple[int, ...], /) -> Tensor:
        """One axis as several."""

    def parts(self, tensor: Tensor) -> Sequence[Tensor]:
        """``[..., parts, heads, head_dim]`` as one tensor per part."""

    def repeat_heads(self, tensor: Tensor, count: int, /) -> Tensor:
        """``[B, heads, ...]`` with each head ``count`` times."""

    def pad(self, tensor: Tensor, widths: list[tuple[int, int]], value: Any) -> Tensor:
        """``tensor`` with ``value`` before and after the entries of each axis; widths: how many, by axis."""

    def add_at(self, tensor: Tensor, where: tuple[slice, ...], part: Tensor) -> Tensor:
        """``tensor``, which the caller must not use again, with ``part`` added to a box; not differentiable."""

    def flip(self, tensor: Tensor, axis: int, /) -> Tensor:
        """The axis in reverse order."""

    def einsum(self, equation: str, a: Tensor, b: Tensor, /) -> Tensor: ...

    # --- indexing ----------------------------------------------------------------------------------

    def take(self, tensor: Tensor, index: Tensor, axis: int) -> Tensor:
        """Entries along an axis by an index of any shape, whose axes replace that one; not differentiable."""

    def gather(self, tensor: Tensor, index: Tensor) -> Tensor:
        """Entries along the last axis; leading axes of the index that are missing or 1 are broadcast."""

    def scatter(self, tensor: Tensor, index: Tensor, entries: int) -> Tensor:
        """The reverse of :meth:`gather`: ``[B, H, queries, slots]`` at their entries, 0 elsewhere.

        The last entry is undefined: several slots may refer to it.
        """


def compute_dtype(xp: Operations, tensor: Tensor) -> Dtype:
    """The dtype of sums: float32, or float64 for float64."""
    return xp.float64 if tensor.dtype == xp.float64 else xp.float32


def largest(xp: Operations, tensor: Tensor, axis: int, keepdims: bool) -> Tensor:
    """The maximum along an axis; no gradient flows through it."""
    return xp.amax(xp.detach(tensor), axis, keepdims)


def pad(xp: Operations, tensor: Tensor, axes: dict[int, tuple[int, int]], value: Any = 0) -> Tensor:
    """``tensor`` with entries of ``value`` at the ends of ``axes``; by axis, how many before it and after it."""
    widths = [(0, 0)] * len(tensor.shape)
    for axis, width in axes.items():
        widths[axis] = width
    return xp.pad(tensor, widths, value)
