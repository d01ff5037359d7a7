"""Upstream's switches and their getters. Switches only keep their value, because nothing here depends on them.

Upstream's switches choose among CUDA kernels, or trade memory and determinism for speed. Results of this package are
always deterministic, in memory proportional to the number of tokens, and never computed by flex_attention.
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
    "is_tiled_na_enabled": True,
    "is_gemm_na_enabled": True,
    "is_gemm_tf32_enabled": True,
    "use_flex_attention": False,
    "force_flex_attention": False,
    "flex_compile_allowed": False,
    "flex_compile_backprop_allowed": False,
    "training_memory_preference": MemoryUsagePreference.Default,
}
# Upstream's name of each stored setting, with that of its getter.
_TUNING = {
    "enabled_for_forward": "is_autotuner_enabled_for_forward",
    "enabled_for_backward": "is_autotuner_enabled_for_backward",
    "thorough_mode_forward": "is_autotuner_thorough_for_forward",
    "thorough_mode_backward": "is_autotuner_thorough_for_backward",
}
_STEPS = ("warmup_steps_forward", "warmup_steps_backward", "steps_forward", "steps_backward")
Names = dict[str, Any]


def _settings(name: str, defaults: Names) -> Any:
    """A class that holds the process's settings; ``reset()`` restores the defaults."""

    def reset() -> None:
        for setting, value in defaults.items():
            setattr(made, setting, value)

    text = f"Upstream's ``{name}``: settings of the process. ``reset()`` makes them what they are at the start."
    made = type(name, (), defaults | {"reset": staticmethod(reset), "__doc__": text})
    return made


def _answer(value: bool, why: str) -> Callable[..., bool]:
    def answer(device_index: Any = None) -> bool:
        return value

    answer.__doc__ = f"{value}: {why}."
    return answer


def no_configs(*tensors: Any, **arguments: Any) -> list[Any]:
    """Tile configurations of upstream's CUDA kernels for these tensors: none."""
    return []


