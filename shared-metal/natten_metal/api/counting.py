"""The body of ``flops``: what a call is worth, from the shapes of its tensors."""

import math
from collections.abc import Sequence
from typing import Any

from ..problem import checks, faces, mask
from ..problem.checks import modules as rules
from ..problem.ops import FUSED, KEY_MASK, RPB
from ..problem.problem import TensorSpec
from .framework import Framework
from .modules import NeighborhoodAttention

FACE = "flops"


def flops(fw: Framework, op: Any, query: Any, key: Any, value: Any, backward: Any, arguments: dict[str, Any]) -> int:
    """``flops``. arguments: the other arguments of the op's face."""
    backward = checks.flag(FACE, "backward", backward)
    if isinstance(op, NeighborhoodAttention):
        if key is not None or value is not None or arguments:
            rules.reject_counted(FACE)
        return _of_module(fw, op, query, backward)
    arguments = {name: given for name, given in arguments.items() if name not in ("backend", "stream")}
    given = {"query": query, "key": key, "value": value}
    given |= {name: each for name, each in arguments.items() if name in faces.TENSOR_ARGUMENTS}
    specs = _specs(fw, given)
    others = {name: each for name, each in arguments.items() if name not in given}
    first = [specs.pop(name) for name in ("query", "key", "value")]
    problem = faces.explained(FACE, op, first, specs | others)
    return mask.flops(problem, backward)


def _specs(fw: Framework, given: dict[str, Any]) -> dict[str, TensorSpec | None]:
    """The specs of tensors, or of shapes: those have the dtype and device of the tensors, or of none."""
    like = next((fw.spec(FACE, name, each) for name, each in given.items() if fw.is_tensor(each)), None)
    found: dict[str, TensorSpec | None] = {}
    for name, each in given.items():
        if isinstance(each, Sequence):
            shape = checks.arguments.per_axis_ints(FACE, name, each, len(each))
            dtype = "bool" if name == KEY_MASK.name else "float32" if like is None else like.dtype
            found[name] = TensorSpec(shape, dtype, "" if like is None else like.device)
        else:
            found[name] = None if each is None else fw.spec(FACE, name, each)
    return found


def _of_module(fw: Framework, module: NeighborhoodAttention, x: Any, backward: bool) -> int:
    """A module's projections, whose gradients are two products each, and its attention."""
    spec = _specs(fw, {"input": x})["input"]
    assert spec is not None
    rules.check_input(type(module).__name__, spec, module.rank, module.embed_dim)
    batch, *shape, width = spec.shape
    kernel_size, stride, dilation, is_causal = module._geometry(tuple(shape))
    query, key = ((batch, *shape, heads, module.head_dim) for heads in (module.num_heads, module.num_kv_heads))
    arguments: dict[str, Any] = {
        "kernel_size": kernel_size,
        "stride": stride,
        "dilation": dilation,
        "is_causal": is_causal,
    }
    arguments |= {"wrap": module.wrap, RPB.name: None if module.rpb is None else tuple(module.rpb.shape)}
    attention = flops(fw, FUSED.faces[module.rank], query, key, key, backward, arguments)
    inner = (module.num_heads + 2 * module.num_kv_heads) * module.head_dim
    projections = 2 * batch * math.prod(shape) * width * (inner + module.num_heads * module.head_dim)
    return attention + projections * (2 if backward else 1)
