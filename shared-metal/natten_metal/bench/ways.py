"""The ways to compute a problem that are compared: the package's own, and what one would use instead of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..problem import mask
from ..problem.problem import Problem, all_keys
from . import results
from .problems import Named
from .subject import Call, Forward, Subject, Tensor

ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
# The framework's own scaled dot-product attention, over all pairs; and with the neighborhood as a mask.
SDPA, MASKED, GATHERED = "sdpa", "sdpa-masked", "gathered"


@dataclass(frozen=True, slots=True)
class Way:
    """One way. heads_first: the layout of its tensors. comparable: whether its output must equal the package's.

    work: the problem whose products it cannot do without. least_bytes: of memory beyond inputs, the same.
    make(inputs) -> its forward.
    """

    name: str
    heads_first: bool
    comparable: bool
    work: Problem
    least_bytes: int
    make: Callable[[Sequence[Tensor]], Forward]


def useful_flops(problem: Problem, direction: str) -> int:
    """Useful floating-point operations of a call: of the forward, and in training of the gradients too."""
    training = direction == results.TRAINING
    return mask.flops(problem) + (mask.flops(problem, backward=True) if training else 0)


class Inputs:
    """The tensors of a problem, made when first used: query, key, value, and the gradient of its output."""

    def __init__(self, named: Named, dtype: str, subject: Subject) -> None:
        self.dtype, self._shapes, self._subject = dtype, (*named.shapes, named.shapes[0]), subject

    @cached_property
    def heads_last(self) -> Sequence[Tensor]:
        """The package's layout, ``[B, *shape, H, D]``."""
        return self._subject.tensors(self._shapes, self.dtype)

    @cached_property
    def heads_first(self) -> Sequence[Tensor]:
        """The same numbers as ``[B, H, tokens, D]``."""
        return [self._subject.heads_first(each) for each in self.heads_last]

    def bytes(self, way: Way) -> int:
        """What the inputs of a way take."""
        one_layout = sum(math.prod(shape) for shape in self._shapes) * ITEM_BYTES[self.dtype]
        return one_layout * (2 if way.heads_first else 1)

    def of(self, way: Way) -> Sequence[Tensor]:
        """The inputs in a way's layout."""
        return self.heads_first if way.heads_first else self.heads_last

    def call(self, way: Way, forward: Forward, subject: Subject, training: bool) -> Call:
        """The call that is timed."""
        *inputs, flow = self.of(way)
        if training:
            return subject.training(forward, inputs, flow)
        return lambda: forward(*inputs)

    def output(self, way: Way, forward: Forward) -> Tensor:
        """The forward's output, heads-last."""
        out = forward(*self.of(way)[:3])
        return out.swapaxes(1, 2).reshape(self._shapes[0]) if way.heads_first else out


def others(named: Named, subject: Subject) -> list[str]:
    """The names of all ways but the package's own."""
    return [SDPA, MASKED, GATHERED, *subject.others(named)]


def ways(named: Named, problem: Problem, subject: Subject, backend: str) -> list[Way]:
    """All ways, the package's own first."""
    xp = subject.framework.operations
    tokens, heads = problem.queries, named.batch * named.heads
    logits = heads * tokens**2 * ITEM_BYTES[problem.dtype] if subject.stores_logits else 0
    everything = all_keys(problem)

    def seen(inputs: Sequence[Tensor]) -> Tensor:
        return mask.neighborhood_mask(problem, xp.tables(xp.device(inputs[0])))

    def own(inputs: Sequence[Tensor]) -> Forward:
        return lambda q, k, v: subject.attend(q, k, v, named.window, backend)

    def dense(inputs: Sequence[Tensor]) -> Forward:
        return lambda q, k, v: subject.dense(q, k, v, None)

    def masked(inputs: Sequence[Tensor]) -> Forward:
        found = seen(inputs)
        subject.wait([found])
        return lambda q, k, v: subject.dense(q, k, v, found)

    def gathered(inputs: Sequence[Tensor]) -> Forward:
        return gather(named, problem, subject, inputs)

    slots = math.prod(named.kernel_size)
    copies = 2 * heads * tokens * slots * named.dim * ITEM_BYTES[problem.dtype]
    found = [
        Way(subject.package, False, True, problem, 0, own),
        Way(SDPA, True, slots == tokens, everything, logits, dense),
        Way(MASKED, True, True, everything, logits + tokens**2, masked),
        Way(GATHERED, True, True, problem, copies, gathered),
    ]
    for name, make in subject.others(named).items():
        found.append(Way(name, True, True, problem, tokens**2, _with_mask(make, seen)))
    return found


def _with_mask(make: Any, seen: Callable[[Sequence[Tensor]], Tensor]) -> Callable[[Sequence[Tensor]], Forward]:
    def made(inputs: Sequence[Tensor]) -> Forward:
        forward: Forward = make(inputs, lambda: seen(inputs))
        return forward

    return made


def gather(named: Named, problem: Problem, subject: Subject, inputs: Sequence[Tensor]) -> Forward:
    """Every query's keys and values copied side by side (what ``unfold`` gives), then two small products."""
    xp = subject.framework.operations
    key, held = mask.slot_keys(problem, xp.tables(xp.device(inputs[0])))
    subject.wait([key, held])
    causal, times = any(problem.is_causal), problem.group_heads

    def forward(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        keys, values = (xp.repeat_heads(each, times) if times > 1 else each for each in (keys, values))
        logits = xp.einsum("bhnd,bhnwd->bhnw", query * problem.scale, xp.take(keys, key, 2))
        if causal:
            logits = xp.where(held, logits, -math.inf)
        return xp.einsum("bhnw,bhnwd->bhnd", xp.softmax(logits), xp.take(values, key, 2))

    return forward
