"""Weights are interchangeable: NATTEN's checkpoints into both packages, between them, and through files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn
import numpy as np
import pytest
import torch
from frameworks import FRAMEWORKS, MLX, MPS, Framework
from module_weights import forward, random_weights, state

from natten_mps._metal.weights import files as weight_files

Array = Any
DTYPES = ("float32", "float16", "bfloat16")


def build(framework: Framework, **arguments: Any) -> Any:
    made = framework.face("NeighborhoodAttention2D")(
        **{"embed_dim": 12, "num_heads": 4, "kernel_size": 3, "rel_pos_bias": True} | arguments
    )
    made.eval()
    return made


def example() -> Array:
    return np.random.default_rng(1).standard_normal((2, 6, 7, 12)).astype(np.float32)


def upstream_checkpoint() -> dict[str, Array]:
    """A state dict with the names that every generation of NATTEN uses, rpb included."""
    random = np.random.default_rng(2)
    shapes = {"rpb": (4, 5, 5), "qkv.weight": (36, 12), "qkv.bias": (36,), "proj.weight": (12, 12), "proj.bias": (12,)}
    return {name: random.standard_normal(shape).astype(np.float32) / 3 for name, shape in shapes.items()}


def computed(checkpoint: dict[str, Array], x: Array) -> Array:
    """What upstream's module computes with the checkpoint, in float64: projections around the reference."""
    from natten_mps._metal.problem import reference
    from natten_mps._metal.problem.problem import Problem

    def linear(name: str, given: Array) -> Array:
        return given @ checkpoint[f"{name}.weight"].T.astype(np.float64) + checkpoint[f"{name}.bias"]

    ones, no = (1, 1), (False, False)
    problem = Problem("na", 2, (6, 7), (6, 7), 4, 4, 3, 3, (3, 3), ones, ones, no, 3**-0.5, "float64", 0, True)
    query, key, value = np.moveaxis(linear("qkv", x).reshape(2, 6, 7, 3, 4, 3), 3, 0)
    out, _ = reference.forward(problem, query, key, value, rpb=checkpoint["rpb"].astype(np.float64))
    return linear("proj", out.reshape(2, 6, 7, 12))


def as_torch(arrays: dict[str, Array]) -> dict[str, Any]:
    return {name: torch.tensor(array) for name, array in arrays.items()}


def nested(arrays: dict[str, Array]) -> dict[str, Any]:
    """Nested as MLX nests parameters."""
    made: dict[str, Any] = {}
    for name, array in arrays.items():
        *path, last = name.split(".")
        place = made
        for part in path:
            place = place.setdefault(part, {})
        place[last] = mx.array(array)
    return made


