"""The programs of the Metal backend: which kernels run, on which tensors, for each op and its gradient.

Tensors are named; a launcher binds the named inputs of each :class:`Launch`, allocates the outputs, fills in strides,
and launches. The same programs serve every host.
"""

import itertools
import math
from dataclasses import replace

from ..problem import ops
from ..problem.ops import Operand, rows
from ..problem.problem import Problem
from .launches import CONTIGUOUS as CONTIGUOUS
from .launches import SIMD_WIDTH as SIMD_WIDTH
from .launches import Launch as Launch
from .launches import Output as Output
from .launches import fills_words as fills_words
from .launches import parameters as parameters
from .launches import stride_block as stride_block
from .launches import strides_of as strides_of
from .launches import with_strides as with_strides
from .params import PARAMS as PARAMS
from .sizes import DIMS, MAX_RPB
from .source import Instance
from .templates import AV, AV_TRANSPOSED, DELTA, FORWARD, KEY_VALUE_GRAD, QK, QUERY_GRAD, RPB_GRAD, STATS, SUM, Template
from .tiles import COLUMNS, ROWS, chunk_size, padded_dim, patch_count
from .tiles import terms as terms
from .tiling import MAX_SIMDGROUPS as MAX_SIMDGROUPS
from .tiling import SOFTMAX_BRICKS, Target, kernel_of, tiling

# The most threadgroups that share a sum over all queries or tiles.
MAX_PARTS = 64
# Simdgroups that a threadgroup may have where the kernel's registers might not fit and the host cannot tell.
CAUTIOUS_SIMDGROUPS, CAUTIOUS_DIM = 4, 128
# Of a device of which nothing is known.
UNTUNED = Target()
# A sum of more terms than this is taken in parts of so many bricks (kernels/sums.h). In a model of the order of sums,
# 4096 random terms lose 2e-6, and 65,536 equal ones 9e-4, less than 16 bits resolve.
LONGEST_SUM, PART = {"float32": 4096, "float16": 65_536, "bfloat16": 65_536}, 64


def cautious_simdgroups(problem: Problem) -> int:
    """Simdgroups whose registers fit any GPU, for hosts that do not report how many threads a kernel allows."""
    widest = padded_dim(max(problem.head_dim, problem.head_dim_v))
    return CAUTIOUS_SIMDGROUPS if widest >= CAUTIOUS_DIM else MAX_SIMDGROUPS


