"""The ops, one record each: what an op reads, what it returns, and what its gradient is made of.

Everything that differs between ops is read from here: the planner, the kernels' programs, the C interface, the
launchers and the custom ops of both packages. No other shipped file spells an op's name.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .problem import Problem

Shape = tuple[int, ...]


def _always(problem: "Problem") -> bool:
    return True


@dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """A tensor that an op reads or returns.

    shape: its shape in a problem. accumulated: whether it has the dtype of sums (float32; float64 where the problem's
    is), and not the problem's own. batched: whether its first dimension is the batch. channels: whether its last one is
    (a head dim, or window slots). given: whether a problem has it at all. differentiable: whether it has a gradient; if
    not, it is a mask of bools. gradient: the name of its gradient, which has its shape.
    """

    name: str
    shape: Callable[["Problem"], Shape]
    accumulated: bool = False
    batched: bool = True
    channels: bool = True
    given: Callable[["Problem"], bool] = _always
    differentiable: bool = True
    gradient: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "gradient", f"{self.name}_grad")

    @property
    def optional(self) -> bool:
        """Whether there are problems without it."""
        return self.given is not _always

    def dtype(self, problem: "Problem") -> str:
        """Its dtype as kernels read or write it."""
        if not self.differentiable:
            return "bool"
        return sum_dtype(problem.dtype) if self.accumulated else problem.dtype


def sum_dtype(dtype: str) -> str:
    """The dtype in which tensors of ``dtype`` are summed, and which lse has."""
    return "float64" if dtype == "float64" else "float32"


def rows(problem: "Problem") -> Shape:
    """``[B, *shape, H]`` of the queries."""
    return (problem.batch, *problem.query_shape, problem.heads)


def columns(problem: "Problem") -> Shape:
    """``[B, *shape, H_kv]`` of the keys."""
    return (problem.batch, *problem.key_shape, problem.kv_heads)


def _additional(problem: "Problem") -> Shape:
    return (problem.batch, problem.additional, problem.kv_heads)


def _has_additional(problem: "Problem") -> bool:
    return problem.additional > 0


QUERY = Operand("query", lambda p: (*rows(p), p.head_dim))
KEY = Operand("key", lambda p: (*columns(p), p.head_dim))
VALUE = Operand("value", lambda p: (*columns(p), p.head_dim_v))
ADDITIONAL_KEYS = Operand("additional_keys", lambda p: (*_additional(p), p.head_dim), given=_has_additional)
ADDITIONAL_VALUES = Operand("additional_values", lambda p: (*_additional(p), p.head_dim_v), given=_has_additional)
RPB = Operand(
    "rpb",
    lambda p: (p.heads, *(2 * w - 1 for w in p.kernel_size)),
    accumulated=True,
    batched=False,
    channels=False,
    given=lambda p: p.has_rpb,
)
KEY_MASK = Operand(
    "key_mask",
    lambda p: (p.batch, *p.key_shape),
    channels=False,
    given=lambda p: p.has_key_mask,
    differentiable=False,
)
OUT = Operand("out", lambda p: (*rows(p), p.head_dim_v))
LSE = Operand("lse", rows, accumulated=True, channels=False)
LOGITS = Operand("logits", lambda p: (*rows(p), p.slots))
ATTN = Operand("attn", lambda p: (*rows(p), p.slots))


@dataclass(frozen=True, eq=False)
class Op:
    """One op. Compared by identity, so that hashing is fast; pickled by its name.

    name: as in :class:`Problem` and the custom ops. faces: the names of its public functions, by rank; the first one
    takes any rank ('' where there is none). They are looked up, never put together from a rank, which may be symbolic
    in a trace. inputs: in this order wherever tensors are listed; such a list ends before the key mask if there is
    none. forward, backward: the functions that compute the op and its gradient, in the C interface and on the pure and
    dense backends. bilinear: whether the op is linear in each of its first two inputs (and in rpb), so that its
    gradient has derivatives and reads no output. has_window: whether a query sees a window of keys, or all.
    """

    name: str
    faces: tuple[str, str, str, str]
    forward: str
    backward: str
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    bilinear: bool
    has_window: bool
    input_names: tuple[str, ...] = field(init=False)
    output_names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        for name, operands in (("input_names", self.inputs), ("output_names", self.outputs)):
            object.__setattr__(self, name, tuple(operand.name for operand in operands))

    def __reduce__(self) -> tuple[Callable[[str], "Op"], tuple[str]]:
        return op_named, (self.name,)

    @property
    def saved(self) -> tuple[Operand, ...]:
        """What the gradient reads besides the gradients of the outputs: inputs, then outputs."""
        if self.bilinear:
            return tuple(operand for operand in self.inputs if operand is not RPB)
        return self.inputs + self.outputs

    @property
    def ranked(self) -> bool:
        """Whether it has a face for each rank."""
        return self.faces[1] != self.faces[2]

    def reads(self, operand: Operand) -> bool:
        """Whether ``operand`` is among the inputs."""
        return operand in self.inputs


FUSED = Op(
    "na",
    ("neighborhood_attention", "na1d", "na2d", "na3d"),
    "forward",
    "backward",
    (QUERY, KEY, VALUE, ADDITIONAL_KEYS, ADDITIONAL_VALUES, RPB, KEY_MASK),
    (OUT, LSE),
    bilinear=False,
    has_window=True,
)
# The inputs of a fused call without a key mask, which is the last one.
UNMASKED_INPUTS = tuple(operand for operand in FUSED.inputs if operand is not KEY_MASK)
FULL = Op(
    "attention",
    ("attention", "attention", "attention", "attention"),
    "forward",
    "backward",
    (QUERY, KEY, VALUE),
    (OUT, LSE),
    bilinear=False,
    has_window=False,
)
QK = Op(
    "qk",
    ("", "na1d_qk", "na2d_qk", "na3d_qk"),
    "qk",
    "qk_backward",
    (QUERY, KEY, RPB),
    (LOGITS,),
    bilinear=True,
    has_window=True,
)
AV = Op(
    "av",
    ("", "na1d_av", "na2d_av", "na3d_av"),
    "av",
    "av_backward",
    (ATTN, VALUE),
    (OUT,),
    bilinear=True,
    has_window=True,
)
OPS = {op.name: op for op in (FUSED, FULL, QK, AV)}


def op_named(name: str) -> Op:
    """The op of that name; KeyError if there is none."""
    return OPS[name]
