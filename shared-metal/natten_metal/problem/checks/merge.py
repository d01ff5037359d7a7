"""The rules of ``merge_attentions``."""

from collections.abc import Sequence
from typing import Any

from ..problem import TensorSpec
from .arguments import reject_type
from .tensors import same


def merge_parts(face: str, name: str, parts: Any) -> list[Any]:
    """The tensors of ``outputs`` or ``lses``; TypeError unless they come as a list or tuple."""
    if not isinstance(parts, (list, tuple)):
        reject_type(face, name, parts, "a list of tensors")
    return list(parts)


def check_merge(face: str, outputs: Sequence[TensorSpec], lses: Sequence[TensorSpec]) -> None:
    """The parts of ``merge_attentions``: equal shapes, one lse each, at least one part."""
    if not outputs or len(outputs) != len(lses):
        raise ValueError(
            f"{face}: outputs and lses must share one length of at least 1; got {len(outputs)} and {len(lses)}"
        )
    same(face, "shape", {f"outputs[{i}]": spec.shape for i, spec in enumerate(outputs)})
    same(face, "dtype", {f"outputs[{i}]": spec.dtype for i, spec in enumerate(outputs)}, TypeError)
    for i, (out, lse) in enumerate(zip(outputs, lses, strict=True)):
        if lse.shape != out.shape[:-1]:
            raise ValueError(
                f"{face}: lses[{i}] must be outputs[{i}] without its last axis, {out.shape[:-1]}; got {lse.shape}"
            )


def merged_lses(face: str, lses: Any, upstream: dict[str, Any]) -> Any:
    """The second argument of ``merge_attentions``, taken out of ``upstream`` if it was passed by upstream's name."""
    if "lse_tensors" not in upstream:
        return lses
    if lses is not None:
        raise TypeError(f"{face}: give lses, or lse_tensors as upstream calls them, not both")
    return upstream.pop("lse_tensors")
