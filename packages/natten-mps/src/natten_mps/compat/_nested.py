"""Nested tensors in 0.15's and 0.17's forms: each item is computed independently."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._metal.compat.forms import Form

Given = dict[str, Any]
Run = Callable[[str, Form, Given], Any]


def _nested(given: Given) -> dict[str, tuple[Tensor, ...]]:
    """The items of each nested tensor among the arguments."""
    return {name: each.unbind() for name, each in given.items() if isinstance(each, Tensor) and each.is_nested}


def over_nested(run: Run) -> Run:
    """``run``, and for nested tensors a nested tensor of its results, differentiable like the items.

    Forms since 0.20 reject nested tensors, as upstream's do: the op's own error names the varlen ops.
    """

    def each(name: str, form: Form, given: Given) -> Any:
        items = {} if "stride" in form.names else _nested(given)
        if not items:
            return run(name, form, given)
        plain = {*items, "rpb", "bias"}
        flat = [which for which, it in given.items() if isinstance(it, Tensor) and which not in plain]
        counts = {which: len(its) for which, its in items.items()}
        if flat or len(set(counts.values())) > 1:
            found = counts | dict.fromkeys(flat, "not nested")
            raise ValueError(f"{name}: all tensors but the bias must be nested, with equally many items; got {found}")
        results = []
        for own in zip(*items.values(), strict=True):
            # Items have a batch axis of their own, as upstream's kernels expect, or none.
            bare = own[0].dim() == form.rank + 2
            alone = {which: it[None] if bare else it for which, it in zip(items, own, strict=True)}
            result = run(name, form, given | alone)
            results.append(result[0] if bare else result)
        return torch.nested.as_nested_tensor(results)

    return each
