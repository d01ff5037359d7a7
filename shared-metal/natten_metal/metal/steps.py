"""The programs of the Metal path: which kernels run, on which tensors, for each op and its gradient.

A :class:`Step` is one launch as pure data. Tensors are named; a launcher binds the named inputs, allocates
the outputs, fills in strides, and launches. The same programs serve every host.
"""

import itertools
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

from ..problem.ops import OPS
from ..problem.problem import Problem
from .slots import COUNT, SLOTS
from .source import TRANSPOSED, WALKING, Instance
from .tiles import COLUMNS, DIMS, ROWS, SOFTMAX_BRICKS, Tiling, chunk_size, padded_dim, patch_count, tiling

T = TypeVar("T")  # a framework's tensor

# Threadgroups that share the sum over all queries or tiles.
MOST_PARTS = 64
MOST_TABLE = 4096
# What na_bwd_dq leaves of a query for the steps behind it: lse in base 2, 1 / sum of weights, delta, 0.
STATS = 4
# Rows and threads of a threadgroup of na_delta.
DELTA_ROWS, DELTA_THREADS = 16, 128
# Simdgroups that a threadgroup may have; fewer where the kernel's registers would not fit and the host cannot tell.
MOST_SIMDGROUPS = 8
CAUTIOUS_SIMDGROUPS, CAUTIOUS_DIM = 4, 128
# A sum of more terms than this is taken in parts of so many bricks (kernels/sums.h). Of a model of the order of sums:
# 4096 random terms lose 2e-6, 65,536 alike ones 9e-4, which 16 bits do not hold.
LONGEST_SUM, PART = {"float32": 4096, "float16": 65_536, "bfloat16": 65_536}, 64
# What each op returns, by the names in its program.
RESULTS = {op.name: op.output_names for op in OPS.values()}
# Tensors that kernels read as contiguous ones (rpb in float32); all others may have any strides.
CONTIGUOUS = frozenset({"rpb", "out", "lse", "lse_grad"})


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor that a step makes: the kernel's argument, its name in the program, shape and dtype."""

    argument: str
    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel launch. grid: threadgroups; threads: of one. inputs: (argument, tensor name) pairs.

    params holds every slot but the strides; ``bricks`` and ``full`` are the launch's exact work (0 where it
    walks no bricks).
    """

    instance: Instance
    grid: tuple[int, int, int]
    threads: int
    params: tuple[int, ...]
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[Output, ...]
    bricks: int = 0
    full: int = 0

    @property
    def products(self) -> int:
        """8x8 products of the launch, exactly: simdgroup multiply-accumulates."""
        return self.bricks * self.instance.products

    @property
    def stride_slots(self) -> dict[str, str]:
        """Argument -> the stride block it fills."""
        return self.instance.stride_slots

    def __str__(self) -> str:
        """The launch in words, without its parameters."""
        grid = " x ".join(map(str, self.grid))
        return f"kernel {self.instance.name}: {grid} threadgroups of {self.threads} threads"


def bits_of(scale: float) -> int:
    """The scale as the kernels read it: float32 bits of scale * log2(e)."""
    return int(struct.unpack("<i", struct.pack("<f", scale * math.log2(math.e)))[0])


def strides_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Element strides of a contiguous tensor."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def stride_block(strides: tuple[int, ...], channels: bool) -> tuple[int, ...]:
    """Strides of ``[B, *shape, H(, D)]`` in the order of a slot block: batch, head, axes."""
    kept = strides[:-1] if channels else strides
    return (kept[0], kept[-1], *kept[1:-1])


def with_strides(step: Step, strides: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The parameter array of a step. strides: of the tensors by argument; those not named keep zeros."""
    slots = list(step.params)
    for argument, own in strides.items():
        block = step.stride_slots.get(argument)
        if block is None:
            continue
        if step.instance.every and argument in ("key_grad", "value_grad"):
            own = own[1:]  # the parts lie outermost
        values = stride_block(own, channels=argument != "lse")
        first, _ = SLOTS[block]
        slots[first : first + len(values)] = values
    return tuple(slots)


def fills_words(step: Step) -> bool:
    """Whether the channels of every staged token fill whole 16-byte words; a host must also know where tokens start."""
    first, count = SLOTS["kDim"][0], 2
    dims = step.params[first : first + count]
    padded = (step.instance.dim, step.instance.dim_v)
    return step.instance.template in WALKING and all(p in (0, dim) for p, dim in zip(padded, dims, strict=True))


