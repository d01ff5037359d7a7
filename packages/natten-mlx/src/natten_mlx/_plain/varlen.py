"""Items of different sizes in plain operations of MLX: for the dense backend, exported graphs and lists.

One gather of all items' tokens, one split, one launch per kind of item, one concatenation and one gather: each is
linear in the number of tokens, and so is its derivative. Lists need neither gather.
"""

import math
from itertools import accumulate
from typing import Any

import mlx.core as mx

from .._autodiff import seen_through
from .._metal.plan.backend import DENSE
from .._metal.problem import ragged
from .._metal.problem.ragged import KEYS, QUERIES
from .._tensors import fixed_shape, made_for
from .._varlen_nodes import Arrays, Parts, Ragged, blank_outputs


def attend(call: Ragged, *arrays: mx.array) -> tuple[Arrays, Arrays]:
    """Outs and lses. arrays: queries, keys, values, and rpb if there is one."""
    rank = len(call.problem.query_shape)
    groups = call.groups if call.kind == "listed" else ragged.groups(call.table, rank, call.kind, None)
    if not groups:
        return call(*arrays)
    with mx.stream(call.stream):
        if call.backend == DENSE.name and not seen_through():
            arrays = tuple(map(fixed_shape, arrays))  # the sizes belong to this call
        parts = call.split(arrays)
        if call.kind == "listed":
            return _listed(call, groups, parts)
        queries, keys, values, rpb = parts
        padded = queries[0].shape[1:-2]
        pieces = [
            _batches(call.kind, each, groups, side, padded)
            for each, side in ((queries, QUERIES), (keys, KEYS), (values, KEYS))
        ]
        results = [call.launch(group, (*own, *rpb)) for group, *own in zip(groups, *pieces, strict=True)]
        found = zip(*results, strict=True)
        blank = blank_outputs(queries, values)
        outs, lses = (_put(call.kind, made[0], groups, padded, own) for made, own in zip(blank, found, strict=True))
    return outs, lses


def _tokens(kind: str, groups: tuple[ragged.Group, ...], side: int, padded: tuple[int, ...]) -> list[int]:
    """The tokens of all items, launch after launch, in the flat order of a padded or packed array."""
    return [number for group in groups for number in ragged.tokens_of(group, side, kind, padded)]


def _batches(
    kind: str, arrays: Arrays, groups: tuple[ragged.Group, ...], side: int, padded: tuple[int, ...]
) -> list[mx.array]:
    """For each launch its items, ``[n, *shape, ...]``."""
    shapes = [(len(group.starts), *(group.queries, group.keys)[side]) for group in groups]
    flat = arrays[0].flatten(0, -3)
    flat = mx.take(flat, mx.array(_tokens(kind, groups, side, padded), mx.int64), 0)
    ends = list(accumulate(math.prod(shape) for shape in shapes))
    parts = mx.split(flat, ends[:-1])
    return [part.reshape(*shape, *flat.shape[1:]) for part, shape in zip(parts, shapes, strict=True)]


def _listed(call: Ragged, groups: tuple[ragged.Group, ...], parts: Parts) -> tuple[Arrays, Arrays]:
    """Items that already are separate arrays. parts: of ``call.split``."""
    queries, _, values, _ = parts
    outs: list[Any] = [None] * len(queries)
    lses: list[Any] = [None] * len(queries)
    for group in groups:
        out, lse = call.launch(group, call.given(group, parts))
        if len(group.starts) == 1:
            item = group.starts[0][QUERIES]
            outs[item], lses[item] = mx.squeeze(out, 0), mx.squeeze(lse, 0)
            continue
        pieces = (mx.split(each, len(group.starts)) for each in (out, lse))
        for start, own, own_lse in zip(group.starts, *pieces, strict=True):
            outs[start[QUERIES]], lses[start[QUERIES]] = mx.squeeze(own, 0), mx.squeeze(own_lse, 0)
    for item, out in enumerate(outs):
        if out is None:
            blank = blank_outputs(queries[item : item + 1], values[item : item + 1])
            outs[item], lses[item] = (made_for(queries[item], own[0]) for own in blank)
    return tuple(outs), tuple(lses)


def _put(kind: str, whole: mx.array, groups: tuple[ragged.Group, ...], padded: tuple[int, ...], found: Any) -> Arrays:
    """The results of the launches at the positions of their items; ``whole`` elsewhere."""
    axis = len(padded)
    filler = whole.flatten(0, axis)
    flat = mx.concatenate([batch.flatten(0, batch.ndim - filler.ndim) for batch in found])
    # For each token the row of its result, or its own row of ``whole`` if none is computed.
    tokens, total = _tokens(kind, groups, QUERIES, padded), filler.shape[0]
    rows = list(range(flat.shape[0], flat.shape[0] + total))
    for row, token in enumerate(tokens):
        rows[token] = row
    found = mx.take(mx.concatenate([flat, filler]), mx.array(rows, mx.int64), 0)
    return (found.reshape(whole.shape),)
