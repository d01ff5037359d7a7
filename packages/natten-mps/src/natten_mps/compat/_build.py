"""From a generation's call forms to functions and modules over this package's own."""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional, modules
from .._config import has_mps
from .._metal.compat import generations as compat
from .._metal.compat import modules as compat_modules
from .._metal.compat.context import CONTEXT, FLOP_HANDLER
from .._metal.compat.forms import Form, Forms
from .._metal.compat.inner import FUNCTIONS
from .._metal.problem.problem import FACE_OF
from . import _flops as _flops  # torch's counter knows the ops from here on
from . import _helpers
from ._functions import function_class
from ._nested import over_nested
from ._tokens import TOKENS

Given = dict[str, Any]
_submodules: dict[str, compat_modules.Submodules] = {}


def generation(name: str, module: str) -> dict[str, Any]:
    """Everything that the module of a generation defines, ``__all__`` included; its submodules are imported."""
    made = _faces(compat.forms(name), module)
    made |= {old: made[new] for old, new in compat.RENAMED_CLASSES.get(name, {}).items()}
    found = _submodules[name] = compat_modules.submodules(name, made, module, PARTS)
    made |= CONTEXT[name] | FLOP_HANDLER | {"has_mps": has_mps, "add_natten_handle": _helpers.add_natten_handle}
    made |= {"__all__": sorted(made), "__version__": compat.LAST[name]}
    inside = compat_modules.as_modules(module, f"Part of {module}.", found)
    sys.modules.update({f"{module}.{each}": it for each, it in inside.items()})
    return {each: it for each, it in inside.items() if "." not in each} | made


def submodules(name: str) -> compat_modules.Submodules:
    """What each submodule of a generation holds, once its module is imported."""
    return _submodules[name]


def _faces(forms: Forms, module: str) -> dict[str, Any]:
    return {
        name: _module(name, form, module) if form.kind == "module" else _face(name, form, module)
        for name, form in forms.items()
    }


def _face(name: str, form: Form, module: str) -> Any:
    return compat.face(name, form, module, _ADAPTERS[form.kind])


def _functions(name: str, module: str) -> dict[str, Any]:
    return {each: function_class(each, form, module, _ADAPTERS[form.kind]) for each, form in FUNCTIONS[name].items()}


# --- split ops: heads-first, unscaled --------------------------------------------------------------


def _heads_last(tensor: Any) -> Any:
    return tensor.movedim(1, -2) if isinstance(tensor, Tensor) else tensor


def _heads_first(tensor: Tensor) -> Tensor:
    return tensor.movedim(-2, 1)


def _qk(name: str, form: Form, given: Given) -> Tensor:
    query, key = given["query"], given["key"]
    compat.heads_first_rank(name, form.rank, {"query": query, "key": key})
    kernel_size, dilation = compat.legacy_window(name, form, given)
    logits: Tensor = getattr(functional, FACE_OF[form.rank] + "_qk")(
        _heads_last(query), _heads_last(key), kernel_size, dilation, is_causal=given.get("is_causal", False),
        scale=1.0, rpb=given.get("rpb", given.get("bias")),
    )  # fmt: skip
    logits, more = _heads_first(logits), given.get("additional_keys")
    if more is None:
        return logits
    compat.additional(name, "additional_keys", more, (query.shape[0], query.shape[1], query.shape[-1]))
    products = query.flatten(2, -2) @ more.mT
    return torch.cat([logits, products.reshape(*logits.shape[:-1], more.shape[2]).to(logits.dtype)], -1)


def _av(name: str, form: Form, given: Given) -> Tensor:
    attn, value = given["attn"], given["value"]
    compat.heads_first_rank(name, form.rank, {"attn": attn, "value": value})
    kernel_size, dilation = compat.legacy_window(name, form, given)
    own, more = attn, given.get("additional_values")
    if more is not None:
        compat.additional(name, "additional_values", more, (value.shape[0], attn.shape[1], value.shape[-1]))
        own = attn[..., : compat.window_slots(name, attn, more.shape[2], kernel_size, form.rank)]
    out: Tensor = getattr(functional, FACE_OF[form.rank] + "_av")(
        _heads_last(own), _heads_last(value), kernel_size, dilation, is_causal=given.get("is_causal", False)
    )
    out = _heads_first(out)
    if more is None:
        return out
    products = attn[..., own.shape[-1] :].flatten(2, -2).to(more.dtype) @ more
    return out + products.reshape(out.shape).to(out.dtype)


# --- fused ops: heads-last -------------------------------------------------------------------------


def _fused(name: str, form: Form, given: Given) -> Any:
    return getattr(functional, FACE_OF[form.rank])(**compat.shared_arguments(name, form, given))


def _attention(name: str, form: Form, given: Given) -> Any:
    return functional.attention(**compat.shared_arguments(name, form, given))


def _merge(name: str, form: Form, given: Given) -> Any:
    out, lse = functional.merge_attentions(given["outputs"], given["lse_tensors"])
    # Until 0.21.1 the output alone.
    return (out, lse) if "use_autograd_fix" in form.names else out


_ADAPTERS = {
    "qk": over_nested(_qk), "av": over_nested(_av), "fused": over_nested(_fused), "attention": _attention,
    "merge": _merge,
}  # fmt: skip
PARTS = compat_modules.Parts(
    _faces, _helpers.HELPERS, _functions, _helpers.DEVICE, _helpers.DTYPE, _helpers.TENSOR, _helpers.OPS,
    _helpers.ATTN_MERGE, _helpers.FLOPS, _helpers.ENVIRONMENT, TOKENS, nested=True,
)  # fmt: skip


# --- modules ---------------------------------------------------------------------------------------


def _forward(self: Any, x: Tensor) -> Tensor:
    """``[B, *shape, C]`` -> the same."""
    return self._attend_module(x, None)


def _padding_forward(self: Any, x: Tensor) -> Tensor:
    """``[B, *shape, C]`` -> the same; an axis shorter than its window gets tokens of zeros behind it."""
    shape = tuple(x.shape[1:-1])
    extra = compat.padding(shape, self.kernel_size, self.dilation) if len(shape) == self.rank else ()
    if not any(extra):
        return self._attend_module(x, None)
    behind = [size for missing in reversed(extra) for size in (0, missing)]
    out: Tensor = self._attend_module(nn.functional.pad(x, (0, 0, *behind)), None)
    return out[(slice(None), *(slice(length) for length in shape))]


def _geometry(self: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """The window for an input of ``shape``; the first generation worked its dilation out from there."""
    latest = (compat.latest_dilation(shape, self.kernel_size),) * self.rank
    return self.kernel_size, self.stride, latest if self.late_dilation else self.dilation, self.is_causal


def _module(name: str, form: Form, module: str) -> Any:
    """A generation's module: this package's, with another constructor."""
    base = getattr(modules, f"NeighborhoodAttention{form.rank}D") if form.rank else modules._NeighborhoodAttention
    forward = _padding_forward if compat.pads(form) else _forward
    return compat.module_class(name, form, module, base, {"forward": forward, "_geometry": _geometry})