def backward_tensors(op: str, inputs: dict[str, T], grads: Sequence[T | None], outputs: Sequence[T]) -> dict[str, T]:
    """The tensors that a gradient's program may read, by name; gradients that are None are left out."""
    names = RESULTS[op]
    saved = dict(zip(names, outputs, strict=True))
    given = {f"{name}_grad": grad for name, grad in zip(names, grads, strict=True) if grad is not None}
    return inputs | saved | given


def cautious_simdgroups(problem: Problem) -> int:
    """Simdgroups whose registers fit any GPU, where the host does not say how many threads a kernel allows."""
    widest = padded_dim(max(problem.head_dim, problem.head_dim_v))
    return CAUTIOUS_SIMDGROUPS if widest >= CAUTIOUS_DIM else MOST_SIMDGROUPS


def parameters(problem: Problem, values: dict[str, int | Iterable[int]]) -> tuple[int, ...]:
    """The parameter array of a launch on ``problem``, strides left out; ``values`` go before the problem's own."""
    p = problem
    slots = [0] * COUNT
    fixed: dict[str, int | Iterable[int]] = {
        "kHeads": p.heads, "kGroupHeads": p.group_heads, "kDim": p.head_dim, "kDimV": p.head_dim_v,
        "kScaleBits": bits_of(p.scale), "kAdditional": p.additional, "kParts": 1, "kQueryShape": p.query_shape,
        "kKeyShape": p.key_shape, "kWindow": p.kernel_size, "kStride": p.stride, "kDilation": p.dilation,
        "kCausal": [int(c) for c in p.is_causal], "kBatch": p.batch, "kRowCount": p.batch * p.queries * p.heads,
    }  # fmt: skip
    for name, value in (fixed | values).items():
        first, _ = SLOTS[name]
        given = [value] if isinstance(value, int) else list(value)
        slots[first : first + len(given)] = given
    return tuple(slots)


