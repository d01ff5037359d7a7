"""Upstream's autograd functions, which public code calls by ``.apply``, subclasses, and counts by name."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._metal.compat_forms import Form

Given = dict[str, Any]


def function_class(name: str, form: Form, module: str, run: Callable[[str, Form, Given], Any]) -> Any:
    """The autograd function ``name`` of ``module``: ``apply`` takes the form's arguments by position.

    Its gradient runs the op again under autograd: the op's own kernels, once more forward.
    """

    def forward(ctx: Any, *args: Any) -> Any:
        given = form.bind(name, args, {})
        ctx.given = {each: value for each, value in given.items() if not isinstance(value, Tensor)}
        ctx.tensors = [each for each in form.names if isinstance(given[each], Tensor)]
        ctx.save_for_backward(*(given[each] for each in ctx.tensors))
        return run(name, form, given)

    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        needed = {each for each, needs in zip(form.names, ctx.needs_input_grad, strict=False) if needs}
        with torch.enable_grad():
            leaves = {
                each: tensor.detach().requires_grad_(each in needed)
                for each, tensor in zip(ctx.tensors, ctx.saved_tensors, strict=True)
            }
            out = run(name, form, ctx.given | leaves)
        wanted = [each for each in ctx.tensors if each in needed]
        found = torch.autograd.grad(out, [leaves[each] for each in wanted], gradients[0])
        by_name = dict(zip(wanted, found, strict=True))
        return tuple(by_name.get(each) for each in form.names[: len(ctx.needs_input_grad)])

    text = f"NATTEN's ``{name}.apply({', '.join(form.names)})``."
    own = {"forward": staticmethod(forward), "backward": staticmethod(backward), "__doc__": text, "__module__": module}
    return type(name, (torch.autograd.Function,), own | {"form": form})
