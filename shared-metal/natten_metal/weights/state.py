"""Weights that are interchangeable between NATTEN's checkpoints, natten-mps and natten-mlx.

Every generation of NATTEN, and both packages, use the same names for a module's weights: ``qkv`` (or ``q_proj`` and
``kv_proj`` with fewer key/value heads), ``proj`` and ``rpb``. What differs is the framework, what a checkpoint is
wrapped in, and the file. Everything passes through numpy; bfloat16, which numpy lacks, through float32, exactly.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Arrays = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

# Keys under which training scripts wrap a state dict.
WRAPPERS = ("state_dict", "model", "model_state_dict")
# Prefixes that torch adds to names: torch.compile, FSDP and activation checkpointing anywhere, parallel training and
# averaged models in front of all of them.
INSERTED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
PREFIX, COUNTER = "module.", "n_averaged"


def to_numpy(name: str, tensor: Any, face: str = "load_weights") -> Any:
    """An array of numpy, torch or MLX as numpy's own; TypeError for anything else."""
    import numpy

    torch, mlx = sys.modules.get("torch"), sys.modules.get("mlx.core")
    if torch is not None and isinstance(tensor, torch.Tensor):
        plain = tensor.detach().cpu()
        plain = plain.dequantize() if plain.is_quantized else plain
        # numpy has no bfloat16 and no float8; float32 holds both exactly.
        narrow = plain.is_floating_point() and plain.dtype not in (torch.float16, torch.float32, torch.float64)
        return (plain.float() if narrow else plain).numpy()
    if mlx is not None and isinstance(tensor, mlx.array):
        return numpy.array(tensor.astype(mlx.float32) if tensor.dtype == mlx.bfloat16 else tensor)
    if not isinstance(tensor, (numpy.ndarray, numpy.generic)):
        packed = "._packed_params" in name
        hint = ". torch packed these weights when it quantised the module: take the ones from before" if packed else ""
        raise TypeError(f"{face}: {name} must be an array of numpy, torch or MLX; got {type(tensor).__name__}{hint}")
    return numpy.asarray(tensor)


def widened(bits: Any) -> Any:
    """bfloat16, given as 16-bit integers, as float32."""
    return (bits.astype("<u4") << 16).view("<f4")


def bare(names: Iterable[str]) -> dict[str, str]:
    """Each name without the prefixes of torch's wrappers: ``{name: bare name}``."""
    parts = {name: [part for part in name.split(".") if part not in INSERTED] for name in names}
    found = {name: ".".join(own) for name, own in parts.items()}
    while any(own.startswith(PREFIX) for own in found.values()):
        if not all(own.startswith(PREFIX) or own == COUNTER for own in found.values()):
            break
        found = {name: own.removeprefix(PREFIX) for name, own in found.items() if own != COUNTER}
    return found


def named(state: Any, wanted: Iterable[str]) -> Arrays:
    """The weights of a checkpoint by bare name: flat, and taken out of the wrapping of training scripts.

    wanted: the module's own bare names. A wrapper is opened only if ``state`` itself has none of them, because a model
    may have a layer called 'model'.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"load_weights: weights must be a mapping of names to arrays; got {type(state).__name__}")
    own = set(wanted)
    flat = dict(_flattened("", state))
    short = bare(flat)
    if own.isdisjoint(short.values()):
        for wrapper in WRAPPERS:
            inner = state.get(wrapper)
            if isinstance(inner, Mapping) and inner:
                return named(inner, own)
    return {short[name]: to_numpy(name, value) for name, value in flat.items() if name in short}


def _flattened(path: str, state: Any) -> Iterator[tuple[str, Any]]:
    """Dotted names for what MLX keeps in dicts and lists."""
    if isinstance(state, Mapping):
        parts: Any = state.items()
    elif isinstance(state, (list, tuple)) and not path.endswith("_packed_params"):
        parts = enumerate(state)
    else:
        yield path, state
        return
    for name, value in parts:
        yield from _flattened(f"{path}.{name}" if path else str(name), value)


def fitting(given: Shapes, wanted: Shapes, strict: bool) -> tuple[list[str], list[str]]:
    """Names that are missing from ``given``, and names there that no parameter has.

    ValueError where shapes differ, and with ``strict`` where either list is not empty.
    """
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    hint = _hint(missing, unexpected)
    for name, shape in wanted.items():
        if name in given and tuple(given[name]) != tuple(shape):
            raise ValueError(f"load_weights: {name} must have shape {tuple(shape)}; got {tuple(given[name])}{hint}")
    if strict and (missing or unexpected):
        parts = [("missing", missing), ("not in the module", unexpected)]
        listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in parts if names)
        raise ValueError(f"load_weights: {listed}{hint}")
    return missing, unexpected


def _hint(missing: list[str], unexpected: list[str]) -> str:
    """The arguments that the module would need, if the names tell."""

    def ends(names: list[str], what: str) -> bool:
        return any(what in name.split(".") for name in names)

    if ends(missing, "scales"):
        return ". The module is quantised: load the weights first, and quantise it then"
    if ends(unexpected, "scales"):
        return ". The weights are quantised: quantise the module alike before it is loaded"
    if ends(unexpected, "rpb"):
        return ". The weights have an rpb: make the module with rel_pos_bias=True"
    if ends(missing, "rpb"):
        return ". The weights have no rpb: make the module with rel_pos_bias=False"
    if ends(missing, "qkv") and ends(unexpected, "kv_proj"):
        return ". The weights have fewer key/value heads: make the module with num_kv_heads"
    if ends(missing, "kv_proj") and ends(unexpected, "qkv"):
        return ". The weights have as many key/value heads as heads: make the module without num_kv_heads"
    return ""