class _Switches:
    """Switches and getters over one set of settings. kv_parallel: whether KV parallelism is on by default."""

    def __init__(self, kv_parallel: bool) -> None:
        self.context = _settings("NattenContext", _DEFAULTS | {"is_kv_parallelism_enabled": kv_parallel})
        self.tuner = _settings("AutotunerContext", dict.fromkeys(_TUNING, False) | dict.fromkeys(_STEPS, 5))

    def switch(self, setting: str) -> Callable[..., None]:
        def switch(mode: bool = True) -> None:
            setattr(self.context, setting, bool(mode))

        switch.__doc__ = f"Remember whether {setting!r} is wanted; it changes nothing here."
        return switch

    def question(self, setting: str, tuner: bool = False) -> Callable[[], Any]:
        settings = self.tuner if tuner else self.context

        def question() -> Any:
            return getattr(settings, setting)

        question.__doc__ = f"What {setting!r} was last set to."
        return question

    def set_and_tell(self, setting: str, value: bool) -> Callable[[], bool]:
        def switch() -> bool:
            setattr(self.context, setting, value)
            return value

        switch.__doc__ = f"Set {setting!r} to {value} and return it."
        return switch

    def preference_is(self, preference: MemoryUsagePreference) -> Callable[[], bool]:
        def question() -> bool:
            return self.context.training_memory_preference is preference

        question.__doc__ = f"Whether the preference is {preference.name.lower()!r}."
        return question

    def set_memory_usage_preference(self, pref: str = "default") -> None:
        """Store 'default', 'strict' or 'unrestricted'; ValueError for anything else."""
        names = {preference.name.lower(): preference for preference in MemoryUsagePreference}
        if pref not in names:
            raise ValueError(f"set_memory_usage_preference: pref must be one of {', '.join(names)}; got {pref!r}")
        self.context.training_memory_preference = names[pref]

    def use_fused_na(
        self,
        mode: bool = True,
        kv_parallel: bool = True,
        use_flex_attention: bool = False,
        force_flex_attention: bool = False,
    ) -> None:
        """Store whether modules should use the fused op; here they always do, unless dropout needs the weights."""
        self.context.is_fused_na_enabled = bool(mode)
        self.context.is_kv_parallelism_enabled = bool(mode and kv_parallel)
        self.context.use_flex_attention = bool(mode and use_flex_attention)
        self.context.force_flex_attention = bool(mode and force_flex_attention)

    def use_flex_attention(self, mode: bool = True) -> None:
        """Store whether flex_attention should run the fused op; it never does here."""
        self.use_fused_na(mode, use_flex_attention=True)

    def force_flex_attention(self) -> None:
        """Store that flex_attention is preferred; it never runs here."""
        self.use_fused_na(True, use_flex_attention=True, force_flex_attention=True)

    def use_autotuner(
        self,
        forward_pass: bool | None = None,
        backward_pass: bool | None = None,
        thorough_mode_forward: bool | None = None,
        thorough_mode_backward: bool | None = None,
        warmup_steps_forward: int | None = None,
        warmup_steps_backward: int | None = None,
        steps_forward: int | None = None,
        steps_backward: int | None = None,
    ) -> None:
        """Store the settings of the auto-tuner, which does not exist here: plans are made from the problem alone.

        TypeError for numbers of steps that are not ints.
        """
        asked = (forward_pass, backward_pass, thorough_mode_forward, thorough_mode_backward)
        for setting, mode in zip(_TUNING, asked, strict=True):
            if mode is not None:
                setattr(self.tuner, setting, bool(mode))
        steps = (warmup_steps_forward, warmup_steps_backward, steps_forward, steps_backward)
        for setting, count in zip(_STEPS, steps, strict=True):
            if count is not None and type(count) is not int:
                raise TypeError(f"use_autotuner: {setting} must be an int; got {type(count).__name__}")
            if count is not None:
                setattr(self.tuner, setting, count)

    def disable_autotuner(self) -> None:
        """Reset the settings of the auto-tuner."""
        self.tuner.reset()

    def is_autotuner_enabled(self) -> bool:
        """Whether it was enabled in either direction."""
        return self.tuner.enabled_for_forward or self.tuner.enabled_for_backward

    def allow_flex_compile(self, mode: bool = True, backprop: bool = False) -> None:
        """Store the guard of compiled flex_attention; backprop is allowed only with mode."""
        self.context.flex_compile_allowed = bool(mode)
        self.context.flex_compile_backprop_allowed = bool(mode and backprop)

    def allow_flex_compile_backprop(self, mode: bool = True) -> None:
        """Store the guard of its gradients, allowed only together with compilation."""
        self.allow_flex_compile(self.context.flex_compile_allowed, mode)

    def disable_flex_compile(self) -> None:
        """Turn both guards off."""
        self.allow_flex_compile(False)

    def disable_flex_compile_backprop(self) -> None:
        """Turn the guard of the gradients off."""
        self.allow_flex_compile(self.context.flex_compile_allowed, False)

    def common(self) -> Names:
        """The settings of every generation since 0.17."""
        return {
            "MemoryUsagePreference": MemoryUsagePreference,
            "NattenContext": self.context,
            "use_kv_parallelism_in_fused_na": self.switch("is_kv_parallelism_enabled"),
            "is_kv_parallelism_in_fused_na_enabled": self.question("is_kv_parallelism_enabled"),
            "set_memory_usage_preference": self.set_memory_usage_preference,
            "get_memory_usage_preference": self.question("training_memory_preference"),
            **{f"is_memory_usage_{each.name.lower()}": self.preference_is(each) for each in MemoryUsagePreference},
            "use_deterministic_algorithms": self.switch("is_deterministic_mode_enabled"),
            "are_deterministic_algorithms_enabled": self.question("is_deterministic_mode_enabled"),
        }

    def kernels(self) -> Names:
        """Which of 0.15's and 0.17's unfused CUDA kernels run."""
        made: Names = {}
        settings = {"tiled_na": "is_tiled_na_enabled", "gemm_na": "is_gemm_na_enabled"}
        for name, setting in settings.items():
            made |= {f"use_{name}": self.switch(setting), f"is_{name}_enabled": self.question(setting)}
        made["use_tf32_in_gemm_na"] = self.switch("is_gemm_tf32_enabled")
        made["is_tf32_in_gemm_na_enabled"] = self.question("is_gemm_tf32_enabled")
        for name, setting in {**settings, "tf32": "is_gemm_tf32_enabled"}.items():
            made |= {f"enable_{name}": self.set_and_tell(setting, True)}
            made |= {f"disable_{name}": self.set_and_tell(setting, False)}
        return made

    def fused(self) -> Names:
        """0.17's fused op and its auto-tuner."""
        named = (
            self.use_fused_na,
            self.use_flex_attention,
            self.force_flex_attention,
            self.use_autotuner,
            self.disable_autotuner,
            self.is_autotuner_enabled,
        )
        return {
            **{each.__name__: each for each in named},
            "AutotunerContext": self.tuner,
            "use_fna": self.use_fused_na,
            "is_fused_na_enabled": self.question("is_fused_na_enabled"),
            "is_fna_enabled": self.question("is_fused_na_enabled"),
            "should_use_flex_attention": self.question("use_flex_attention"),
            "should_force_flex_attention": self.question("force_flex_attention"),
            **{question: self.question(name, tuner=True) for name, question in _TUNING.items()},
        }

    def flex(self) -> Names:
        """0.20's guards of flex_attention."""
        named = (
            self.allow_flex_compile,
            self.allow_flex_compile_backprop,
            self.disable_flex_compile,
            self.disable_flex_compile_backprop,
        )
        return {
            **{each.__name__: each for each in named},
            "is_flex_compile_allowed": self.question("flex_compile_allowed"),
            "is_flex_compile_backprop_allowed": self.question("flex_compile_backprop_allowed"),
        }


