"""The kernel templates, one record each: their buffers, what they walk, and the work of one brick.

A template is a function of the headers in ``kernels/``. Everything that differs between templates is read from its
record: the source text, strides, tiling, counted work and the smallest launch. No other shipped file spells a
template's name. To add one, write its header, its record here, and the program (:mod:`.op_launches`) that launches it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from .sizes import WIDE_SIDE

Shape = tuple[int, ...]

# What na_bwd_dq stores for each query, for the launches after it: lse in base 2, 1 / sum of weights, delta, 0.
STATS = 4
# Keys in a word of a key mask.
MASK_BITS = 32


class Sizes(NamedTuple):
    """The sizes that the shapes of a launch's buffers are made of.

    rows: ``[B, *shape, H]`` of the queries; keys: ``[B, *shape, H_kv]``; additional: ``[B, S, H_kv]``; slots: of a
    query's window; table: of the relative positional bias, per axis; parts: the outermost dimension of partial sums, or
    none.
    """

    rows: Shape
    keys: Shape
    additional: Shape
    dim: int
    dim_v: int
    slots: int
    table: Shape
    parts: Shape = ()

    @property
    def key_mask(self) -> Shape:
        """Words of the key mask: a bit for each key, lines along the last axis padded to whole words."""
        *lines, length, _ = self.keys
        return (*lines, -(-length // MASK_BITS))


@dataclass(frozen=True, slots=True, eq=False)
class Argument:
    """One buffer of an entry point.

    kind: 'T' (the tensors' dtype), 'R' (the result's), 'float', 'int' or 'long'. shape: in a launch of these sizes.
    output: whether the kernel writes it. when: the option of the instance that must be set for the buffer to exist; ''
    for always. stride: the stride block of the parameter array that tells where its elements lie; '' for contiguous
    ones. additional_stride: the same where the keys are additional ones, if it is another.
    """

    name: str
    kind: str
    shape: Callable[[Sizes], Shape]
    stride: str = ""
    output: bool = False
    when: str = ""
    additional_stride: str = ""


def _no_products(dim: int, dim_v: int) -> int:
    return 0


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """One kernel template.

    name: of the Metal function. arguments: its buffers, in the order of the function's parameters. products: of a patch
    and a brick over 8 channels, given the 8-channel blocks of D and D_v: each of S, dP, O, dV, dQ and dK has one for
    each block of its channels. sums: blocks of the sums of a row, given the same; 0 where no team of simdgroups can
    share a patch. reads_dim, reads_dim_v: whether rows or columns have channels of D, and of D_v. walks: whether it
    walks boxes of columns, which it may stage in threadgroup memory. transposed: whether its rows are keys, and its
    columns the queries that see them. slotted: whether its bricks know the window slot of each pair. tables: whether it
    sums in tables in threadgroup memory. rows: rows of a threadgroup, for templates that take rows in order instead of
    walking; otherwise 0. matmuls: where patches and bricks are those of the matrix units (kernels/mpp_walk.h), 16 rows
    and 16 columns, the matmul2d of a brick, each over all channels; otherwise 0. gathered: the same as products, of the
    columns that such a kernel gathers for a brick, if it gathers them.
    """

    name: str
    arguments: tuple[Argument, ...]
    products: Callable[[int, int], int]
    sums: Callable[[int, int], int] = _no_products
    reads_dim: bool = True
    reads_dim_v: bool = True
    walks: bool = True
    transposed: bool = False
    slotted: bool = False
    tables: bool = False
    rows: int = 0
    matmuls: int = 0
    gathered: Callable[[int, int], int] = _no_products

    @property
    def mpp(self) -> bool:
        """Whether it multiplies on matrix units. Such a template has neither bias nor key mask."""
        return self.matmuls > 0

    @property
    def side(self) -> int:
        """Rows of a patch, and columns of a brick."""
        return WIDE_SIDE if self.mpp else 8


_Q = Argument("q", "T", lambda s: (*s.rows, s.dim), "kQueryStride")
_K = Argument("k", "T", lambda s: (*s.keys, s.dim), "kKeyStride", additional_stride="kAdditionalKeyStride")
_V = Argument("v", "T", lambda s: (*s.keys, s.dim_v), "kValueStride", additional_stride="kAdditionalValueStride")
_ADDITIONAL_K = Argument(
    "additional_k", "T", lambda s: (*s.additional, s.dim), "kAdditionalKeyStride", when="additional"
)
_ADDITIONAL_V = Argument(
    "additional_v", "T", lambda s: (*s.additional, s.dim_v), "kAdditionalValueStride", when="additional"
)
_RPB = Argument("rpb", "float", lambda s: (s.rows[-1], *s.table), when="rpb")
_KEY_MASK = Argument("key_mask", "int", lambda s: s.key_mask, when="masked")
_PRM = Argument("prm", "long", lambda s: ())
_OUT_GRAD = Argument("out_grad", "T", lambda s: (*s.rows, s.dim_v), "kOutGradStride")
_STATS = Argument("stats", "float", lambda s: (*s.rows, STATS), "kLseStride")
# Attention weights, or gradients of logits: one channel for each window slot.
_ATTN = Argument("attn", "T", lambda s: (*s.rows, s.slots), "kQueryStride")


def _fused_only(argument: Argument) -> Argument:
    """An argument that na_rpb has where it recomputes the gradients of the fused op's logits."""
    return replace(argument, when="fused")


