"""Upstream's switches and questions: remembered and answered, for nothing here depends on them.

Upstream's switches choose among CUDA kernels, or trade memory and determinism for speed. What this package
computes is always deterministic, in memory proportional to the tokens, and never goes through flex_attention.
So a switch is remembered, and its question answers what was last set.
"""

from collections.abc import Callable
from enum import Enum
from typing import Any


class MemoryUsagePreference(Enum):
    """Upstream's three settings."""

    Default = 0
    Strict = 1
    Unrestricted = 2


_DEFAULTS: dict[str, Any] = {
    "is_deterministic_mode_enabled": False,
    "is_fused_na_enabled": False,
    "is_kv_parallelism_enabled": True,
    "is_tiled_na_enabled": True,
    "is_gemm_na_enabled": True,
    "is_gemm_tf32_enabled": True,
    "is_autotuner_enabled_for_forward": False,
    "is_autotuner_enabled_for_backward": False,
    "is_autotuner_thorough_for_forward": False,
    "is_autotuner_thorough_for_backward": False,
    "is_flex_attention_enabled": False,
    "flex_compile_allowed": False,
    "flex_compile_backprop_allowed": False,
    "training_memory_preference": MemoryUsagePreference.Default,
}


class NattenContext:
    """The settings, one for the process; :meth:`reset` makes them what they are at the start."""

    is_deterministic_mode_enabled: bool
    is_kv_parallelism_enabled: bool
    training_memory_preference: MemoryUsagePreference
    flex_compile_allowed: bool
    flex_compile_backprop_allowed: bool

    @staticmethod
    def reset() -> None:
        for name, value in _DEFAULTS.items():
            setattr(NattenContext, name, value)


NattenContext.reset()


def _switch(setting: str) -> Callable[..., None]:
    def switch(mode: bool = True) -> None:
        setattr(NattenContext, setting, bool(mode))

    switch.__doc__ = f"Remember whether {setting!r} is wanted; it changes nothing here."
    return switch


def _question(setting: str) -> Callable[[], Any]:
    def question() -> Any:
        return getattr(NattenContext, setting)

    question.__doc__ = f"What {setting!r} was last set to."
    return question


def _answer(value: bool, why: str) -> Callable[..., bool]:
    def answer(device_index: Any = None) -> bool:
        return value

    answer.__doc__ = f"{value}: {why}."
    return answer


def _preference_is(preference: MemoryUsagePreference) -> Callable[[], bool]:
    def question() -> bool:
        return NattenContext.training_memory_preference is preference

    question.__doc__ = f"Whether the preference is {preference.name.lower()!r}."
    return question


def _set_and_tell(setting: str, value: bool) -> Callable[[], bool]:
    def switch() -> bool:
        setattr(NattenContext, setting, value)
        return value

    switch.__doc__ = f"Set {setting!r} to {value} and return it."
    return switch


def set_memory_usage_preference(pref: str = "default") -> None:
    """Remember 'default', 'strict' or 'unrestricted'; ValueError for anything else."""
    names = {preference.name.lower(): preference for preference in MemoryUsagePreference}
    if pref not in names:
        raise ValueError(f"set_memory_usage_preference: pref must be one of {', '.join(names)}; got {pref!r}")
    NattenContext.training_memory_preference = names[pref]


def use_fused_na(mode: bool = True, kv_parallel: bool = True, use_flex_attention: bool = False) -> None:
    """Remember whether modules should use the fused op; here they always do, unless dropout needs the weights."""
    setattr(NattenContext, "is_fused_na_enabled", bool(mode))  # noqa: B010 - not an attribute of the type
    NattenContext.is_kv_parallelism_enabled = bool(mode and kv_parallel)
    setattr(NattenContext, "is_flex_attention_enabled", bool(mode and use_flex_attention))  # noqa: B010


def use_autotuner(
    forward_pass: bool | None = None, backward_pass: bool | None = None, thorough_mode_forward: bool | None = None,
    thorough_mode_backward: bool | None = None, warmup_steps_forward: int | None = None,
    warmup_steps_backward: int | None = None, steps_forward: int | None = None, steps_backward: int | None = None,
) -> None:  # fmt: skip
    """Remember what was asked of the auto-tuner, which is not there: plans are made from the problem alone."""
    asked = {
        "is_autotuner_enabled_for_forward": forward_pass,
        "is_autotuner_enabled_for_backward": backward_pass,
        "is_autotuner_thorough_for_forward": thorough_mode_forward,
        "is_autotuner_thorough_for_backward": thorough_mode_backward,
    }
    for setting, mode in asked.items():
        if mode is not None:
            setattr(NattenContext, setting, bool(mode))


def disable_autotuner() -> None:
    """Forget what was asked of the auto-tuner."""
    for setting in _DEFAULTS:
        if setting.startswith("is_autotuner"):
            setattr(NattenContext, setting, False)


def is_autotuner_enabled() -> bool:
    """Whether it was asked for in either direction."""
    return any(getattr(NattenContext, f"is_autotuner_enabled_for_{way}") for way in ("forward", "backward"))


def allow_flex_compile(mode: bool = True, backprop: bool = False) -> None:
    """Remember the guard of compiled flex_attention; backprop is allowed only with mode."""
    NattenContext.flex_compile_allowed = bool(mode)
    NattenContext.flex_compile_backprop_allowed = bool(mode and backprop)


def allow_flex_compile_backprop(mode: bool = True) -> None:
    """Remember the guard of its gradients, allowed only where compilation is."""
    allow_flex_compile(NattenContext.flex_compile_allowed, mode)


def disable_flex_compile() -> None:
    """Both guards off."""
    allow_flex_compile(False)


