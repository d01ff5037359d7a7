"""The problem that one call poses: frozen, hashable, free of tensors."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from .ops import FULL, OPS, Op

# A rank is a number of axes: 1-D sequences, 2-D images, 3-D volumes.
RANKS = (1, 2, 3)
DTYPES = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What the rules need to know about a tensor: ``shape``, ``dtype`` ('float32', ...), ``device``."""

    shape: tuple[int, ...]
    dtype: str
    device: str = ""


class Piece(NamedTuple):
    """Which part of a larger problem a call computes: the size of the whole, and where queries and keys begin in it.

    One entry per axis, in tokens.
    """

    full_shape: tuple[int, ...]
    query_start: tuple[int, ...]
    key_start: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: its window, and the ``queries`` and ``keys`` tokens at hand.

    full: tokens of the whole axis, of which those at hand begin at query_start and key_start. 0: the whole axis is at
    hand (in full attention, it is as long as the longer of queries and keys).
    """

    queries: int
    keys: int
    window: int
    stride: int
    dilation: int
    causal: bool
    full: int = 0
    query_start: int = 0
    key_start: int = 0

    def __post_init__(self) -> None:
        if not self.full:
            object.__setattr__(self, "full", max(self.queries, self.keys))


@dataclass(frozen=True, slots=True)
class Problem:
    """One neighborhood attention problem, whatever the framework.

    op: the op's name; :attr:`record` has all that is known about it (:mod:`.ops`).
    Layout is heads-last: query ``[batch, *query_shape, heads, head_dim]``, key ``[batch, *key_shape,
    kv_heads, head_dim]``, value ``[batch, *key_shape, kv_heads, head_dim_v]``. head_dim is 0 where the op reads no
    query, head_dim_v where it reads no value. piece: the part of a larger problem that this is; None for a whole one.
    has_key_mask: whether some keys at hand may be hidden from all queries.
    """

    op: str
    batch: int
    query_shape: tuple[int, ...]
    key_shape: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int
    head_dim_v: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    is_causal: tuple[bool, ...]
    scale: float
    dtype: str
    additional: int = 0
    has_rpb: bool = False
    piece: Piece | None = None
    has_key_mask: bool = False

    @property
    def record(self) -> Op:
        """The op's record: its inputs, outputs, gradient and names."""
        return OPS[self.op]

    @property
    def rank(self) -> int:
        """Number of axes: 1, 2 or 3."""
        return len(self.query_shape)

    @property
    def name(self) -> str:
        """The op's public name: 'na2d', 'na1d_qk', 'attention', ..."""
        return self.record.faces[self.rank]

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes, one :class:`Axis` each."""
        columns = zip(
            self.query_shape,
            self.key_shape,
            self.kernel_size,
            self.stride,
            self.dilation,
            self.is_causal,
            self.full_shape,
            self.query_start,
            self.key_start,
            strict=True,
        )
        return tuple(Axis(*column) for column in columns)

    @property
    def full_shape(self) -> tuple[int, ...]:
        """Tokens of the whole problem on each axis; of full attention, the longer of queries and keys."""
        if self.piece is not None:
            return self.piece.full_shape
        return self.query_shape if self.record.has_window else self.kernel_size

    @property
    def query_start(self) -> tuple[int, ...]:
        """The index of the first query in the whole problem, on each axis."""
        return (0,) * self.rank if self.piece is None else self.piece.query_start

    @property
    def key_start(self) -> tuple[int, ...]:
        """The index of the first key in the whole problem, on each axis."""
        return (0,) * self.rank if self.piece is None else self.piece.key_start

    @property
    def group_heads(self) -> int:
        """Query heads that read one key/value head (1 without grouped queries)."""
        return self.heads // self.kv_heads

    @property
    def slots(self) -> int:
        """Window slots a query has: prod(kernel_size), the last dimension of split logits."""
        return math.prod(self.kernel_size)

    @property
    def queries(self) -> int:
        """Query tokens of one batch item."""
        return math.prod(self.query_shape)

    @property
    def keys(self) -> int:
        """Key tokens of one batch item, additional ones not counted."""
        return math.prod(self.key_shape)


def describe(problem: Problem) -> str:
    """One line that names the problem in the words of the public signature."""
    p = problem
    parts: list[Any] = [
        f"{p.name}: batch {p.batch}, shape {p.query_shape}",
        *([f"keys {p.key_shape}"] if p.key_shape != p.query_shape else []),
        f"heads {p.heads}" + (f" on {p.kv_heads} kv heads" if p.kv_heads != p.heads else ""),
        f"head_dim {p.head_dim}" + (f" (values {p.head_dim_v})" if p.head_dim_v != p.head_dim else ""),
    ]
    if p.record.has_window:
        parts += [f"kernel_size {p.kernel_size}", f"stride {p.stride}", f"dilation {p.dilation}"]
    parts += [f"is_causal {p.is_causal}"]
    if p.piece:
        parts.append(f"a piece of {p.full_shape}: queries from {p.query_start}, keys from {p.key_start}")
    if p.additional:
        parts.append(f"{p.additional} additional keys")
    if p.has_rpb:
        parts.append("relative positional bias")
    if p.has_key_mask:
        parts.append("key mask")
    return ", ".join([*parts, p.dtype])


def all_keys(problem: Problem) -> Problem:
    """The ``attention`` of the same queries to all keys, additional ones included. Of ops that read query and value."""
    queries, keys = problem.queries, problem.keys + problem.additional
    return Problem(
        FULL.name,
        problem.batch,
        (queries,),
        (keys,),
        problem.heads,
        problem.kv_heads,
        problem.head_dim,
        problem.head_dim_v,
        (max(queries, keys),),
        (1,),
        (1,),
        (False,),
        problem.scale,
        problem.dtype,
    )