FORWARD = Template(
    "na_fwd",
    (
        *(_Q, _K, _V, _ADDITIONAL_K, _ADDITIONAL_V, _RPB, _KEY_MASK, _PRM),
        Argument("out", "T", lambda s: (*s.rows, s.dim_v), "kOutStride", output=True),
        Argument("lse", "float", lambda s: s.rows, "kLseStride", output=True),
    ),
    products=lambda dim, dim_v: dim + dim_v,
)
DELTA = Template(
    "na_delta",
    (
        _OUT_GRAD,
        Argument("out", "T", lambda s: (*s.rows, s.dim_v)),
        Argument("lse_grad", "float", lambda s: s.rows, when="lse_grad"),
        _PRM,
        Argument("delta", "float", lambda s: s.rows, output=True),
    ),
    products=_no_products,
    walks=False,
    rows=16,
)
QUERY_GRAD = Template(
    "na_bwd_dq",
    (
        *(_Q, _K, _V, _ADDITIONAL_K, _ADDITIONAL_V, _RPB, _KEY_MASK, _OUT_GRAD),
        Argument("lse", "float", lambda s: s.rows, "kLseStride"),
        Argument("delta", "float", lambda s: s.rows),
        _PRM,
        Argument("query_grad", "T", lambda s: (*s.rows, s.dim), "kQueryGradStride", output=True),
        Argument("stats", "float", lambda s: (*s.rows, STATS), output=True),
    ),
    products=lambda dim, dim_v: 2 * dim + dim_v,
    sums=lambda dim, dim_v: dim,
)
KEY_VALUE_GRAD = Template(
    "na_bwd_dkv",
    (
        *(_Q, _K, _V, _RPB, _KEY_MASK, _OUT_GRAD, _STATS, _PRM),
        Argument("key_grad", "R", lambda s: (*s.parts, *s.keys, s.dim), "kKeyGradStride", output=True),
        Argument("value_grad", "R", lambda s: (*s.parts, *s.keys, s.dim_v), "kValueGradStride", output=True),
    ),
    products=lambda dim, dim_v: 2 * dim + 2 * dim_v,
    sums=lambda dim, dim_v: dim + dim_v,
    transposed=True,
)
QK = Template(
    "na_qk",
    (*(_Q, _K, _RPB, _PRM), Argument("logits", "T", lambda s: (*s.rows, s.slots), "kOutStride", output=True)),
    products=lambda dim, dim_v: dim,
    reads_dim_v=False,
    slotted=True,
)
AV = Template(
    "na_av",
    (*(_ATTN, _V, _PRM), Argument("out", "T", lambda s: (*s.rows, s.dim_v), "kOutStride", output=True)),
    products=lambda dim, dim_v: dim_v,
    reads_dim=False,
    slotted=True,
)
AV_TRANSPOSED = Template(
    "na_av_t",
    (
        _ATTN,
        Argument("x", "T", lambda s: (*s.rows, s.dim_v), "kValueStride"),
        _PRM,
        Argument("out", "T", lambda s: (*s.keys, s.dim_v), "kOutStride", output=True),
    ),
    products=lambda dim, dim_v: dim_v,
    reads_dim=False,
    transposed=True,
    slotted=True,
)
RPB_GRAD = Template(
    "na_rpb",
    (
        *map(_fused_only, (_Q, _K, _V)),
        *(_RPB, _KEY_MASK),
        *map(_fused_only, (_OUT_GRAD, _STATS)),
        Argument("logits_grad", "T", lambda s: (*s.rows, s.slots), "kOutGradStride", when="slots"),
        _PRM,
        Argument("partial", "float", lambda s: (1, s.rows[-1], *s.table), output=True),
    ),
    products=lambda dim, dim_v: dim + dim_v,
    walks=False,
    tables=True,
)
SUM = Template(
    "na_sum",
    (
        Argument("partial", "float", lambda s: s.rows[:1]),
        _PRM,
        Argument("out", "T", lambda s: s.rows[:1], output=True),
    ),
    products=_no_products,
    walks=False,
    rows=256,
)
TEMPLATES = {
    template.name: template
    for template in (FORWARD, DELTA, QUERY_GRAD, KEY_VALUE_GRAD, QK, AV, AV_TRANSPOSED, RPB_GRAD, SUM)
}


