"""The smallest legal launch of a kernel: proof that it compiles and launches, at the cost of nothing else.

A lazy host tells of a failure only when the user evaluates a result, too late to take another path. Its
launcher therefore evaluates this launch first, once per instantiation.
"""

from ..problem.problem import Problem
from .source import WALKING, Instance
from .steps import DELTA_ROWS, STATS, Output, Step, parameters

# Batch items, each of one token: every tensor has at least as many elements.
ITEMS = 8


def smallest_launch(instance: Instance) -> tuple[Step, dict[str, tuple[int, ...]]]:
    """A launch of ``instance`` on :data:`ITEMS` items of one token each, and the shapes of its inputs by argument.

    The inputs' names in the step are their arguments.
    """
    i, one = instance, (1,) * instance.rank
    dim, dim_v = max(i.dim, 1), max(i.dim_v, 1)
    rows, keys, extra = (ITEMS, *one, i.heads), (ITEMS, *one, 1), (ITEMS, 1, 1)
    if i.every:  # the keys are additional ones, and so are the shapes of their gradients, in one part
        keys = extra
    parts = (1,) if i.every else ()
    out = {"na_av_t": (*keys, dim_v), "na_sum": (ITEMS,)}.get(i.template, (*rows, dim_v))
    shapes = {
        "q": (*rows, dim), "k": (*keys, dim), "v": (*keys, dim_v), "extra_k": (*extra, dim),
        "extra_v": (*extra, dim_v), "bias": (i.heads, *one), "out_grad": (*rows, dim_v), "lse": rows, "delta": rows,
        "stats": (*rows, STATS), "lse_grad": rows, "attn": (*rows, 1), "logits": (*rows, 1), "d_logits": (*rows, 1),
        "x": (*rows, dim_v),
        "out": out, "query_grad": (*rows, dim), "key_grad": (*parts, *keys, dim),
        "value_grad": (*parts, *keys, dim_v),
        # na_bias writes one part, na_sum reads one.
        "partial": (ITEMS,) if i.template == "na_sum" else (1, i.heads, *one),
    }  # fmt: skip
    problem = Problem(
        "na", ITEMS, one, one, i.heads, 1, dim, dim_v, one, one, one, (False,) * i.rank, 1.0, i.dtype,
        additional=int(i.extra or i.every), has_rpb=i.bias,
    )  # fmt: skip
    params = parameters(problem, {"kTiles": one, "kRowCount": ITEMS * (1 if i.template == "na_sum" else i.heads)})
    inputs = tuple((a.name, a.name) for a in i.arguments if not a.output and a.name != "prm")
    kinds = {"T": i.dtype, "R": "float32" if i.every else i.dtype, "float": "float32"}
    outputs = tuple(Output(a.name, a.name, shapes[a.name], kinds[a.kind]) for a in i.arguments if a.output)
    # Walks: one tile an item. na_delta: DELTA_ROWS a threadgroup. na_bias: one part. na_sum: one threadgroup.
    flat = (-(-ITEMS * i.heads // DELTA_ROWS), 1, 1) if i.template == "na_delta" else (1, 1, 1)
    grid = (1, 1, ITEMS) if i.template in WALKING else flat
    step = Step(i, grid, 32 * i.simdgroups, params, inputs, outputs)
    return step, {argument: shapes[argument] for argument, _ in inputs}