_NO_CUDA, _ALWAYS = "there is no CUDA here", "every backend has it"
# The settings of every generation.
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
_CONFIGS: Names = {
    f"get_{way}configs_for_{kernels}_{op}": no_configs
    for way in ("", "bwd_")
    for kernels in ("cutlass", "cutlass_hopper", "cutlass_blackwell")
    for op in ("fna", "fmha")
} | {"get_configs_for_flex_fna": no_configs, "get_configs_for_flex_fmha": no_configs}

# KV parallelism was off by default in 0.17, and has been on since.
_OLD, _NEW = _Switches(kv_parallel=False), _Switches(kv_parallel=True)
# The switches and getters of each generation. 0.3's modules had has_* everywhere, so 0.20 and 0.21 keep them; 0.21 also
# keeps the switches of 0.17, none of which has another meaning there.
CONTEXT: dict[str, Names] = {
    "v0141": {},
    "v0145": {},
    "v014": {},
    "v015": {**_DEVICE, **_OLD.kernels()},
    "v017": {**_OLD.common(), **_DEVICE, **_OLD.kernels(), **_OLD.fused()},
    "v020": {**_DEVICE, **_NEW.common(), **_NEW.flex(), **_CONFIGS, "HAS_LIBNATTEN": True},
    "v021": {
        **_NEW.common(),
        **_DEVICE,
        **_NEW.kernels(),
        **_NEW.fused(),
        **_NEW.flex(),
        **_CONFIGS,
        "HAS_LIBNATTEN": True,
    },
}


class _FlopHandler:
    """0.3's name for its handler; it counts nothing."""

    def __call__(self, *args: Any, **kwargs: Any) -> int:
        return 0


FLOP_HANDLER = {"_FlopHandler": _FlopHandler}
