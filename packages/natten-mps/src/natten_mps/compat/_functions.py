"""Upstream's autograd functions, which public code calls by ``.apply``, subclasses, and counts by name."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._call import primals
from .._metal.compat.forms import Form

Given = dict[str, Any]


def function_class(name: str, form: Form, module: str, run: Callable[[str, Form, Given], Any]) -> Any:
    """The autograd function ``name`` of ``module``: ``apply`` takes the form's arguments by position.

    Its derivatives run the op again under autograd, which costs one more forward of the op's own kernels. Forward mode,
    for the split ops only, is the derivative of the gradient, which is linear in the incoming gradient.
    """

    def forward(ctx: Any, *args: Any) -> Any:
        given = form.bind(name, args, {})
        ctx.given = {each: value for each, value in given.items() if not isinstance(value, Tensor)}
        ctx.tensors = [each for each in form.names if isinstance(given[each], Tensor)]
        ctx.save_for_backward(*(given[each] for each in ctx.tensors))
        ctx.save_for_forward(*(given[each] for each in ctx.tensors))
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

    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        along = {each: tangent for each, tangent in zip(form.names, tangents, strict=False) if tangent is not None}
        saved = [tensor for tensor in primals(ctx.saved_tensors) if tensor is not None]
        differentiated = torch.is_grad_enabled() and any(each.requires_grad for each in (*saved, *along.values()))
        with torch.enable_grad():
            own = (tensor if tensor.requires_grad else tensor.detach().requires_grad_() for tensor in saved)
            leaves = dict(zip(ctx.tensors, own, strict=True))
            out = run(name, form, ctx.given | leaves)
            flowing = torch.zeros_like(out, requires_grad=True)
            gradients = torch.autograd.grad(out, [leaves[each] for each in along], flowing, create_graph=True)
            (tangent,) = torch.autograd.grad(gradients, flowing, list(along.values()), create_graph=differentiated)
        return tangent

    text = f"NATTEN's ``{name}.apply({', '.join(form.names)})``."
    rules = {"forward": forward, "backward": backward, "jvp": jvp}
    own = {each: staticmethod(rule) for each, rule in rules.items()} | {"__doc__": text, "__module__": module}
    return type(name, (torch.autograd.Function,), own | {"form": form})
