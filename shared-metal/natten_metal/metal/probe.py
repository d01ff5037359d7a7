"""The smallest legal launch of a kernel, which shows at almost no cost that it compiles and launches.

A lazy host reports a failure only when the user evaluates a result, too late to choose another backend. Its launcher
therefore evaluates this launch first, once per instantiation.
"""

import math

from ..problem.ops import FUSED
from ..problem.problem import Problem
from .launches import Launch, Output, parameters
from .source import Instance
from .templates import Sizes

# Batch items, each of one token: every tensor has at least as many elements. Products of matrix units read 16 columns.
ITEMS = 8


def smallest_launch(instance: Instance) -> tuple[Launch, dict[str, tuple[int, ...]]]:
    """A launch of ``instance`` on :data:`ITEMS` items, each of one token, or of 16 on matrix units, and the shapes of
    its inputs by argument.

    The inputs' names in the launch are their arguments.
    """
    i, side = instance, instance.record.side if instance.mpp and instance.record.walks else 1
    one, tokens = (1,) * i.rank, (*(1,) * (i.rank - 1), side)
    dim, dim_v = max(i.dim, 1), max(i.dim_v, 1)
    rows, keys, additional = (ITEMS, *tokens, i.heads), (ITEMS, *tokens, 1), (ITEMS, side, 1)
    if i.of_additional:  # the keys are additional ones, and so are the shapes of their gradients, in one part
        sizes = Sizes(rows, additional, additional, dim, dim_v, 1, one, parts=(1,))
    else:
        sizes = Sizes(rows, keys, additional, dim, dim_v, 1, one)
    shapes = {a.name: a.shape(sizes) for a in i.arguments}
    problem = Problem(
        op=FUSED.name,
        batch=ITEMS,
        query_shape=tokens,
        key_shape=tokens,
        heads=i.heads,
        kv_heads=1,
        head_dim=dim,
        head_dim_v=dim_v,
        kernel_size=one,
        stride=one,
        dilation=one,
        is_causal=(False,) * i.rank,
        scale=1.0,
        dtype=i.dtype,
        additional=side if i.additional or i.of_additional else 0,
        has_rpb=i.rpb,
        has_key_mask=i.masked,
    )
    inputs = tuple((a.name, a.name) for a in i.arguments if not a.output and a.name != "prm")
    outputs = tuple(Output(a.name, a.name, shapes[a.name], i.dtype_of(a)) for a in i.arguments if a.output)
    # Walks: the tiles of each item. Templates of rows: as many threadgroups as hold the rows. Tables: one part.
    tiles = (*one[1:], -(-side // (i.patch[-1] * i.simdgroups)))
    grid = (1, math.prod(tiles), ITEMS if i.record.walks else 1)
    params = parameters(problem, {"kTiles": tiles})
    if i.record.rows:
        count = math.prod(outputs[0].shape)
        grid, params = (-(-count // i.record.rows), 1, 1), parameters(problem, {"kTiles": one, "kRowCount": count})
    launch = Launch(i, grid, i.threads, params, inputs, outputs)
    return launch, {argument: shapes[argument] for argument, _ in inputs}
