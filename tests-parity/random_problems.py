"""A random problem on one backend: its results and gradients compared with brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
from brute_force import Random
from frameworks import Path
from rounding import accumulator, assert_explained

OPS = ("na", "qk", "av", "varlen")
RESULTS = {"na": ("out", "lse"), "varlen": ("out", "lse"), "qk": ("logits",), "av": ("out",)}


def call(path: Path, given: Random) -> None:
    """Assert that results and gradients of a problem are within their bounds."""
    framework, dtype = path.framework, given.dtype
    names = [name for name in given.arrays if not name.startswith("d_") and name != "key_mask"]
    arguments: dict[str, Any] = given.window.arguments | ({} if given.cut is None else given.cut.arguments)
    face = f"na{given.rank}d" + ("" if given.op == "na" else f"_{given.op}")
    arrays = dict(given.arrays)
    if given.op in ("na", "varlen"):
        arguments["return_lse"] = True
    if given.op == "varlen":
        arguments["seq_lens" if given.rank == 1 else "spatial_sizes"] = (
            [size[0] for size in given.sizes] if given.rank == 1 else list(given.sizes)
        )
        # Padding is not read.
        for name, array in arrays.items():
            held = np.zeros(array.shape, bool)
            for item, size in enumerate(given.sizes):
                held[(item, *map(slice, size))] = True
            arrays[name] = np.where(held, array, np.nan)
    if "key_mask" in arrays:
        arguments["key_mask"] = framework.tensor(arrays["key_mask"], "bool")
        # Masked keys are not read.
        shown = arrays["key_mask"][..., None, None]
        arrays["key"], arrays["value"] = (
            np.where(shown, arrays[n], x) for n, x in (("key", np.nan), ("value", np.inf))
        )
    cotangents = ["d_" + name for name in RESULTS[given.op]]

    def apply(*tensors: Any) -> Any:
        found = framework.face(face)(**dict(zip(names, tensors, strict=True)), **arguments, backend=path.backend)
        return found if isinstance(found, tuple) else (found,)

    with framework.watch() as ran:
        results, gradients = framework.vjp(
            apply,
            [framework.tensor(arrays[n], dtype) for n in names],
            [framework.tensor(arrays[n], accumulator(dtype) if n == "d_lse" else dtype) for n in cotangents],
        )
    assert ran == {path.backend}
    tensors = zip([*RESULTS[given.op], *names], [*results, *gradients], strict=True)
    found = {name: framework.numpy(tensor) for name, tensor in tensors}
    assert_explained(found, given.wanted(path.backend in ("metal", "fast_metal")), dtype, f"{path}: {given}")
