"""How much memory loading a file takes: the module and the file's own pages, and no copy of either."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from frameworks import FRAMEWORKS, MLX, Framework

from natten_mps._metal.weights import files as weight_files

MB = 1 << 20
# The most resident memory so far, in MB. macOS counts bytes, Linux KB.
LOAD = """
import resource, sys, torch, numpy
from natten_mps import load_weights
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))
module = torch.nn.Linear(8192, 4096, bias=False)
with torch.no_grad():
    module.weight.fill_(0.0)
before = peak()
assert load_weights(module, sys.argv[1]) == ([], [])
print(peak() - before)
assert module.weight[0, 0] == 1.0 and module.weight[-1, -1] == 1.0
"""


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """128 MB of ones."""
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    weight_files.write(path, {"weight": np.ones((4096, 8192), np.float32)})
    return path


@pytest.mark.parametrize("library", [True, False])
def test_python_allocates_no_copy_of_a_file(library: bool, large_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy's arrays and bytes are counted by tracemalloc, mapped files are not."""
    if not library:
        monkeypatch.setitem(sys.modules, "safetensors", None)
    tracemalloc.start()
    try:
        found = weight_files.read(large_file)
        assert found["weight"][-1, -1] == 1.0
        assert tracemalloc.get_traced_memory()[1] < MB
        copied = found["weight"].copy()
        assert tracemalloc.get_traced_memory()[1] >= copied.nbytes == 128 * MB  # a copy would have been counted
    finally:
        tracemalloc.stop()


def test_a_torch_module_and_the_file_are_all_that_is_resident(large_file: Path) -> None:
    found = subprocess.run([sys.executable, "-c", LOAD, large_file], capture_output=True, text=True, check=True)
    assert float(found.stdout) < 1.25 * 128  # the file's pages; with a copy of the tensors it were twice as much


def test_an_mlx_module_is_replaced_by_one_copy(large_file: Path) -> None:
    module = MLX.module("weights").nn.Linear(8192, 4096, bias=False)
    mx.eval(module.parameters())
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    tracemalloc.start()
    try:
        assert MLX.package.load_weights(module, large_file) == ([], [])
        mx.eval(module.parameters())
        assert tracemalloc.get_traced_memory()[1] < MB
    finally:
        tracemalloc.stop()
    assert 100 * MB < mx.get_peak_memory() - before < 1.25 * 128 * MB
    assert module.weight[-1, -1].item() == 1.0


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_a_module_does_not_depend_on_its_file(framework: Framework, tmp_path: Path) -> None:
    """Loaded, then the file is overwritten by other weights: what was loaded stays, and the new ones load."""
    path = tmp_path / "weights.safetensors"
    module = framework.face("NeighborhoodAttention2D")(12, 4, 3)
    framework.package.save_weights(module, path)
    first = weight_files.read(path)["qkv.weight"].copy()
    framework.package.load_weights(module, path)
    weight_files.write(path, {name: -array for name, array in _copies(path).items()})
    assert np.array_equal(np.asarray(module.qkv.weight.tolist(), np.float32), first)
    framework.package.load_weights(module, path)
    assert np.array_equal(np.asarray(module.qkv.weight.tolist(), np.float32), -first)


def _copies(path: Path) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in weight_files.read(path).items()}