def _walk(
    problem: Problem, template: str, inputs: dict[str, str], outputs: tuple[Output, ...], most: int, **options: object
) -> Step:
    """A step of a walking template: its tiling, grid and parameters."""
    transposed = template in TRANSPOSED
    dim = 0 if template in ("na_av", "na_av_t") else padded_dim(problem.head_dim)
    dim_v = 0 if template == "na_qk" else padded_dim(problem.head_dim_v)
    chosen: Tiling = tiling(problem, transposed, dim, dim_v, most)
    instance = Instance(
        template, problem.dtype, problem.rank, dim, dim_v, chosen.patch, chosen.heads, chosen.simdgroups,
        chosen.chunk, SOFTMAX_BRICKS, chosen.stage, part=_part(problem.dtype, terms(problem, transposed)),
        **options,  # type: ignore[arg-type]
    )  # fmt: skip
    heads = problem.kv_heads if transposed else problem.heads // chosen.heads
    grid = (heads, math.prod(chosen.tiles), problem.batch * math.prod(problem.dilation))
    times = problem.batch * problem.kv_heads
    bricks, full = chosen.bricks.executed * times, chosen.bricks.full * times
    if instance.extra:
        patches = patch_count(problem, chosen.patch) * problem.batch * heads
        bricks += patches * -(-problem.additional // COLUMNS)
        full += patches * (problem.additional // COLUMNS)
    params = parameters(problem, {"kTiles": chosen.tiles})
    return Step(instance, grid, 32 * chosen.simdgroups, params, tuple(inputs.items()), outputs, bricks, full)


def terms(problem: Problem, transposed: bool) -> int:
    """The most terms that a row's sums have: keys of a query, or queries of a key with all their heads (most, where
    windows shift at borders).
    """
    count = math.prod(min(axis.window, axis.queries if transposed else axis.keys) for axis in problem.axes)
    return count * problem.group_heads if transposed else count + problem.additional


def _part(dtype: str, count: int) -> int:
    """Bricks of a part of a sum of ``count`` terms."""
    return PART if count > LONGEST_SUM[dtype] else 0


def _sum(problem: Problem, partial: str, name: str, shape: tuple[int, ...], parts: int, dtype: str) -> Step:
    count = math.prod(shape)
    instance = Instance("na_sum", dtype, 1, 0, 0, simdgroups=8, stage=False)
    params = parameters(problem, {"kParts": parts, "kRowCount": count})
    output = Output("out", name, shape, dtype)
    return Step(instance, (-(-count // 256), 1, 1), 256, params, (("partial", partial),), (output,))


@lru_cache(maxsize=256)
def forward(problem: Problem, most: int = MOST_SIMDGROUPS) -> tuple[Step, ...]:
    """The launches of an op. most: simdgroups that a threadgroup may have."""
    p = problem
    rows = (p.batch, *p.query_shape, p.heads)
    if p.op == "qk":
        bias = {"bias": "rpb"} if p.has_rpb else {}
        output = (Output("logits", "logits", (*rows, p.slots), p.dtype),)
        return (_walk(p, "na_qk", {"q": "query", "k": "key"} | bias, output, most, bias=p.has_rpb),)
    output = (Output("out", "out", (*rows, p.head_dim_v), p.dtype),)
    if p.op == "av":
        return (_walk(replace(p, scale=1.0), "na_av", {"attn": "attn", "v": "value"}, output, most),)
    inputs = _tensors(p)
    lse = Output("lse", "lse", rows, "float32")
    return (_walk(p, "na_fwd", inputs, (*output, lse), most, bias=p.has_rpb, extra=p.additional > 0),)


def _tensors(p: Problem) -> dict[str, str]:
    inputs = {"q": "query", "k": "key", "v": "value"}
    if p.additional:
        inputs |= {"extra_k": "additional_keys", "extra_v": "additional_values"}
    return inputs | ({"bias": "rpb"} if p.has_rpb else {})


@lru_cache(maxsize=256)
def backward(problem: Problem, has_lse_grad: bool, most: int = MOST_SIMDGROUPS) -> tuple[Step, ...]:
    """The launches of an op's gradient, from the gradients of its outputs and what the forward saved."""
    return {"qk": _qk_backward, "av": _av_backward}.get(problem.op, _fused_backward)(problem, has_lse_grad, most)


def _fused_backward(p: Problem, has_lse_grad: bool, most: int) -> tuple[Step, ...]:
    rows = (p.batch, *p.query_shape, p.heads)
    count = math.prod(rows)
    delta = Instance("na_delta", p.dtype, p.rank, 0, 0, stage=False, lse_grad=has_lse_grad)
    given = {"out_grad": "out_grad", "out": "out"} | ({"lse_grad": "lse_grad"} if has_lse_grad else {})
    steps = [
        Step(
            delta, (-(-count // DELTA_ROWS), 1, 1), DELTA_THREADS, parameters(p, {}), tuple(given.items()),
            (Output("delta", "delta", rows, "float32"),),
        )
    ]  # fmt: skip
    rows_of = {"out_grad": "out_grad", "lse": "lse", "delta": "delta"}
    made = (
        Output("query_grad", "query_grad", (*rows, p.head_dim), p.dtype),
        Output("stats", "stats", (*rows, STATS), "float32"),
    )
    options = {"bias": p.has_rpb}
    steps.append(_walk(p, "na_bwd_dq", _tensors(p) | rows_of, made, most, extra=p.additional > 0, **options))
    saved = {"out_grad": "out_grad", "stats": "stats"}
    plain = {arg: name for arg, name in _tensors(p).items() if not arg.startswith("extra")}
    keys = (p.batch, *p.key_shape, p.kv_heads)
    outputs = (
        Output("key_grad", "key_grad", (*keys, p.head_dim), p.dtype),
        Output("value_grad", "value_grad", (*keys, p.head_dim_v), p.dtype),
    )
    steps.append(_walk(p, "na_bwd_dkv", plain | saved, outputs, most, **options))
    if p.additional:
        steps += _additional_backward(p, saved, most)
    if p.has_rpb:
        steps += _bias_backward(p, plain | saved, slots=False, most=most)
    return tuple(steps)


def _additional_backward(p: Problem, saved: dict[str, str], most: int) -> list[Step]:
    """dK and dV of additional keys: every query contributes, in parts that are summed in order."""
    dim, dim_v = padded_dim(p.head_dim), padded_dim(p.head_dim_v)
    base = tiling(p, True, dim, dim_v, most)
    simdgroups = min(base.simdgroups, -(-p.additional // ROWS))
    tiles = -(-p.additional // (ROWS * simdgroups))
    parts = max(1, min(MOST_PARTS, p.query_shape[0], 256 // (tiles * p.batch * p.kv_heads) or 1))
    shape, shape_v = ((p.batch, p.additional, p.kv_heads, d) for d in (p.head_dim, p.head_dim_v))
    # Every query is a column: the box's rows are as long as rows get, and staged if one brick fits.
    stage = chunk_size(p.dtype, dim, dim_v) >= COLUMNS
    instance = Instance(
        "na_bwd_dkv", p.dtype, p.rank, dim, dim_v, base.patch, 1, simdgroups, base.chunk, SOFTMAX_BRICKS, stage,
        every=True, part=_part(p.dtype, math.prod(p.query_shape) * p.group_heads // parts),
    )  # fmt: skip
    params = parameters(p, {"kParts": parts, "kKeyGradPart": math.prod(shape), "kValueGradPart": math.prod(shape_v)})
    inputs = {"q": "query", "k": "additional_keys", "v": "additional_values"} | saved
    outputs = (
        Output("key_grad", "additional_keys_parts", (parts, *shape), "float32"),
        Output("value_grad", "additional_values_parts", (parts, *shape_v), "float32"),
    )
    grid = (p.kv_heads, tiles * parts, p.batch)
    return [
        Step(instance, grid, 32 * simdgroups, params, tuple(inputs.items()), outputs, *_every_bricks(p, parts)),
        _sum(p, "additional_keys_parts", "additional_keys_grad", shape, parts, p.dtype),
        _sum(p, "additional_values_parts", "additional_values_grad", shape_v, parts, p.dtype),
    ]


def _every_bricks(p: Problem, parts: int) -> tuple[int, int]:
    """Bricks, and full ones, of all additional keys against all queries, whose outermost axis is cut in parts."""
    cuts = [p.query_shape[0] * part // parts for part in range(parts + 1)]
    pieces = [after - before for before, after in itertools.pairwise(cuts)]
    lengths = pieces if p.rank == 1 else [p.query_shape[-1]] * math.prod(p.query_shape[:-1])
    times = p.batch * p.heads * -(-p.additional // ROWS)
    return times * sum(-(-n // COLUMNS) for n in lengths), times * sum(n // COLUMNS for n in lengths)


def _bias_backward(p: Problem, inputs: dict[str, str], slots: bool, most: int) -> list[Step]:
    """The bias's gradient: tables of sums, one per part, summed in order."""
    sizes = [2 * w - 1 for w in p.kernel_size]
    entries = math.prod(sizes)
    table = next(size for size in (64, 256, 1024, MOST_TABLE) if size >= entries)
    dim, dim_v = (DIMS[0],) * 2 if slots else (padded_dim(p.head_dim), padded_dim(p.head_dim_v))
    chosen = tiling(p, False, dim, dim_v, min(most, 8192 // table), in_rows=False)
    instance = Instance(
        "na_bias", p.dtype, p.rank, dim, dim_v, chosen.patch, 1, chosen.simdgroups, chosen.chunk, SOFTMAX_BRICKS, False,
        bias=True, slots=slots, table=table,
    )  # fmt: skip
    work = math.prod(chosen.tiles) * math.prod(p.dilation) * p.batch
    parts = max(1, min(MOST_PARTS, work))
    params = parameters(p, {"kTiles": chosen.tiles, "kParts": parts})
    partial = Output("partial", "rpb_parts", (parts, p.heads, entries), "float32")
    return [
        Step(
            instance,
            (p.heads, parts, 1),
            32 * chosen.simdgroups,
            params,
            tuple(inputs.items()),
            (partial,),
            chosen.bricks.executed * p.batch * p.kv_heads,
            chosen.bricks.full * p.batch * p.kv_heads,
        ),
        _sum(p, "rpb_parts", "rpb_grad", (p.heads, *sizes), parts, "float32"),
    ]


def _qk_backward(p: Problem, has_lse_grad: bool, most: int) -> tuple[Step, ...]:
    # Weighted sums of keys and queries: their channels take the place of values'.
    weigh = replace(p, head_dim_v=p.head_dim)
    dq = Output("out", "query_grad", (p.batch, *p.query_shape, p.heads, p.head_dim), p.dtype)
    dk = Output("out", "key_grad", (p.batch, *p.key_shape, p.kv_heads, p.head_dim), p.dtype)
    steps = [
        _walk(weigh, "na_av", {"attn": "logits_grad", "v": "key"}, (dq,), most),
        _walk(weigh, "na_av_t", {"attn": "logits_grad", "x": "query"}, (dk,), most),
    ]
    if p.has_rpb:
        steps += _bias_backward(p, {"bias": "rpb", "d_logits": "logits_grad"}, slots=True, most=most)
    return tuple(steps)


def _av_backward(p: Problem, has_lse_grad: bool, most: int) -> tuple[Step, ...]:
    rows = (p.batch, *p.query_shape, p.heads)
    logits = replace(p, head_dim=p.head_dim_v, scale=1.0)
    d_attn = Output("logits", "attn_grad", (*rows, p.slots), p.dtype)
    dv = Output("out", "value_grad", (p.batch, *p.key_shape, p.kv_heads, p.head_dim_v), p.dtype)
    return (
        _walk(logits, "na_qk", {"q": "out_grad", "k": "value"}, (d_attn,), most, empty_zero=True),
        _walk(replace(p, scale=1.0), "na_av_t", {"attn": "attn", "x": "out_grad"}, (dv,), most),
    )
