"""Weights that travel: between NATTEN's checkpoints, natten-mps and natten-mlx.

Every generation of NATTEN, and both packages, call a module's weights the same: ``qkv`` (or ``q_proj`` and
``kv_proj`` with fewer key/value heads), ``proj`` and ``rpb``. What differs is the framework, what a checkpoint is
wrapped in, and the file. Everything passes through numpy; bfloat16, which numpy lacks, through float32, exactly.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Arrays = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

# What training scripts wrap a state dict in, and what parallel training puts before every name.
WRAPPERS = ("state_dict", "model", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.")
# safetensors' names of dtypes, as numpy's; bfloat16 is read as 16-bit integers and widened.
SAFETENSORS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
FILES = (".npz", ".safetensors")


def to_numpy(name: str, tensor: Any) -> Any:
    """An array of numpy, torch or MLX as numpy's own; TypeError for anything else."""
    import numpy

    home = type(tensor).__module__.split(".")[0]
    if home == "torch":
        plain = tensor.detach().cpu()
        return (plain.float() if str(plain.dtype) == "torch.bfloat16" else plain).numpy()
    if home == "mlx":
        framework = sys.modules["mlx.core"]
        return numpy.array(tensor.astype(framework.float32) if tensor.dtype == framework.bfloat16 else tensor)
    if not isinstance(tensor, (numpy.ndarray, numpy.generic)):
        raise TypeError(f"load_weights: {name} must be an array of numpy, torch or MLX; got {type(tensor).__name__}")
    return numpy.asarray(tensor)


def named(state: Any) -> Arrays:
    """The weights of a checkpoint by full name: unwrapped, flat, without the prefixes of parallel training."""
    if not isinstance(state, Mapping):
        raise TypeError(f"load_weights: weights must be a mapping of names to arrays; got {type(state).__name__}")
    for wrapper in WRAPPERS:
        inner = state.get(wrapper)
        # A model may have a layer called 'model': a wrapper holds names with dots, or arrays, at once.
        if isinstance(inner, Mapping) and any(not isinstance(value, (Mapping, list)) for value in inner.values()):
            return named(inner)
    flat = dict(_flattened("", state))
    for prefix in PREFIXES:
        while flat and all(name.startswith(prefix) for name in flat):
            flat = {name.removeprefix(prefix): value for name, value in flat.items()}
    return {name: to_numpy(name, value) for name, value in flat.items()}


def _flattened(path: str, state: Any) -> Iterator[tuple[str, Any]]:
    """Names with dots for what MLX keeps in dicts and lists."""
    if isinstance(state, Mapping):
        parts: Any = state.items()
    elif isinstance(state, (list, tuple)):
        parts = enumerate(state)
    else:
        yield path, state
        return
    for name, value in parts:
        yield from _flattened(f"{path}.{name}" if path else str(name), value)


def fitting(given: Shapes, wanted: Shapes, strict: bool) -> tuple[list[str], list[str]]:
    """Names that are missing from ``given``, and names there that nothing wants.

    ValueError where shapes differ, and with ``strict`` where either list is not empty.
    """
    for name, shape in wanted.items():
        if name in given and tuple(given[name]) != tuple(shape):
            raise ValueError(f"load_weights: {name} must have shape {tuple(shape)}; got {tuple(given[name])}")
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    if strict and (missing or unexpected):
        parts = [("missing", missing), ("not in the module", unexpected)]
        listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in parts if names)
        raise ValueError(f"load_weights: {listed}{_hint(missing, unexpected)}")
    return missing, unexpected


def _hint(missing: list[str], unexpected: list[str]) -> str:
    """What the module would have to be made with, if the names tell."""

    def ends(names: list[str], what: str) -> bool:
        return any(what in name.split(".") for name in names)

    if ends(unexpected, "rpb"):
        return ". The weights have a bias table: make the module with rel_pos_bias=True"
    if ends(missing, "rpb"):
        return ". The weights have no bias table: make the module with rel_pos_bias=False"
    if ends(missing, "qkv") and ends(unexpected, "kv_proj"):
        return ". The weights have fewer key/value heads: make the module with num_kv_heads"
    if ends(missing, "kv_proj") and ends(unexpected, "qkv"):
        return ". The weights have as many key/value heads as heads: make the module without num_kv_heads"
    return ""


# --- files -----------------------------------------------------------------------------------------


def _kind(path: Path, face: str, more: str = "") -> str:
    if path.suffix not in FILES:
        raise ValueError(f"{face}: a file of weights ends in {' or '.join(FILES)}{more}; got {path.name!r}")
    return path.suffix


def read(path: Any, more: str = "") -> Arrays:
    """The arrays of an .npz or .safetensors file. more: what else the caller reads, for the message."""
    import numpy

    path = Path(path)
    if _kind(path, "load_weights", more) == ".npz":
        with numpy.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    return _read_safetensors(path)


def write(path: Any, arrays: Mapping[str, Any]) -> None:
    """``arrays`` of any framework as an .npz or .safetensors file; bfloat16 becomes float32."""
    import numpy

    path = Path(path)
    plain = {name: to_numpy(name, array) for name, array in arrays.items()}
    if _kind(path, "save_weights") == ".npz":
        numpy.savez(path, **plain)
        return
    names = {kind: name for name, kind in SAFETENSORS.items() if name != "BF16"}
    header, blobs, end = {}, [], 0
    for name, array in plain.items():
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        start, end = end, end + array.nbytes
        if array.dtype.str not in names:
            raise TypeError(f"save_weights: .safetensors files hold no {array.dtype}, which {name} is")
        header[name] = {"dtype": names[array.dtype.str], "shape": list(array.shape), "data_offsets": [start, end]}
        blobs.append(array.tobytes())
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(b"".join([len(text).to_bytes(8, "little"), text, *blobs]))


def _read_safetensors(path: Path) -> Arrays:
    """A .safetensors file: the length of a JSON header in 8 bytes, the header, and the arrays' bytes."""
    import numpy

    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 + length:
        raise ValueError(f"load_weights: {path.name} is no .safetensors file, or not all of it is there")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        if entry["dtype"] not in SAFETENSORS or end > len(data):
            raise ValueError(f"load_weights: {path.name} has no readable {name} of dtype {entry['dtype']}")
        array = numpy.frombuffer(data[start:end], SAFETENSORS[entry["dtype"]])
        if entry["dtype"] == "BF16":
            array = (array.astype("<u4") << 16).view("<f4")
        found[name] = array.reshape(entry["shape"])
    return found