def _walk(
    problem: Problem,
    template: Template,
    inputs: dict[str, str],
    outputs: tuple[Output, ...],
    target: Target,
    **options: object,
) -> Launch:
    """A launch of a walking template: its tiling, grid and parameters."""
    transposed = template.transposed
    dim = padded_dim(problem.head_dim) if template.reads_dim else 0
    dim_v = padded_dim(problem.head_dim_v) if template.reads_dim_v else 0
    found = tiling(problem, template, dim, dim_v, target)
    part = _part(problem.dtype, terms(problem, transposed))
    instance = kernel_of(problem, template, (dim, dim_v), found.chosen, part=part, **options)
    side = instance.record.side
    heads = problem.kv_heads if transposed else problem.heads // instance.heads
    grid = (heads, math.prod(found.tiles), problem.batch * math.prod(problem.dilation))
    times = problem.batch * problem.kv_heads
    bricks, full = found.bricks.executed * times, found.bricks.full * times
    if instance.additional:
        patches = patch_count(problem, instance.patch) * problem.batch * heads
        bricks += patches * -(-problem.additional // side)
        full += patches * (problem.additional // side)
    params = parameters(problem, {"kTiles": found.tiles})
    return Launch(instance, grid, instance.threads, params, tuple(inputs.items()), outputs, bricks, full)


def _part(dtype: str, count: int) -> int:
    """Bricks of a part of a sum of ``count`` terms."""
    return PART if count > LONGEST_SUM[dtype] else 0


def _sum(problem: Problem, partial: str, name: str, shape: tuple[int, ...], parts: int, dtype: str) -> Launch:
    count = math.prod(shape)
    instance = Instance(SUM.name, dtype, 1, 0, 0, simdgroups=SUM.rows // SIMD_WIDTH, stage=False)
    params = parameters(problem, {"kParts": parts, "kRowCount": count})
    output = Output("out", name, shape, dtype)
    return Launch(instance, (-(-count // SUM.rows), 1, 1), SUM.rows, params, (("partial", partial),), (output,))


def forward(problem: Problem, target: Target = UNTUNED) -> tuple[Launch, ...]:
    """The launches of an op. target: what tilings are chosen for."""
    return _FORWARD[problem.op](problem, target)


def _made(argument: str, operand: Operand, p: Problem) -> Output:
    """A kernel's output that is one of the op's."""
    return Output(argument, operand.name, operand.shape(p), operand.dtype(p))


def _gradient(argument: str, operand: Operand, p: Problem) -> Output:
    """A kernel's output that is the gradient of one of the op's inputs."""
    return Output(argument, operand.gradient, operand.shape(p), p.dtype)


def _qk_forward(p: Problem, target: Target) -> tuple[Launch, ...]:
    rpb = {"rpb": "rpb"} if p.has_rpb else {}
    outputs = (_made("logits", ops.LOGITS, p),)
    return (_walk(p, QK, {"q": "query", "k": "key"} | rpb, outputs, target, rpb=p.has_rpb),)


def _av_forward(p: Problem, target: Target) -> tuple[Launch, ...]:
    outputs = (_made("out", ops.OUT, p),)
    return (_walk(replace(p, scale=1.0), AV, {"attn": "attn", "v": "value"}, outputs, target),)


def _fused_forward(p: Problem, target: Target) -> tuple[Launch, ...]:
    outputs = (_made("out", ops.OUT, p), _made("lse", ops.LSE, p))
    return (_walk(p, FORWARD, _tensors(p), outputs, target, additional=p.additional > 0, **_options(p)),)


def _options(p: Problem) -> dict[str, bool]:
    """The options of every walk of fused attention."""
    return {"rpb": p.has_rpb, "masked": p.has_key_mask}


def _tensors(p: Problem) -> dict[str, str]:
    inputs = {"q": "query", "k": "key", "v": "value"}
    if p.additional:
        inputs |= {"additional_k": "additional_keys", "additional_v": "additional_values"}
    given = {"rpb": p.has_rpb, "key_mask": p.has_key_mask}
    return inputs | {name: name for name, has in given.items() if has}


def backward(problem: Problem, has_lse_grad: bool, target: Target = UNTUNED) -> tuple[Launch, ...]:
    """The launches of an op's gradient, from the gradients of its outputs and what the forward saved; the rest as in
    :func:`forward`.
    """
    return _BACKWARD[problem.op](problem, has_lse_grad, target)


def _fused_backward(p: Problem, has_lse_grad: bool, target: Target) -> tuple[Launch, ...]:
    options = _options(p)
    read = _tensors(p) | {"out_grad": "out_grad", "lse": "lse", "delta": "delta"}
    stats = Output("stats", "stats", (*rows(p), STATS), "float32")
    made = (_gradient("query_grad", ops.QUERY, p), stats)
    launches = [
        _delta(p, has_lse_grad),
        _walk(p, QUERY_GRAD, read, made, target, additional=p.additional > 0, **options),
    ]
    saved = {"out_grad": "out_grad", "stats": "stats"}
    plain = {arg: name for arg, name in _tensors(p).items() if not arg.startswith("additional")}
    made = (_gradient("key_grad", ops.KEY, p), _gradient("value_grad", ops.VALUE, p))
    launches.append(_walk(p, KEY_VALUE_GRAD, plain | saved, made, target, **options))
    if p.additional:
        launches += _additional_backward(p, saved, target)
    if p.has_rpb:
        launches += _rpb_backward(p, plain | saved, slots=False, target=target)
    return tuple(launches)


def _delta(p: Problem, has_lse_grad: bool) -> Launch:
    """delta = rowsum(dO * O) - dLSE, of every query."""
    instance = Instance(DELTA.name, p.dtype, p.rank, 0, 0, stage=False, lse_grad=has_lse_grad)
    inputs = {"out_grad": "out_grad", "out": "out"} | ({"lse_grad": "lse_grad"} if has_lse_grad else {})
    outputs = (Output("delta", "delta", rows(p), "float32"),)
    grid = (-(-math.prod(rows(p)) // DELTA.rows), 1, 1)
    return Launch(instance, grid, instance.threads, parameters(p, {}), tuple(inputs.items()), outputs)


def _additional_backward(p: Problem, saved: dict[str, str], target: Target) -> list[Launch]:
    """dK and dV of additional keys: all queries contribute, in parts that are summed in order."""
    dim, dim_v = padded_dim(p.head_dim), padded_dim(p.head_dim_v)
    # Their gradients are not computed on matrix units.
    given = target.candidate if target.candidate and not target.candidate.mpp else None
    base = tiling(p, KEY_VALUE_GRAD, dim, dim_v, target._replace(candidate=given, matrix_units=None))
    simdgroups = min(base.chosen.simdgroups * base.chosen.team, -(-p.additional // ROWS))
    tiles = -(-p.additional // (ROWS * simdgroups))
    parts = max(1, min(MAX_PARTS, p.query_shape[0], 256 // (tiles * p.batch * p.kv_heads) or 1))
    shape, shape_v = ((p.batch, p.additional, p.kv_heads, d) for d in (p.head_dim, p.head_dim_v))
    # All queries are columns: the rows of the box have the full length, and are staged if one brick fits.
    stage = chunk_size(p.dtype, dim, dim_v) >= COLUMNS
    instance = Instance(
        KEY_VALUE_GRAD.name,
        p.dtype,
        p.rank,
        dim,
        dim_v,
        base.chosen.patch,
        simdgroups=simdgroups,
        chunk=base.chunk,
        bricks=SOFTMAX_BRICKS,
        stage=stage,
        of_additional=True,
        part=_part(p.dtype, math.prod(p.query_shape) * p.group_heads // parts),
    )
    params = parameters(p, {"kParts": parts, "kKeyGradPart": math.prod(shape), "kValueGradPart": math.prod(shape_v)})
    inputs = {"q": "query", "k": "additional_keys", "v": "additional_values"} | saved
    outputs = (
        Output("key_grad", "additional_keys_parts", (parts, *shape), "float32"),
        Output("value_grad", "additional_values_parts", (parts, *shape_v), "float32"),
    )
    grid = (p.kv_heads, tiles * parts, p.batch)
    return [
        Launch(
            instance,
            grid,
            instance.threads,
            params,
            tuple(inputs.items()),
            outputs,
            *_additional_bricks(p, parts),
        ),
        _sum(p, "additional_keys_parts", "additional_keys_grad", shape, parts, p.dtype),
        _sum(p, "additional_values_parts", "additional_values_grad", shape_v, parts, p.dtype),
    ]


def _additional_bricks(p: Problem, parts: int) -> tuple[int, int]:
    """Bricks, and full ones, of all additional keys against all queries, whose outermost axis is cut in parts."""
    cuts = [p.query_shape[0] * part // parts for part in range(parts + 1)]
    pieces = [after - before for before, after in itertools.pairwise(cuts)]
    lengths = pieces if p.rank == 1 else [p.query_shape[-1]] * math.prod(p.query_shape[:-1])
    times = p.batch * p.heads * -(-p.additional // ROWS)
    return times * sum(-(-n // COLUMNS) for n in lengths), times * sum(n // COLUMNS for n in lengths)


def _rpb_backward(p: Problem, inputs: dict[str, str], slots: bool, target: Target) -> list[Launch]:
    """The gradient of rpb: tables of sums, one per part, summed in order."""
    heads, *sizes = ops.RPB.shape(p)
    entries = math.prod(sizes)
    table = next(size for size in (64, 256, 1024, MAX_RPB) if size >= entries)
    dim, dim_v = (DIMS[0],) * 2 if slots else (padded_dim(p.head_dim), padded_dim(p.head_dim_v))
    # A candidate is for walks; here it could have more simdgroups than the tables leave room for.
    room = target._replace(max_simdgroups=min(target.max_simdgroups, 8192 // table), candidate=None)
    found = tiling(p, RPB_GRAD, dim, dim_v, room, in_rows=False)
    instance = Instance(
        RPB_GRAD.name,
        p.dtype,
        p.rank,
        dim,
        dim_v,
        found.chosen.patch,
        simdgroups=found.chosen.simdgroups,
        chunk=found.chunk,
        bricks=SOFTMAX_BRICKS,
        stage=False,
        rpb=True,
        masked=p.has_key_mask,
        slots=slots,
        table=table,
        flat=found.chosen.flat,
    )
    parts = max(1, min(MAX_PARTS, math.prod(found.tiles) * math.prod(p.dilation) * p.batch))
    params = parameters(p, {"kTiles": found.tiles, "kParts": parts})
    partial = Output("partial", "rpb_parts", (parts, heads, entries), "float32")
    times = p.batch * p.kv_heads
    bricks, full = found.bricks.executed * times, found.bricks.full * times
    grid, threads = (heads, parts, 1), instance.threads
    return [
        Launch(instance, grid, threads, params, tuple(inputs.items()), (partial,), bricks, full),
        _sum(p, "rpb_parts", "rpb_grad", (heads, *sizes), parts, "float32"),
    ]


def _qk_backward(p: Problem, has_lse_grad: bool, target: Target) -> tuple[Launch, ...]:
    # Keys and queries are summed with weights, as values are in the op: their channels take the part of D_v.
    weigh = replace(p, head_dim_v=p.head_dim)
    query_grad, key_grad = _gradient("out", ops.QUERY, p), _gradient("out", ops.KEY, p)
    launches = [
        _walk(weigh, AV, {"attn": "logits_grad", "v": "key"}, (query_grad,), target),
        _walk(weigh, AV_TRANSPOSED, {"attn": "logits_grad", "x": "query"}, (key_grad,), target),
    ]
    if p.has_rpb:
        launches += _rpb_backward(p, {"rpb": "rpb", "logits_grad": "logits_grad"}, slots=True, target=target)
    return tuple(launches)


def _av_backward(p: Problem, has_lse_grad: bool, target: Target) -> tuple[Launch, ...]:
    logits = replace(p, head_dim=p.head_dim_v, scale=1.0)
    attn_grad, value_grad = _gradient("logits", ops.ATTN, p), _gradient("out", ops.VALUE, p)
    return (
        _walk(logits, QK, {"q": "out_grad", "k": "value"}, (attn_grad,), target, empty_zero=True),
        _walk(replace(p, scale=1.0), AV_TRANSPOSED, {"attn": "attn", "x": "out_grad"}, (value_grad,), target),
    )


# The programs of each op. (Full attention is the fused op with windows that hold every key.)
_FORWARD = {
    ops.FUSED.name: _fused_forward,
    ops.FULL.name: _fused_forward,
    ops.QK.name: _qk_forward,
    ops.AV.name: _av_forward,
}
_BACKWARD = {
    ops.FUSED.name: _fused_backward,
    ops.FULL.name: _fused_backward,
    ops.QK.name: _qk_backward,
    ops.AV.name: _av_backward,
}
