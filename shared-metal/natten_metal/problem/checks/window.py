"""The rules of a window: kernel_size, stride, dilation and is_causal, one entry per axis."""

from typing import Any, NoReturn

from .arguments import bools_per_axis, ints_per_axis

Window = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[bool, ...]]


def window_arguments(face: str, rank: int, kernel_size: Any, stride: Any, dilation: Any, is_causal: Any) -> Window:
    """The four window arguments, one entry per axis each, types checked."""
    return (
        ints_per_axis(face, "kernel_size", kernel_size, rank),
        ints_per_axis(face, "stride", stride, rank),
        ints_per_axis(face, "dilation", dilation, rank),
        bools_per_axis(face, "is_causal", is_causal, rank),
    )


def check_window(face: str, kernel_size: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> None:
    """The rules of a window on any axis: w, s, d >= 1; s <= w."""
    for name, values in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation)):
        for axis, value in enumerate(values):
            if value < 1:
                raise ValueError(f"{face}: {name} must be at least 1; axis {axis} has {value}")
    for axis, (w, s) in enumerate(zip(kernel_size, stride, strict=True)):
        if s > w:
            raise ValueError(f"{face}: stride must not exceed kernel_size; axis {axis} has {s} > {w}")


def check_axes(
    face: str,
    shape: tuple[int, ...],
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> None:
    """:func:`check_window`, and w * d <= L on each axis."""
    check_window(face, kernel_size, stride, dilation)
    for axis, (length, w, d) in enumerate(zip(shape, kernel_size, dilation, strict=True)):
        if w * d > length:
            raise ValueError(
                f"{face}: kernel_size * dilation must not exceed the axis length; "
                f"axis {axis} has {w} * {d} = {w * d} > {length}"
            )


def check_wrap(
    face: str, wrap: tuple[bool, ...], window: Window, shapes: dict[str, tuple[int, ...]], full: tuple[int, ...]
) -> None:
    """The rules of an axis that wraps: not causal, a multiple of stride * dilation long, and given whole.

    shapes: of the queries and of the keys, by name. full: tokens of the whole axes.
    """
    _, stride, dilation, is_causal = window
    for axis in (axis for axis, wraps in enumerate(wrap) if wraps):
        s, d = stride[axis], dilation[axis]
        if is_causal[axis]:
            reject_causal_wrap(face, axis)
        if full[axis] % (s * d):
            raise ValueError(
                f"{face}: the length of an axis that wraps must be a multiple of stride * dilation; "
                f"axis {axis} has length {full[axis]} and {s} * {d} = {s * d}"
            )
        for name, shape in shapes.items():
            if shape[axis] != full[axis]:
                raise ValueError(
                    f"{face}: an axis that wraps must be whole; {name} has {shape[axis]} of {full[axis]} tokens on "
                    f"axis {axis}"
                )


def reject_causal_wrap(face: str, axis: int) -> NoReturn:
    """Before and after mean nothing on a circle."""
    raise ValueError(f"{face}: an axis cannot both wrap and be causal; axis {axis} has wrap and is_causal")


def check_drawable(longest: int, limit: int) -> None:
    """ValueError if an axis is too long to be drawn with one character for each pair of tokens."""
    if longest > limit:
        raise ValueError(f"picture: at most {limit} tokens can be drawn; got {longest}")


def check_rpb_stride(face: str, name: str, stride: tuple[int, ...]) -> None:
    """NotImplementedError unless the stride is 1, as a relative positional bias requires."""
    if any(s > 1 for s in stride):
        raise NotImplementedError(f"{face}: {name} is defined for stride 1 only; got stride {stride}. Use stride=1")