FORMS = {
    "numpy": lambda arrays: arrays,
    "torch": as_torch,
    "parameters": lambda arrays: {n: torch.nn.Parameter(t) for n, t in as_torch(arrays).items()},
    "mlx": lambda arrays: {name: mx.array(array) for name, array in arrays.items()},
    "nested": nested,
    "trained": lambda arrays: {"epoch": 3, "state_dict": {f"module.{n}": t for n, t in as_torch(arrays).items()}},
    "compiled": lambda arrays: {"model": {f"module._orig_mod.{n}": t for n, t in as_torch(arrays).items()}},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_an_upstream_checkpoint_gives_its_results(framework: Framework, form: str) -> None:
    module, checkpoint, x = build(framework), upstream_checkpoint(), example()
    assert framework.face("load_weights")(module, FORMS[form](checkpoint)) == ([], [])
    np.testing.assert_allclose(forward(framework, module, x), computed(checkpoint, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("generation", ["v0141", "v014", "v015", "v017"])
@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_into_the_modules_of_each_generation(framework: Framework, generation: str) -> None:
    made = framework.module(f"compat.{generation}").NeighborhoodAttention2D
    module = made(dim=12, num_heads=4, kernel_size=3, **({"rel_pos_bias": True} if generation == "v017" else {}))
    if generation == "v0141":
        module = made(12, 3, 4, dilation=1)
    module.eval()
    checkpoint, x = upstream_checkpoint(), example()
    framework.face("load_weights")(module, as_torch(checkpoint))
    np.testing.assert_allclose(forward(framework, module, x), computed(checkpoint, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("ending", [".npz", ".safetensors", ".pt"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_through_files_between_the_packages(dtype: str, ending: str, tmp_path: Path) -> None:
    """torch -> file -> MLX -> file -> torch: every bit is kept, whatever the dtype."""
    arguments = {"num_kv_heads": 2, "kernel_size": (3, 5)}
    ours, theirs, back = build(MPS, **arguments), build(MLX, **arguments), build(MPS, **arguments)
    MPS.package.load_weights(ours, random_weights(ours))
    ours, back = ours.to(getattr(torch, dtype)), back.to(getattr(torch, dtype))
    theirs.set_dtype(getattr(mx, dtype))
    path = tmp_path / f"weights{ending}"
    if ending == ".pt":
        torch.save(ours.state_dict(), path)
        with pytest.raises(ValueError, match=r"ends in .npz or .safetensors; natten_mps.save_weights makes one"):
            MLX.package.load_weights(theirs, path)
        MPS.package.load_weights(back, path)
    else:
        MPS.package.save_weights(ours, path)
        MLX.package.load_weights(theirs, path)
        assert all(array.dtype == getattr(mx, dtype) for _, array in mlx.utils.tree_flatten(theirs.parameters()))
        MLX.package.save_weights(theirs, str(path))
        MPS.package.load_weights(back, str(path))
    for name, tensor in ours.state_dict().items():
        assert back.state_dict()[name].dtype == getattr(torch, dtype)
        assert torch.equal(back.state_dict()[name], tensor), name


def test_between_the_packages_without_files() -> None:
    ours, theirs, back = build(MPS), build(MLX), build(MPS)
    MLX.package.load_weights(theirs, ours.state_dict())
    MPS.package.load_weights(back, theirs.parameters())
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), back.state_dict().values(), strict=True))
    x = example()
    np.testing.assert_allclose(forward(MLX, theirs, x), forward(MPS, ours, x), rtol=0, atol=1e-5)


def test_whole_models() -> None:
    """Layers with the same names in both frameworks, next to other layers."""
    ours = torch.nn.ModuleDict(
        {"stem": torch.nn.Linear(5, 12), "attention": build(MPS), "norm": torch.nn.LayerNorm(12)}
    )

    class Model(mlx.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.attention, self.norm = mlx.nn.Linear(5, 12), build(MLX), mlx.nn.LayerNorm(12)

    theirs = Model()
    MLX.package.load_weights(theirs, ours.state_dict())
    for name, array in state(theirs).items():
        assert np.array_equal(array, ours.state_dict()[name].detach().numpy()), name


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_what_does_not_fit(framework: Framework) -> None:
    load, checkpoint = framework.face("load_weights"), upstream_checkpoint()
    without = {name: array for name, array in checkpoint.items() if name != "rpb"}
    grouped = {"q_proj.weight": np.zeros((12, 12)), "kv_proj.weight": np.zeros((12, 12))}
    for arguments, given, error, words in (
        ({"rel_pos_bias": False}, checkpoint, ValueError, "not in the module: rpb.* with rel_pos_bias=True"),
        ({}, without, ValueError, "missing: rpb.* with rel_pos_bias=False"),
        ({"kernel_size": 5}, checkpoint, ValueError, r"rpb must have shape \(4, 9, 9\); got \(4, 5, 5\)"),
        ({"num_kv_heads": 2, "rel_pos_bias": False}, without, ValueError, "make the module without num_kv_heads"),
        ({"rel_pos_bias": False}, grouped, ValueError, "make the module with num_kv_heads"),
        ({}, [1, 2], TypeError, "must be a mapping of names to arrays; got list"),
        (
            {},
            checkpoint | {"proj.bias": "zeros"},
            TypeError,
            "proj.bias must be an array .* got str",
        ),
        ({}, "weights.txt", ValueError, "ends in .npz or .safetensors.*got 'weights.txt'"),
    ):
        module = build(framework, **arguments)
        before = {name: np.array(array) for name, array in state(module).items()}
        with pytest.raises(error, match=words):
            load(module, given)
        after = state(module)
        assert all(np.array_equal(before[name], after[name]) for name in before)
    module = build(framework, rel_pos_bias=False)
    assert load(module, checkpoint, strict=False) == ([], ["rpb"])
    assert np.array_equal(state(module)["proj.bias"], checkpoint["proj.bias"])
    module = build(framework)
    assert load(module, without, strict=False) == (["rpb"], [])


def test_safetensors_files(tmp_path: Path) -> None:
    """MLX reads what is written here, what MLX writes is read here, and a broken file is reported."""
    path = tmp_path / "written.safetensors"
    arrays = {
        "a.b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "c": np.array([1, -2], np.int64),
        "half": np.array(0.5, np.float16),
        "none": np.zeros((0, 3), np.uint8),
    }
    weight_files.write(path, arrays)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + length])
    assert header["a.b"] == {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    for name, array in weight_files.read(path).items():
        assert array.dtype == arrays[name].dtype and np.array_equal(array, arrays[name])
    by_mlx = mx.load(str(path))
    assert np.array_equal(np.array(by_mlx["a.b"]), arrays["a.b"]) and np.array_equal(np.array(by_mlx["c"]), arrays["c"])
    brain = mx.array([1.5, -3.25, 1e30]).astype(mx.bfloat16)
    mx.save_safetensors(str(path), {"x": brain}, metadata={"format": "mlx"})
    found = weight_files.read(path)
    assert list(found) == ["x"] and np.array_equal(found["x"], np.array(brain.astype(mx.float32)))
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"written.safetensors is not a .* \(x of shape \[3\] in BF16 needs 6 bytes"):
        weight_files.read(path)
    path.write_bytes(b"\xff" * 8)
    with pytest.raises(ValueError, match=r"is not a .safetensors file"):
        weight_files.read(path)