def _on_matrix_units(name: str, template: Template, matmuls: int, gathered: Callable[[int, int], int]) -> Template:
    """The template that computes the same on matrix units."""
    return replace(
        template,
        name=name,
        arguments=tuple(a for a in template.arguments if a not in (_RPB, _KEY_MASK)),
        sums=_no_products,
        matmuls=matmuls,
        gathered=gathered,
    )


# The templates on the matrix units of Apple10 and later, by the name of the one that computes the same without them.
ON_MATRIX_UNITS = {
    FORWARD.name: _on_matrix_units(
        "na_fwd_mpp",
        FORWARD,
        matmuls=2,
        gathered=lambda dim, dim_v: dim + dim_v,
    ),
    QUERY_GRAD.name: _on_matrix_units(
        "na_bwd_dq_mpp",
        QUERY_GRAD,
        matmuls=3,
        gathered=lambda dim, dim_v: dim + dim_v,
    ),
    KEY_VALUE_GRAD.name: _on_matrix_units(
        "na_bwd_dkv_mpp",
        KEY_VALUE_GRAD,
        matmuls=4,
        gathered=lambda dim, dim_v: 2 * dim + dim_v,
    ),
}
# The template that computes the same on 8x8 products, of any template.
NARROW = TEMPLATES | {record.name: TEMPLATES[name] for name, record in ON_MATRIX_UNITS.items()}
MPP_TEMPLATES = {template.name: template for template in ON_MATRIX_UNITS.values()}
# Whether matrix units multiply as kernels/mpp.h takes it, on 16 rows and 16 columns (:mod:`..plan.matrix_units`).
MPP_CHECK = Template(
    "na_mpp_check",
    (
        Argument("rows", "T", lambda s: (WIDE_SIDE, s.dim)),
        Argument("columns", "T", lambda s: (WIDE_SIDE, s.dim)),
        _PRM,
        Argument("found", "float", lambda s: (2 * (WIDE_SIDE * (WIDE_SIDE + s.dim + 2) + 2),), output=True),
    ),
    products=_no_products,
    walks=False,
    matmuls=4,
)
