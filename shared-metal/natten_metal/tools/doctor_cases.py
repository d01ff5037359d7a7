"""The problems that the doctor examines, and what each computes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..problem.ops import AV, FULL, FUSED, QK
from ..problem.problem import Problem

# Largest error, as a fraction of the largest reference value, that rounding explains: inputs are rounded to the dtype
# on both sides, sums are float32, and the result is rounded once.
BOUNDS = {"float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}
# The op of a case that runs the split ops one after another.
SPLIT = "split"


@dataclass(frozen=True, slots=True)
class Case:
    """One problem. op: the fused op, full attention, or 'split' (qk, softmax, av); the rest as in public functions."""

    name: str
    shape: tuple[int, ...]
    kernel_size: tuple[int, ...]
    op: str = FUSED.name
    dtype: str = "float32"
    heads: int = 2
    kv_heads: int = 2
    dim: int = 32
    dim_v: int = 32
    stride: int = 1
    dilation: int = 1
    is_causal: bool = False
    additional: int = 0
    rpb: bool = False
    batch: int = 2

    def arguments(self) -> dict[str, Any]:
        """The window arguments of the public functions."""
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "dilation": self.dilation,
            "is_causal": self.is_causal,
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every input tensor, by the name of its argument."""

        def tokens(shape: tuple[int, ...], heads: int, dim: int) -> tuple[int, ...]:
            return (self.batch, *shape, heads, dim)

        found = {
            "query": tokens(self.shape, self.heads, self.dim),
            "key": tokens(self.shape, self.kv_heads, self.dim),
            "value": tokens(self.shape, self.kv_heads, self.dim_v),
        }
        if self.additional:
            found["additional_keys"] = tokens((self.additional,), self.kv_heads, self.dim)
            found["additional_values"] = tokens((self.additional,), self.kv_heads, self.dim_v)
        if self.rpb:
            found["rpb"] = (self.heads, *(2 * w - 1 for w in self.kernel_size))
        return found

    def problems(self) -> tuple[Problem, ...]:
        """What it asks of the planner: one problem, or the two of the split ops."""
        rank = len(self.shape)
        window = ((self.stride,) * rank, (self.dilation,) * rank, (self.is_causal,) * rank)
        return tuple(
            Problem(
                op,
                self.batch,
                self.shape,
                self.shape,
                self.heads,
                self.kv_heads,
                0 if op == AV.name else self.dim,
                0 if op == QK.name else self.dim_v,
                self.kernel_size,
                *window,
                1.0,
                self.dtype,
                self.additional,
                self.rpb and op != AV.name,
            )
            for op in ((QK.name, AV.name) if self.op == SPLIT else (self.op,))
        )


# Every kernel template in every dtype, and every rank; each walk staged and direct, with whole and padded channels, and
# with heads in a patch's rows; the widest head dims, whose kernels take the most registers.
CASES = (
    Case("1-D", (301,), (33,)),
    Case("1-D half, causal", (257,), (64,), dtype="float16", dim=64, dim_v=64, is_causal=True),
    Case("1-D bfloat16, dilated", (130,), (9,), dtype="bfloat16", dilation=3, dim=24, dim_v=40),
    Case("1-D long window", (400,), (350,), dim=64, dim_v=64, batch=1),
    Case("1-D widest heads", (43,), (9,), dim=192, dim_v=256, batch=1),
    Case("1-D half, keys and bias", (50,), (7,), dtype="float16", additional=5, rpb=True),
    Case("2-D", (24, 31), (7, 7)),
    Case("2-D half, long rows", (4, 72), (2, 60), dtype="float16"),
    Case("2-D strided", (24, 24), (8, 8), stride=4),
    Case("2-D grouped heads", (15, 17), (5, 5), heads=8, kv_heads=2),
    Case("2-D odd head dims", (13, 21), (5, 7), dim=20, dim_v=48),
    Case("2-D wide head", (9, 12), (5, 5), dim=128, dim_v=128, dtype="float16"),
    Case("2-D additional keys", (12, 13), (5, 5), additional=11),
    Case("2-D position bias", (14, 11), (5, 3), rpb=True),
    Case("2-D bfloat16, keys and bias", (9, 10), (3, 5), dtype="bfloat16", additional=9, rpb=True),
    Case("3-D", (6, 9, 10), (3, 5, 5)),
    Case("3-D half, causal, dilated", (6, 8, 8), (3, 3, 3), dtype="float16", is_causal=True, dilation=2),
    Case("3-D bfloat16", (5, 8, 9), (3, 3, 5), dtype="bfloat16"),
    Case("split 1-D half, causal", (75,), (13,), op=SPLIT, dtype="float16", is_causal=True, heads=4),
    Case("split 2-D, bias", (12, 11), (3, 5), op=SPLIT, rpb=True),
    Case("split 3-D bfloat16, bias", (4, 6, 7), (3, 3, 2), op=SPLIT, dtype="bfloat16", dim=20, dim_v=12, rpb=True),
    Case("attention", (130,), (130,), op=FULL.name, dim=64, dim_v=64),
)


def outputs(functional: Any, case: Case, tensors: dict[str, Any], softmax: Callable[[Any], Any], backend: str) -> Any:
    """The pair of tensors that a case computes with the functions of a package's module ``functional``."""
    query, key, value = (tensors[name] for name in ("query", "key", "value"))
    if case.op == FULL.name:
        return functional.attention(query, key, value, return_lse=True, backend=backend)
    if case.op == FUSED.name:
        given = {**tensors, **case.arguments()}
        return functional.neighborhood_attention(**given, return_lse=True, backend=backend)
    rank, options = len(case.shape), {**case.arguments(), "backend": backend}
    logits = getattr(functional, QK.faces[rank])(query, key, rpb=tensors.get("rpb"), **options)
    return logits, getattr(functional, AV.faces[rank])(softmax(logits), value, **options)
