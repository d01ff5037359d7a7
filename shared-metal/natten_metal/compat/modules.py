"""The submodules of NATTEN's generations: which names each contains, built from a package's own parts.

A package passes :class:`Parts`, which only its framework can provide; the rest is the same for both.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, NoneType
from typing import Any

from ..problem.problem import RANKS
from . import checks as compat_checks
from . import flops as compat_flops
from .checks import KernelSchedule
from .context import CONTEXT, FLOP_HANDLER
from .forms import Forms
from .generations import RENAMED_CLASSES, forms
from .inner import INNER
from .tensors import TensorHelpers, dimension_types

Names = dict[str, Any]
Submodules = dict[str, Names]


@dataclass(frozen=True)
class Parts:
    """What a package provides.

    faces(forms, module): the functions of call forms, by name, for the module of that name. helpers: upstream's checks
    of tensors. functions(generation, module): a generation's autograd Function classes, by name. device, dtype, tensor,
    ops, attn_merge, flops, environment: the contents of the submodules of these names, by name. tokens: the contents of
    ``token_permute``, by generation. nested: whether the framework has nested tensors.
    """

    faces: Callable[[Forms, str], Names]
    helpers: TensorHelpers
    functions: Callable[[str, str], Names] = lambda generation, module: {}
    device: Names = field(default_factory=lambda: {"get_device_cc": compat_checks.get_device_cc})
    dtype: Names = field(default_factory=dict)
    tensor: Names = field(default_factory=dict)
    ops: Names = field(default_factory=dict)
    attn_merge: Names = field(default_factory=dict)
    flops: Names = field(default_factory=dict)
    environment: Names = field(default_factory=dict)
    tokens: dict[str, Names] = field(default_factory=dict)
    nested: bool = False


def submodules(generation: str, made: Names, module: str, parts: Parts) -> Submodules:
    """The contents of each submodule of a generation by name (``"utils.checks"``). made: the module's own names."""
    upstream = forms(generation, added=False) | dict.fromkeys(RENAMED_CLASSES.get(generation, {}))
    public = {name: made[name] for name in upstream}
    functions = {name: it for name, it in public.items() if not isinstance(it, type)}
    found: Submodules = {"functional": functions | parts.functions(generation, f"{module}.functional")}
    own = _old if generation < "v020" else _new
    inner: Submodules = {}
    # Children first: a package re-exports the very functions of its modules.
    for name, its in sorted(INNER[generation].items(), reverse=True):
        if name != "nested" or parts.nested:
            known = {n: f for child, names in inner.items() if child.startswith(f"{name}.") for n, f in names.items()}
            inner[name] = {n: known[n] for n in its if n in known}
            inner[name] |= parts.faces({n: form for n, form in its.items() if n not in known}, f"{module}.{name}")
    for part in (own(generation, public, parts), inner):
        for name, its in part.items():
            found[name] = found.get(name, {}) | its
    return found


def _by_rank(stem: str, names: Names) -> Submodules:
    """``natten1d`` and so on: the names of one rank each."""
    found = {stem.format(rank): {n: v for n, v in names.items() if f"{rank}d" in n.lower()} for rank in RANKS}
    if "NeighborhoodAttention" in names:
        found[stem.format(2)]["NeighborhoodAttention"] = names["NeighborhoodAttention"]
    return {name: its for name, its in found.items() if its}


def _old(generation: str, public: Names, parts: Parts) -> Submodules:
    """Up to 0.17: a module for each rank."""
    handles = compat_flops.OLD_HANDLES if generation.startswith("v014") else {}
    found = _by_rank("natten{}d", public)
    found["flops"] = FLOP_HANDLER | handles | compat_flops.HANDLES | compat_flops.COUNTS | parts.flops
    if generation.startswith("v014"):
        return found
    tensor = compat_checks.ADDITIONAL | parts.tensor
    found |= {"ops": dict(parts.ops), "utils.tensor": tensor}
    if generation == "v015":
        # The switches and getters had no module of their own yet.
        switches = CONTEXT[generation] | {"get_device_cc": parts.device["get_device_cc"]}
        return found | {
            "functional": switches,
            "utils": tensor | {"NoneType": NoneType},
            "utils.typing": {"NoneType": NoneType},
        }
    checks = compat_checks.ARGUMENTS | {
        **{name: compat_checks.TUPLES[name] for name in ("create_dim_from_int", "create_causal_arg_from_bool")},
        "check_all_args": compat_checks.check_all_args_without_stride,
    }
    misc = {"get_device_cc": parts.device["get_device_cc"]}
    return (
        found
        | _by_rank("na{}d", public)
        | {
            "context": CONTEXT[generation],
            "types": _types() | {name: checks[name] for name in ("create_dim_from_int", "create_causal_arg_from_bool")},
            "utils": tensor | checks | misc,
            "utils.checks": checks,
            "utils.log": dict(compat_checks.LOG),
            "utils.misc": misc,
        }
    )


