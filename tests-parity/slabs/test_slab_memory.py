"""An image of a gigabyte under 300 MB: the peak of a process that computes it, and the values that it wrote."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import FRAMEWORKS, Framework
from process_memory import in_a_fresh_process, memory

from slabs.test_tiled import on_cpu

LIMIT = 300_000_000
ROWS = 32
# Name -> side of the image, heads, channels, dtype, window, memory.
IMAGES = {
    "of a gigabyte": (576, 1, 256, "float32", 3, "200 MB"),
    "of many heads": (768, 8, 16, "float16", 5, "150 MB"),
}


def block(side: int, heads: int, channels: int, dtype: str, seed: int) -> Any:
    """The rows that an image repeats."""
    random = np.random.default_rng(seed)
    return random.standard_normal((ROWS, side, heads, channels), dtype=np.float32).astype(dtype)


def measure(package: str, image: str, folder: str) -> dict[str, Any]:
    """Bytes above those before the call, the slabs, the backends that ran and the seconds."""
    import frameworks

    framework = next(each for each in frameworks.FRAMEWORKS if each.name == package)
    side, heads, channels, dtype, window, budget = IMAGES[image]
    if package == "mps":
        import torch

        torch.set_num_threads(2)
    size = 0
    for seed, name in enumerate(("query", "key", "value")):
        rows = block(side, heads, channels, dtype, seed)
        array = np.lib.format.open_memmap(Path(folder) / f"{name}.npy", "w+", dtype, (1, side, *rows.shape[1:]))
        size += array.nbytes
        del array
        with (Path(folder) / f"{name}.npy").open("r+b") as file:
            file.seek(-rows.nbytes * (side // ROWS), 2)
            for _ in range(side // ROWS):
                file.write(rows.data)
    given = [np.load(Path(folder) / f"{name}.npy", mmap_mode="r") for name in ("query", "key", "value")]
    small = [np.ones((1, 16, 16, heads, channels), dtype) for _ in range(4)]
    where = on_cpu(framework, tiled=True)
    framework.package.tiled(*small[:3], window, out=small[3], **where)  # the first call loads code and makes tables
    del rows, small
    before, began = memory(), time.monotonic()
    with framework.watch() as ran:
        out = framework.package.tiled(*given, window, out=Path(folder) / "out.npy", memory=budget, **where)
    peak = memory()["peak"] - before["now"]
    assert isinstance(out, np.memmap)
    return {"size": size, "peak": peak, "ran": sorted(ran), "seconds": time.monotonic() - began}


@pytest.mark.parametrize("image", ["of a gigabyte", pytest.param("of many heads", marks=pytest.mark.all)])
@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_an_image_larger_than_memory(framework: Framework, image: str, tmp_path: Path) -> None:
    try:
        found = in_a_fresh_process(
            "slabs.test_slab_memory", f"measure({framework.name!r}, {image!r}, {str(tmp_path)!r})"
        )
        side, heads, channels, dtype, window, _ = IMAGES[image]
        assert found["size"] > (1e9 if image == "of a gigabyte" else 4e8)
        assert found["ran"], "nothing was computed"
        assert 0 < found["peak"] < LIMIT, found
        # Rows repeat, so that three blocks of them have every result: those of the first block, of the last block and
        # of any block in between.
        query, key, value = (block(side, heads, channels, dtype, seed) for seed in range(3))
        where = {} if framework.name == "mps" else on_cpu(framework)
        few = (framework.tensor(np.concatenate([each] * 3)[None], dtype) for each in (query, key, value))
        wanted = framework.numpy(framework.package.na2d(*few, window, **where))
        out = np.load(tmp_path / "out.npy", mmap_mode="r")
        bound = np.abs(wanted).max() * (1e-5 if dtype == "float32" else 2**-10)
        for first in range(ROWS, side - ROWS, ROWS):
            assert np.abs(np.float64(out[:, first : first + ROWS]) - wanted[:, ROWS : 2 * ROWS]).max() <= bound
        assert np.abs(np.float64(out[:, :ROWS]) - wanted[:, :ROWS]).max() <= bound
        assert np.abs(np.float64(out[:, -ROWS:]) - wanted[:, -ROWS:]).max() <= bound
        print(f"{framework} {image}: {found}")
    finally:
        for name in ("query", "key", "value", "out"):  # pytest keeps the folders of the last runs
            (tmp_path / f"{name}.npy").unlink(missing_ok=True)