def disable_flex_compile_backprop() -> None:
    """The guard of the gradients off."""
    allow_flex_compile(NattenContext.flex_compile_allowed, False)


def no_configs(*tensors: Any, **arguments: Any) -> list[Any]:
    """Tile configurations of upstream's CUDA kernels for these tensors: none."""
    return []


_NO_CUDA, _ALWAYS = "there is no CUDA here", "every backend has it"
# What every generation has.
_DEVICE = {
    "has_cuda": _answer(False, _NO_CUDA),
    "has_half": _answer(True, _ALWAYS),
    "has_bfloat": _answer(True, _ALWAYS),
    "has_gemm": _answer(False, _NO_CUDA),
    "has_tf32_gemm": _answer(False, _NO_CUDA),
    "has_fp32_gemm": _answer(False, _NO_CUDA),
    "has_fp64_gemm": _answer(False, _NO_CUDA),
    "has_fna": _answer(True, "the fused op is always there"),
    "has_fused_na": _answer(True, "the fused op is always there"),
}
_COMMON = {
    "MemoryUsagePreference": MemoryUsagePreference,
    "NattenContext": NattenContext,
    "use_kv_parallelism_in_fused_na": _switch("is_kv_parallelism_enabled"),
    "is_kv_parallelism_in_fused_na_enabled": _question("is_kv_parallelism_enabled"),
    "set_memory_usage_preference": set_memory_usage_preference,
    "get_memory_usage_preference": _question("training_memory_preference"),
    "is_memory_usage_default": _preference_is(MemoryUsagePreference.Default),
    "is_memory_usage_strict": _preference_is(MemoryUsagePreference.Strict),
    "is_memory_usage_unrestricted": _preference_is(MemoryUsagePreference.Unrestricted),
    "use_deterministic_algorithms": _switch("is_deterministic_mode_enabled"),
    "are_deterministic_algorithms_enabled": _question("is_deterministic_mode_enabled"),
}
_KERNEL_SWITCHES = {
    "use_tiled_na": _switch("is_tiled_na_enabled"),
    "is_tiled_na_enabled": _question("is_tiled_na_enabled"),
    "use_gemm_na": _switch("is_gemm_na_enabled"),
    "is_gemm_na_enabled": _question("is_gemm_na_enabled"),
    "use_tf32_in_gemm_na": _switch("is_gemm_tf32_enabled"),
    "is_tf32_in_gemm_na_enabled": _question("is_gemm_tf32_enabled"),
    "enable_tiled_na": _set_and_tell("is_tiled_na_enabled", True),
    "disable_tiled_na": _set_and_tell("is_tiled_na_enabled", False),
    "enable_gemm_na": _set_and_tell("is_gemm_na_enabled", True),
    "disable_gemm_na": _set_and_tell("is_gemm_na_enabled", False),
    "enable_tf32": _set_and_tell("is_gemm_tf32_enabled", True),
    "disable_tf32": _set_and_tell("is_gemm_tf32_enabled", False),
}
_FUSED_SWITCHES = {
    "use_fused_na": use_fused_na,
    "use_fna": use_fused_na,
    "is_fused_na_enabled": _question("is_fused_na_enabled"),
    "is_fna_enabled": _question("is_fused_na_enabled"),
    "use_autotuner": use_autotuner,
    "disable_autotuner": disable_autotuner,
    "is_autotuner_enabled": is_autotuner_enabled,
    **{
        f"is_autotuner_{what}_for_{way}": _question(f"is_autotuner_{what}_for_{way}")
        for what in ("enabled", "thorough")
        for way in ("forward", "backward")
    },
    "use_flex_attention": _switch("is_flex_attention_enabled"),
}
_FLEX_SWITCHES = {
    "allow_flex_compile": allow_flex_compile,
    "allow_flex_compile_backprop": allow_flex_compile_backprop,
    "disable_flex_compile": disable_flex_compile,
    "disable_flex_compile_backprop": disable_flex_compile_backprop,
    "is_flex_compile_allowed": _question("flex_compile_allowed"),
    "is_flex_compile_backprop_allowed": _question("flex_compile_backprop_allowed"),
}
_CONFIGS: dict[str, Any] = {
    f"get_{way}configs_for_{kernels}_{op}": no_configs
    for way in ("", "bwd_")
    for kernels in ("cutlass", "cutlass_hopper", "cutlass_blackwell")
    for op in ("fna", "fmha")
} | {"get_configs_for_flex_fna": no_configs, "get_configs_for_flex_fmha": no_configs}

_SEVENTEEN: dict[str, Any] = {**_COMMON, **_DEVICE, **_KERNEL_SWITCHES, **_FUSED_SWITCHES}
_TWENTY: dict[str, Any] = {**_COMMON, **_FLEX_SWITCHES, **_CONFIGS, "HAS_LIBNATTEN": True}
# The switches and questions of each generation. 0.3's modules had has_* everywhere, so 0.20 and 0.21 keep them;
# 0.21 keeps the switches of 0.17 too, none of which has another meaning there.
CONTEXT: dict[str, dict[str, Any]] = {
    "v0141": {},
    "v0145": {},
    "v014": {},
    "v015": {**_DEVICE, **_KERNEL_SWITCHES},
    "v017": _SEVENTEEN,
    "v020": {**_DEVICE, **_TWENTY},
    "v021": {**_SEVENTEEN, **_TWENTY},
}


class _FlopHandler:
    """What 0.3 called its handler: counts nothing."""

    def __call__(self, *args: Any, **kwargs: Any) -> int:
        return 0


def add_natten_handle(flop_counter: Any) -> Any:
    """fvcore's counter as it came: neighborhood attention is not among what it counts."""
    return flop_counter


FLOPS = {"add_natten_handle": add_natten_handle, "_FlopHandler": _FlopHandler}
