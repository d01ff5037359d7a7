"""From a generation's call forms to functions and modules over a package's own."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from ..api import attention
from ..api.framework import Framework
from ..api.operations import Tensor, pad
from ..plan import plan
from ..problem.ops import AV, FULL, FUSED, QK
from ..problem.problem import Problem
from . import generations
from . import modules as compat_modules
from .context import CONTEXT, FLOP_HANDLER
from .forms import Form, Forms
from .tensors import TensorHelpers

Given = dict[str, Any]
Adapter = Callable[[str, Form, Given], Any]


def tensor_helpers(fw: Framework, generate: Callable[..., tuple[Any, Any, int, int]]) -> TensorHelpers:
    """Upstream's checks and questions for a package. generate: its ``generate_varlen_parameters``."""

    def compatible(problem: Problem, tensor: Tensor) -> list[str]:
        device = fw.device_of(tensor, fw.stream_of("get_compatible_backends", None))
        return [each for each in fw.ORDER if plan.refusal(problem, device, each, fw.machine().verdicts) is None]

    return TensorHelpers(fw.spec, compatible, generate)


@dataclass
class Generations:
    """What makes the modules of the generations of one package.

    functional, modules: the package's. forward: what its modules call the method that computes. each: wraps the
    adapters of the split and fused ops. names: what a generation's module has besides its forms. parts: what the
    submodules hold, of the functions that make call forms.
    """

    fw: Framework
    functional: ModuleType
    modules: ModuleType
    forward: str
    names: Mapping[str, Any]
    parts: Callable[["Generations"], compat_modules.Parts]
    each: Callable[[Adapter], Adapter] = lambda run: run
    submodules: dict[str, compat_modules.Submodules] = field(default_factory=dict)

    def define(self, module: str) -> None:
        """Fill the module of a generation (``natten_X.compat.v017``), and import its submodules."""
        name = module.rpartition(".")[2]
        made = self.faces(generations.forms(name), module)
        made |= {old: made[new] for old, new in generations.RENAMED_CLASSES.get(name, {}).items()}
        found = self.submodules[name] = compat_modules.submodules(name, made, module, self.parts(self))
        made |= CONTEXT[name] | FLOP_HANDLER | dict(self.names)
        made |= {"__all__": sorted(made), "__version__": generations.LAST[name], "__doc__": generations.docstring(name)}
        inside = compat_modules.as_modules(module, f"Part of {module}.", found)
        sys.modules.update({f"{module}.{each}": it for each, it in inside.items()})
        vars(sys.modules[module]).update({each: it for each, it in inside.items() if "." not in each} | made)

    def faces(self, forms: Forms, module: str) -> dict[str, Any]:
        """The functions and classes of call forms, by name, for the module of that name."""
        return {
            name: self._module(name, form, module)
            if form.kind == "module"
            else generations.face(name, form, module, self.adapter(form))
            for name, form in forms.items()
        }

    def adapter(self, form: Form) -> Adapter:
        """What runs a call form."""
        own = {QK.name: self._qk, AV.name: self._av, "fused": self._fused}
        return (
            self.each(own[form.kind]) if form.kind in own else {FULL.name: self._full, "merge": self._merge}[form.kind]
        )

    # --- split ops: heads-first, unscaled ----------------------------------------------------------

    def _heads_last(self, tensor: Any) -> Any:
        return self.fw.operations.moveaxis(tensor, 1, -2) if self.fw.is_tensor(tensor) else tensor

    def _heads_first(self, tensor: Tensor) -> Tensor:
        return self.fw.operations.moveaxis(tensor, -2, 1)

    def _qk(self, name: str, form: Form, given: Given) -> Tensor:
        query, key = given["query"], given["key"]
        generations.heads_first_rank(name, form.rank, {"query": query, "key": key})
        kernel_size, dilation = generations.legacy_window(name, form, given)
        logits = getattr(self.functional, QK.faces[form.rank])(
            self._heads_last(query),
            self._heads_last(key),
            kernel_size,
            dilation,
            is_causal=given.get("is_causal", False),
            scale=1.0,
            rpb=given.get("rpb", given.get("bias")),
        )
        logits, more = self._heads_first(logits), given.get("additional_keys")
        if more is None:
            return logits
        generations.additional(name, "additional_keys", more, (query.shape[0], query.shape[1], query.shape[-1]))
        products = query.flatten(2, -2) @ more.swapaxes(-1, -2)
        products = self.fw.operations.astype(products.reshape(*logits.shape[:-1], more.shape[2]), logits.dtype)
        return self.fw.operations.concatenate([logits, products], -1)

    def _av(self, name: str, form: Form, given: Given) -> Tensor:
        attn, value = given["attn"], given["value"]
        generations.heads_first_rank(name, form.rank, {"attn": attn, "value": value})
        kernel_size, dilation = generations.legacy_window(name, form, given)
        own, more = attn, given.get("additional_values")
        if more is not None:
            generations.additional(name, "additional_values", more, (value.shape[0], attn.shape[1], value.shape[-1]))
            own = attn[..., : generations.window_slots(name, attn, more.shape[2], kernel_size, form.rank)]
        out = getattr(self.functional, AV.faces[form.rank])(
            self._heads_last(own),
            self._heads_last(value),
            kernel_size,
            dilation,
            is_causal=given.get("is_causal", False),
        )
        out = self._heads_first(out)
        if more is None:
            return out
        products = self.fw.operations.astype(attn[..., own.shape[-1] :].flatten(2, -2), more.dtype) @ more
        return out + self.fw.operations.astype(products.reshape(out.shape), out.dtype)

    # --- fused ops: heads-last ---------------------------------------------------------------------

    def _fused(self, name: str, form: Form, given: Given) -> Any:
        run = getattr(self.functional, FUSED.faces[form.rank])
        return run(**generations.shared_arguments(name, form, given))

    def _full(self, name: str, form: Form, given: Given) -> Any:
        return self.functional.attention(**generations.shared_arguments(name, form, given))

    def _merge(self, name: str, form: Form, given: Given) -> Any:
        out, lse = attention.merge(self.fw, given["outputs"], given["lse_tensors"], {})
        # Until 0.21.1 the output alone.
        return (out, lse) if "use_autograd_fix" in form.names else out

    # --- modules -----------------------------------------------------------------------------------

    def _module(self, name: str, form: Form, module: str) -> Any:
        """A generation's module: this package's, with another constructor."""
        xp = self.fw.operations

        def forward(self: Any, x: Tensor) -> Tensor:
            """``[B, *shape, C]`` -> the same."""
            return self._attend_module(x, None)

        def padding_forward(self: Any, x: Tensor) -> Tensor:
            """``[B, *shape, C]`` -> the same; an axis shorter than its window is padded with zeros at its end."""
            shape = tuple(x.shape[1:-1])
            missing = generations.padding(shape, self.kernel_size, self.dilation) if len(shape) == self.rank else ()
            if not any(missing):
                return self._attend_module(x, None)
            out = self._attend_module(pad(xp, x, {1 + axis: (0, count) for axis, count in enumerate(missing)}), None)
            return out[(slice(None), *(slice(length) for length in shape))]

        def geometry(self: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
            """The window for an input of ``shape``, from which the first generation took its dilation."""
            latest = (generations.latest_dilation(shape, self.kernel_size),) * self.rank
            return self.kernel_size, self.stride, latest if self.late_dilation else self.dilation, self.is_causal

        ranked = f"NeighborhoodAttention{form.rank}D" if form.rank else "_NeighborhoodAttention"
        methods = {self.forward: padding_forward if generations.pads(form) else forward, "_geometry": geometry}
        return generations.module_class(name, form, module, getattr(self.modules, ranked), methods)