def _new(generation: str, public: Names, parts: Parts) -> Submodules:
    """From 0.20 on: submodules by topic."""
    checks = {
        **compat_checks.ARGUMENTS,
        **compat_checks.TUPLES,
        **parts.helpers.checks(),
        "check_all_args": compat_checks.check_all_args,
        "KernelSchedule": KernelSchedule,
    }
    configs = {name: value for name, value in CONTEXT[generation].items() if "configs_for" in name}
    tokens = parts.tokens.get(generation, {})
    found: Submodules = {
        "attn_merge": {"merge_attentions": public["merge_attentions"]} | parts.attn_merge,
        "backends": configs | parts.helpers.backends(),
        "context": CONTEXT[generation],
        "modules": {name: value for name, value in public.items() if name.startswith("NeighborhoodAttention")},
        "types": _types(),
        "utils": {},
        "utils.checks": checks | parts.helpers.varlen(),
        "utils.device": dict(parts.device),
        "utils.dtype": dict(parts.dtype),
        "utils.log": dict(compat_checks.LOG),
        "utils.tensor": compat_checks.ADDITIONAL | parts.tensor,
        "utils.tuples": dict(compat_checks.TUPLES),
    }
    if tokens:
        found["token_permute"] = tokens
    if generation == "v021":
        found["utils.environment"] = compat_checks.ENVIRONMENT | parts.environment
        found["utils.varlen"] = {"generate_varlen_parameters": parts.helpers.generate}
        if tokens:
            found |= {"token_permute.frontend": tokens, "token_permute.torch_impl": tokens}
    return found


def _types() -> Names:
    """``natten.types``: annotations; shapes of CUDA tiles are tuples here."""
    tiles: Names = {
        "QKTileShapeType": tuple[tuple[int, ...], tuple[int, ...]],
        "FmhaForwardConfigType": tuple[int, int],
    }
    for backend in ("Cutlass", "CutlassHopper", "CutlassBlackwell", "Flex"):
        for way in ("Forward", "Backward"):
            tiles |= {f"{backend}Fna{way}ConfigType": tuple, f"{backend}Fmha{way}ConfigType": tuple}
    older = dict.fromkeys(("FnaForwardConfigType", "FnaBackwardConfigType", "FnaTileShapeType"), tuple)
    return {
        **dimension_types(),
        **tiles,
        **older,
        "ListOrNestedTensor": Any,
        "KernelSchedule": KernelSchedule,
        "NoneType": NoneType,
    }


# --- as modules ------------------------------------------------------------------------------------


def new_module(name: str, text: str, contents: Names) -> ModuleType:
    """A module that looks as if it had been imported."""
    module = ModuleType(name, text)
    # All of them packages, so that an unknown submodule is "No module named ...".
    module.__spec__ = ModuleSpec(name, None, origin=__package__, is_package=True)
    module.__path__ = []
    module.__package__ = name
    for each, value in contents.items():
        setattr(module, each, value)
    return module


def as_modules(root: str, text: str, found: Submodules) -> dict[str, ModuleType]:
    """The modules ``root.name`` for the names in ``found``, each an attribute of its parent."""
    made: dict[str, ModuleType] = {}
    for name in sorted(found):
        made[name] = new_module(f"{root}.{name}", text, found[name])
        above, _, child = name.rpartition(".")
        if above:
            setattr(made[above], child, made[name])
    return made
