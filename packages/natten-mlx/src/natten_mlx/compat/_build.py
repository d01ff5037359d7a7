"""From a generation's call forms to functions and modules over this package's own."""

import sys
from typing import Any

import mlx.core as mx

from .. import functional, modules, varlen
from .._config import ORDER
from .._device import device_of
from .._metal.compat import generations as compat
from .._metal.compat import modules as compat_modules
from .._metal.compat.context import CONTEXT, FLOP_HANDLER
from .._metal.compat.forms import Form, Forms
from .._metal.compat.tensors import TensorHelpers
from .._metal.plan import plan
from .._metal.problem.problem import FACE_OF, Problem
from .._tensors import spec, stream_of

Given = dict[str, Any]


def has_mlx() -> bool:
    """True: this package runs on MLX."""
    return True


def has_mps() -> bool:
    """Whether MLX can compute on this machine's Apple GPU."""
    return mx.metal.is_available()


def add_natten_handle(flop_ctr: Any) -> Any:
    """The counter as it came: there is none of MLX's."""
    return flop_ctr


def generation(name: str, module: str) -> dict[str, Any]:
    """Everything that the module of a generation defines, ``__all__`` included; its submodules are imported."""
    made = _faces(compat.forms(name), module)
    made |= {old: made[new] for old, new in compat.RENAMED_CLASSES.get(name, {}).items()}
    found = compat_modules.submodules(name, made, module, PARTS)
    made |= CONTEXT[name] | FLOP_HANDLER
    made |= {"has_mlx": has_mlx, "has_mps": has_mps, "add_natten_handle": add_natten_handle}
    made |= {"__all__": sorted(made), "__version__": compat.LAST[name]}
    inside = compat_modules.as_modules(module, f"Part of {module}.", found)
    sys.modules.update({f"{module}.{each}": it for each, it in inside.items()})
    return {each: it for each, it in inside.items() if "." not in each} | made


def _faces(forms: Forms, module: str) -> dict[str, Any]:
    return {
        name: _module(name, form, module) if form.kind == "module" else _face(name, form, module)
        for name, form in forms.items()
    }


def _face(name: str, form: Form, module: str) -> Any:
    return compat.face(name, form, module, _ADAPTERS[form.kind])


# --- split ops: heads-first, unscaled --------------------------------------------------------------


def _heads_last(tensor: Any) -> Any:
    return mx.moveaxis(tensor, 1, -2) if isinstance(tensor, mx.array) else tensor


def _heads_first(tensor: mx.array) -> mx.array:
    return mx.moveaxis(tensor, -2, 1)


def _qk(name: str, form: Form, given: Given) -> mx.array:
    query, key = given["query"], given["key"]
    compat.heads_first_rank(name, form.rank, {"query": query, "key": key})
    kernel_size, dilation = compat.legacy_window(name, form, given)
    logits: mx.array = getattr(functional, FACE_OF[form.rank] + "_qk")(
        _heads_last(query), _heads_last(key), kernel_size, dilation, is_causal=given.get("is_causal", False),
        scale=1.0, rpb=given.get("rpb", given.get("bias")),
    )  # fmt: skip
    logits, more = _heads_first(logits), given.get("additional_keys")
    if more is None:
        return logits
    compat.additional(name, "additional_keys", more, (query.shape[0], query.shape[1], query.shape[-1]))
    products = query.flatten(2, -2) @ more.swapaxes(-1, -2)
    return mx.concatenate([logits, products.reshape(*logits.shape[:-1], more.shape[2])], -1)


def _av(name: str, form: Form, given: Given) -> mx.array:
    attn, value = given["attn"], given["value"]
    compat.heads_first_rank(name, form.rank, {"attn": attn, "value": value})
    kernel_size, dilation = compat.legacy_window(name, form, given)
    own, more = attn, given.get("additional_values")
    if more is not None:
        compat.additional(name, "additional_values", more, (value.shape[0], attn.shape[1], value.shape[-1]))
        own = attn[..., : compat.window_slots(name, attn, more.shape[2], kernel_size, form.rank)]
    out: mx.array = getattr(functional, FACE_OF[form.rank] + "_av")(
        _heads_last(own), _heads_last(value), kernel_size, dilation, is_causal=given.get("is_causal", False)
    )
    out = _heads_first(out)
    if more is None:
        return out
    products = attn[..., own.shape[-1] :].flatten(2, -2).astype(more.dtype) @ more
    return out + products.reshape(out.shape)


# --- fused ops: heads-last -------------------------------------------------------------------------


def _fused(name: str, form: Form, given: Given) -> Any:
    return getattr(functional, FACE_OF[form.rank])(**compat.shared_arguments(name, form, given))


def _attention(name: str, form: Form, given: Given) -> Any:
    return functional.attention(**compat.shared_arguments(name, form, given))


def _merge(name: str, form: Form, given: Given) -> Any:
    out, lse = functional.merge_attentions(given["outputs"], given["lse_tensors"])
    # Until 0.21.1 the output alone.
    return (out, lse) if "use_autograd_fix" in form.names else out


_ADAPTERS = {"qk": _qk, "av": _av, "fused": _fused, "attention": _attention, "merge": _merge}


def _tiers(problem: Problem, tensor: mx.array) -> list[str]:
    device = device_of(stream_of("get_compatible_backends", None))
    return [tier for tier in ORDER if plan.obstacle(problem, device, tier) is None]


_HELPERS = TensorHelpers(spec, _tiers, varlen.generate_varlen_parameters)
PARTS = compat_modules.Parts(_faces, _HELPERS, flops={"add_natten_handle": add_natten_handle})


# --- modules ---------------------------------------------------------------------------------------


def _forward(self: Any, x: mx.array) -> mx.array:
    """``[B, *shape, C]`` -> the same."""
    return self._attend_module(x, None)


def _padding_forward(self: Any, x: mx.array) -> mx.array:
    """``[B, *shape, C]`` -> the same; an axis shorter than its window gets tokens of zeros behind it."""
    shape = tuple(x.shape[1:-1])
    extra = compat.padding(shape, self.kernel_size, self.dilation) if len(shape) == self.rank else ()
    if not any(extra):
        return self._attend_module(x, None)
    widths = [(0, 0), *((0, missing) for missing in extra), (0, 0)]
    out: mx.array = self._attend_module(mx.pad(x, widths), None)
    return out[(slice(None), *(slice(length) for length in shape))]


def _geometry(self: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """The window for an input of ``shape``; the first generation worked its dilation out from there."""
    latest = (compat.latest_dilation(shape, self.kernel_size),) * self.rank
    return self.kernel_size, self.stride, latest if self.late_dilation else self.dilation, self.is_causal


def _module(name: str, form: Form, module: str) -> Any:
    """A generation's module: this package's, with another constructor."""
    base = getattr(modules, f"NeighborhoodAttention{form.rank}D") if form.rank else modules._NeighborhoodAttention
    forward = _padding_forward if compat.pads(form) else _forward
    return compat.module_class(name, form, module, base, {"__call__": forward, "_geometry": _geometry})
