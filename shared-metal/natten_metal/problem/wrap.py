"""Windows that pass over the end of an axis: a longitude, a panorama, a periodic box.

An axis that wraps is unrolled: the keys within reach of its ends are repeated beyond them, and the call becomes a
piece of a longer axis on which no window of the queries at hand reaches an end::

    keys        y z | a b c ... x y z | a b              window 5: two more keys on either side
    queries           a b c ... x y z

The longer axis begins a multiple of ``stride * dilation`` tokens before the first query, so that stride and dilation
groups stay as they were.
"""

from dataclasses import replace
from typing import Any, NamedTuple

from . import checks
from .ops import KEY
from .problem import TensorSpec

Piece = tuple[Any, Any, Any]  # full_shape, query_start, key_start


class Unrolled(NamedTuple):
    """One axis, in tokens. full: length of the longer axis; start: its first query; before, after: repeated keys."""

    full: int
    start: int
    before: int
    after: int


def unroll(length: int, window: int, stride: int, dilation: int) -> Unrolled:
    """The longer axis for one of ``length`` tokens, a multiple of ``stride * dilation``."""
    before = max(window // 2 - stride // 2, 0) * dilation
    after = max(window - window // 2 - (stride - stride // 2), 0) * dilation
    start = -(-window // stride) * stride * dilation
    return Unrolled(length + 2 * start, start, before, after)


def unrolled_axes(
    face: str,
    sides: dict[str, TensorSpec],
    rank: int | None,
    window: tuple[Any, ...],
    piece: Piece,
    wrap: Any,
    key_mask: TensorSpec | None = None,
) -> tuple[dict[int, Unrolled], Piece]:
    """The axes that wrap, unrolled, and the piece that the call becomes on them.

    sides: a tensor of the queries and one of the keys, by name. rank: of the face, if it has one. piece: the call's
    own, which must be whole on these axes. key_mask: that of the keys, if there is one.
    """
    for name, spec in sides.items():
        rank = checks.tensor_rank(face, name, spec, rank)
    assert rank is not None
    if key_mask is not None:
        checks.check_key_mask(face, key_mask, sides[KEY.name])
    per_axis = checks.window_arguments(face, rank, *window)
    wraps = checks.bools_per_axis(face, "wrap", wrap, rank)
    if not any(wraps):
        return {}, piece
    given = checks.piece_arguments(face, rank, *piece)
    shapes = {name: spec.shape[1:-2] for name, spec in sides.items()}
    if given is None:
        checks.same(face, "shape", shapes)
    full = list(next(iter(shapes.values())) if given is None else given.full_shape)
    checks.check_axes(face, tuple(full), *per_axis[:3])
    checks.check_wrap(face, wraps, per_axis, shapes, tuple(full))
    query_start = [0] * rank if given is None else list(given.query_start)
    key_start = [0] * rank if given is None else list(given.key_start)
    axes = {axis: unroll(full[axis], *(each[axis] for each in per_axis[:3])) for axis in range(rank) if wraps[axis]}
    for axis, longer in axes.items():
        full[axis], query_start[axis], key_start[axis] = longer.full, longer.start, longer.start - longer.before
    return axes, (tuple(full), tuple(query_start), tuple(key_start))


def longer_spec(spec: TensorSpec, axes: dict[int, Unrolled]) -> TensorSpec:
    """The spec of a tensor of keys after its ends are repeated."""
    shape = list(spec.shape)
    for axis, longer in axes.items():
        shape[1 + axis] += longer.before + longer.after
    return replace(spec, shape=tuple(shape))
