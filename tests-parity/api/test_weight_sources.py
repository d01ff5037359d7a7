"""Sources and targets of weights: wrapped modules, quantised ones, and untrusted files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn
import numpy as np
import pytest
import torch
from frameworks import FRAMEWORKS, MLX, MPS, Framework
from mlx.utils import tree_flatten
from module_weights import state
from test_weights import build, upstream_checkpoint

from natten_mps._metal.weights import files as weight_files
from natten_mps._metal.weights import state as weights


class Wrapper(torch.nn.Module):
    """Names its contents as DistributedDataParallel and AveragedModel do."""

    def __init__(self, inner: torch.nn.Module, averaged: bool = False) -> None:
        super().__init__()
        self.module = inner
        if averaged:
            self.register_buffer("n_averaged", torch.tensor(0))


WRAPPED: dict[str, Callable[[torch.nn.Module], torch.nn.Module]] = {
    "not wrapped": lambda net: net,
    "compiled": torch.compile,
    "parallel": Wrapper,
    "averaged": lambda net: Wrapper(net, averaged=True),
    "parallel, then compiled": lambda net: torch.compile(Wrapper(net)),
    "compiled, then parallel": lambda net: Wrapper(torch.compile(net)),
    "both twice": lambda net: Wrapper(torch.compile(Wrapper(torch.compile(net)))),
}


def model() -> torch.nn.ModuleDict:
    return torch.nn.ModuleDict({"attention": build(MPS), "norm": torch.nn.LayerNorm(12)})


def inner(net: torch.nn.Module) -> Any:
    """The plain model inside its wrappers."""
    while not isinstance(net, torch.nn.ModuleDict):
        net = getattr(net, "_orig_mod", None) or net.module
    return net


@pytest.mark.parametrize("target", WRAPPED)
@pytest.mark.parametrize("source", WRAPPED)
def test_wrappers_of_torch_are_seen_through(source: str, target: str, tmp_path: Path) -> None:
    """From any wrapped model into any other, directly and through a file; the layer inside may be compiled too."""
    ours, theirs = WRAPPED[source](model()), WRAPPED[target](model())
    inner(theirs)["attention"] = torch.compile(inner(theirs)["attention"])
    MPS.package.save_weights(ours, tmp_path / "weights.npz")
    for given in (ours.state_dict(), {"epoch": 3, "model": ours.state_dict()}, tmp_path / "weights.npz"):
        for parameter in theirs.parameters():
            torch.nn.init.zeros_(parameter)
        assert MPS.package.load_weights(theirs, given) == ([], [])
        for name, tensor in inner(ours).state_dict().items():
            found = inner(theirs).state_dict()[name.replace("attention.", "attention._orig_mod.")]
            assert torch.equal(found, tensor), name


def test_a_layer_that_has_a_wrappers_name() -> None:
    """net.model is a layer of the net, not a wrapper that a training script put around it."""

    class Net(mlx.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.model_state_dict = mlx.nn.Linear(3, 2), mlx.nn.Linear(2, 2)

    net, again = Net(), Net()
    assert MLX.package.load_weights(again, net.parameters()) == ([], [])
    assert MLX.package.load_weights(again, {"model": net.parameters(), "step": 7}) == ([], [])
    ours = torch.nn.ModuleDict({"model": torch.nn.Linear(3, 2), "model_state_dict": torch.nn.Linear(2, 2)})
    assert MPS.package.load_weights(ours, net.parameters()) == ([], [])
    for name, array in state(net).items():
        assert np.array_equal(array, ours.state_dict()[name].numpy()) and np.array_equal(array, state(again)[name])


# --- quantised --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", weight_files.FILES)
@pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8"])
def test_a_quantised_module_of_mlx(mode: str, ending: str, tmp_path: Path) -> None:
    def quantised() -> Any:
        module = MLX.face("NeighborhoodAttention2D")(64, 4, 3)
        mlx.nn.quantize(module, group_size=32, bits=8 if mode == "mxfp8" else 4, mode=mode)
        return module

    ours, theirs = quantised(), quantised()
    assert {array.dtype for _, array in tree_flatten(ours.parameters())} >= {mx.uint32}
    path = tmp_path / f"weights{ending}"
    MLX.package.save_weights(ours, path)
    assert MLX.package.load_weights(theirs, path) == ([], [])
    assert state(ours).keys() == state(theirs).keys()
    for name, array in state(ours).items():
        assert np.array_equal(array, state(theirs)[name]), name
    ours.save_weights(str(path))  # as MLX writes it
    assert MLX.package.load_weights(quantised(), path) == ([], [])


def test_quantised_and_not_do_not_mix() -> None:
    plain, quantised = (MLX.face("NeighborhoodAttention2D")(64, 4, 3) for _ in range(2))
    mlx.nn.quantize(quantised, group_size=32)
    with pytest.raises(ValueError, match="The module is quantised: load the weights first, and quantise it then"):
        MLX.package.load_weights(quantised, plain.parameters())
    with pytest.raises(ValueError, match="The weights are quantised: quantise the module alike"):
        MLX.package.load_weights(plain, quantised.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_weights_that_torch_packs_are_refused(tmp_path: Path) -> None:
    """quantize_dynamic keeps weights in objects of its own; plain tensors of low precision are fine."""
    plain = MPS.face("NeighborhoodAttention2D")(64, 4, 3)
    packed = torch.ao.quantization.quantize_dynamic(plain, {torch.nn.Linear}, dtype=torch.qint8)
    with pytest.raises(TypeError, match=r"save_weights: .*_packed_params.* the ones from before"):
        MPS.package.save_weights(packed, tmp_path / "weights.npz")
    with pytest.raises(TypeError, match=r"load_weights: .*_packed_params.* the ones from before"):
        MPS.package.load_weights(plain, packed.state_dict())
    with pytest.raises(TypeError, match=r"load_weights: the module keeps .* quantise the module then"):
        MPS.package.load_weights(packed, plain.state_dict())
    narrow = MPS.face("NeighborhoodAttention2D")(64, 4, 3).to(torch.float8_e4m3fn)
    MPS.package.save_weights(narrow, tmp_path / "weights.safetensors")
    MPS.package.load_weights(plain, tmp_path / "weights.safetensors")
    assert torch.equal(plain.qkv.weight, narrow.qkv.weight.float())


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_bfloat16_as_mlx_writes_it(framework: Framework, tmp_path: Path) -> None:
    theirs = MLX.face("NeighborhoodAttention2D")(12, 4, 3)
    theirs.set_dtype(mx.bfloat16)
    theirs.save_weights(str(tmp_path / "weights.npz"))
    assert {a.dtype.str for a in np.load(tmp_path / "weights.npz").values()} == {"|V2"}
    module = framework.face("NeighborhoodAttention2D")(12, 4, 3)
    assert framework.package.load_weights(module, tmp_path / "weights.npz") == ([], [])
    for name, array in tree_flatten(theirs.parameters()):
        assert np.array_equal(state(module)[name], np.array(array.astype(mx.float32))), name


# --- files ------------------------------------------------------------------------------------------


def safetensors(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


HOSTILE = {
    "empty": b"",
    "short": b"\x01",
    "a header that is not there": b"\xff" * 8,
    "no JSON": safetensors(b"{nonsense"),
    "no UTF-8": safetensors(b"\xff\xfe\xff"),
    "too deep": safetensors(b"[" * 100_000),
    "a list": safetensors([1, 2]),
    "an array of nothing": safetensors({"x": None}),
    "no dtype": safetensors({"x": {"shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    "a dtype that is a list": safetensors(entry(dtype=["F32"]), b"1234"),
    "an unknown dtype": safetensors(entry(dtype="F4"), b"1234"),
    "a negative shape": safetensors(entry(shape=[-1]), b"1234"),
    "a shape of words": safetensors(entry(shape=["a"]), b"1234"),
    "a huge shape": safetensors(entry(shape=[1 << 40, 1 << 40]), b"1234"),
    "a shape beyond its data": safetensors(entry(shape=[2]), b"1234"),
    "an offset before the data": safetensors(entry(offsets=[-4, 0]), b"1234"),
    "an offset behind the data": safetensors(entry(offsets=[4, 8]), b"1234"),
    "offsets that are floats": safetensors(entry(offsets=[0.0, 4.0]), b"1234"),
    "three offsets": safetensors(entry(offsets=[0, 2, 4]), b"1234"),
    "an end before the beginning": safetensors(entry(offsets=[4, 0]), b"1234"),
    "overlaps the array before it": safetensors({**entry(), "y": entry()["x"]}, b"1234"),
    "leaves a gap before it": safetensors(entry(offsets=[4, 8]), b"12345678"),
    "its arrays end at 4, its data at 5": safetensors(entry(), b"12345"),
    "a name occurs twice in its header": safetensors(b'{"x":[],"x":[]}'),
    "__metadata__ is not a table of strings": safetensors({"__metadata__": {"a": 1}}),
    "NaN is not JSON": safetensors(b'{"x":NaN}'),
}
RULES = list(HOSTILE)[-6:]  # these are named by what the error says of them


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("fault", HOSTILE)
def test_a_hostile_safetensors_file(fault: str, framework: Framework, tmp_path: Path) -> None:
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(HOSTILE[fault])
    rule = f".*{fault}" if fault in RULES else ""
    with pytest.raises(ValueError, match=rf"^load_weights: hostile.safetensors {rule}"):
        framework.package.load_weights(build(framework), path)


@pytest.mark.parametrize("ending", [*weight_files.FILES, ".pt"])
def test_a_file_cut_anywhere(ending: str, tmp_path: Path) -> None:
    """And a file with one flipped byte: an error that names the file, or weights that fit."""
    module, path = build(MPS), tmp_path / f"weights{ending}"
    if ending == ".pt":
        torch.save(module.state_dict(), path)
    else:
        MPS.package.save_weights(module, path)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for end in sorted({0, 1, 7, 8, 9, *random.integers(0, len(whole), 25).tolist()}):
        path.write_bytes(whole[:end])
        with pytest.raises(
            ValueError, match=rf"^load_weights: weights{ending} is not a {ending} file, or is incomplete"
        ):
            MPS.package.load_weights(module, path)
    fitted = 0
    for at in random.integers(0, len(whole), 60).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            MPS.package.load_weights(module, path)
        except ValueError as error:
            assert str(error).startswith("load_weights: ")
        else:
            fitted += 1
    assert fitted < 60


def test_names_of_wrappers_in_the_middle() -> None:
    """torch.compile's prefix is removed anywhere in a name; 'module' only at the front, and if all names have it."""
    assert weights.bare(["a._orig_mod.b", "_orig_mod.c"]) == {"a._orig_mod.b": "a.b", "_orig_mod.c": "c"}
    assert weights.bare(["module.a", "b"]) == {"module.a": "module.a", "b": "b"}
    assert weights.bare(["module.a.module.b", "n_averaged"]) == {"module.a.module.b": "a.module.b"}
    assert set(weights.named(upstream_checkpoint(), ["rpb"])) == set(upstream_checkpoint())
