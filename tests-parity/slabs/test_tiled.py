"""``tiled`` gives what one call gives, however the problem is cut and wherever its arrays are."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CASES, INPUTS, Array, Case, inputs
from frameworks import FRAMEWORKS, MLX, MPS, OURS, Framework
from frameworks import Path as Backend

BACKENDS = OURS
both = pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)


@contextlib.contextmanager
def cut_into(framework: Framework, lengths: tuple[int, ...] | None) -> Iterator[list[tuple[int, ...]]]:
    """Within, problems are cut into slabs of ``lengths`` (None: as memory allows). Yields the lengths in use."""
    module, used = framework.module("_metal.slabs.cut"), []
    original = module.cut

    def instead(*arguments: Any) -> tuple[int, ...]:
        used.append(original(*arguments) if lengths is None else lengths)
        return used[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "cut", instead)
        yield used


def whole(path: Backend, arrays: dict[str, Array], dtype: str, arguments: dict[str, Any]) -> list[Array]:
    """Output and lse of one call."""
    framework = path.framework
    given = {name: framework.tensor(array, dtype) for name, array in arrays.items()}
    found = framework.package.neighborhood_attention(
        **given, **arguments, return_lse=True, backend=path.backend, **on_cpu(framework)
    )
    return [framework.numpy(tensor) for tensor in found]


def on_cpu(framework: Framework, tiled: bool = False) -> dict[str, Any]:
    """Where the suite computes, on a Mac too."""
    if framework is MPS:
        return {"device": "cpu"} if tiled else {}
    import mlx.core as mx

    return {"stream": mx.cpu}


def assert_alike(found: Array, wanted: Array, bound: float = 1e-12) -> None:
    """Equal except for the order of sums, in float64."""
    assert found.shape == wanted.shape
    if wanted.size:
        assert np.abs(np.float64(found) - wanted).max() <= bound * np.abs(wanted).max()


def odd_lengths(case: Case) -> tuple[int, ...]:
    """About three slabs on each axis; they are not multiples of strides or dilations."""
    return (1, *(max(1, size // 3) | 1 for size in case.shape))


@pytest.mark.parametrize("path", BACKENDS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_case_in_slabs(path: Backend, case: Case) -> None:
    arrays = {name: array for name, array in inputs(case).items() if name in INPUTS}
    arguments = case.window | {"scale": case.scale}
    out = np.full((*arrays["query"].shape[:-1], case.head_dim_v), np.nan)
    lse = np.full(out.shape[:-1], np.nan)
    framework = path.framework
    with framework.watch() as ran, cut_into(framework, odd_lengths(case)) as used:
        found = framework.package.tiled(
            **arrays, **arguments, out=out, lse=lse, backend=path.backend, **on_cpu(framework, tiled=True)
        )
    assert ran == ({path.backend} if case.batch else set()) and len(used) == 1
    assert found[0] is out and found[1] is lse
    for each, wanted in zip(found, whole(path, arrays, "float64", arguments), strict=True):
        assert_alike(each, wanted)


# --- memory decides ----------------------------------------------------------------------------------

SHAPE = (2, 14, 33, 4, 8)


def image(dtype: Any = "float32", seed: int = 0) -> dict[str, Array]:
    """query of 4 heads, key and value of 2."""
    random = np.random.default_rng(seed)
    shapes = {"query": SHAPE, "key": (*SHAPE[:3], 2, 8), "value": (*SHAPE[:3], 2, 6)}
    return {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


@both
@pytest.mark.parametrize(
    ("memory", "cut"),
    [
        ("1 GB", lambda n: n == (2, 14, 33)),
        (3_000_000, lambda n: n == (1, 14, 33)),
        ("1 MB", lambda n: n[0] == 1 and 1 < n[1] < 14 and n[2] == 33),
        ("100 KB", lambda n: n[0] == 1 and n[2] < 33),
    ],
)
def test_memory_decides_how_it_is_cut(framework: Framework, memory: int | str, cut: Any) -> None:
    """Items are separated first, then axis 0 is cut, then axis 1."""
    arrays = image()
    out = np.zeros((*SHAPE[:-1], 6), np.float32)
    with framework.watch() as ran, cut_into(framework, None) as used:
        framework.package.tiled(
            **arrays, kernel_size=3, out=out, memory=memory, backend="pure", **on_cpu(framework, tiled=True)
        )
    assert ran == {"pure"}
    assert [cut(lengths) for lengths in used] == [True], used
    (wanted, _) = whole(Backend(framework, "pure"), arrays, "float32", {"kernel_size": 3})
    assert_alike(out, wanted, 1e-5)


# --- where arrays lie --------------------------------------------------------------------------------


def laid_out(kind: str, folder: Path, name: str, array: Array, framework: Framework) -> Any:
    """The array as an argument of another kind."""
    if kind == "path":
        np.save(folder / f"{name}.npy", array)
        return str(folder / f"{name}.npy")
    if kind == "memmap":
        np.save(folder / f"{name}.npy", array)
        return np.load(folder / f"{name}.npy", mmap_mode="r")
    if kind == "offset":  # a file of several arrays
        raw = np.memmap(folder / f"{name}.bin", array.dtype, "w+", 24, (3, *array.shape))
        raw[1] = array
        raw.flush()
        return np.memmap(folder / f"{name}.bin", array.dtype, "r", 24, (3, *array.shape))[1]
    if kind == "fortran":
        np.save(folder / f"{name}.npy", np.asfortranarray(array))
        return np.load(folder / f"{name}.npy", mmap_mode="r")
    if kind == "changed map":  # the file does not have the changes made in the map
        np.save(folder / f"{name}.npy", np.zeros_like(array))
        found = np.load(folder / f"{name}.npy", mmap_mode="c")
        found[...] = array
        return found
    if kind == "strided":
        return np.stack([array, array], -1)[..., 1]
    assert kind == "tensor"
    return framework.tensor(array, array.dtype.name)


KINDS = ("path", "memmap", "offset", "fortran", "changed map", "strided", "tensor")


@both
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_every_kind(framework: Framework, kind: str, tmp_path: Path) -> None:
    arrays = image("float16")
    given = {name: laid_out(kind, tmp_path, name, array, framework) for name, array in arrays.items()}
    for lengths in ((1, 5, 33), (2, 14, 7)):
        with cut_into(framework, lengths):
            out = framework.package.tiled(
                **given, kernel_size=(5, 3), out=tmp_path / "out.npy", **on_cpu(framework, tiled=True)
            )
        assert isinstance(out, np.memmap) and out.dtype == np.float16 and not out.flags.writeable
        (wanted, _) = whole(Backend(framework, "pure"), arrays, "float16", {"kernel_size": (5, 3)})
        assert_alike(out, wanted, 2**-10)
        assert np.array_equal(np.load(tmp_path / "out.npy"), out)
    assert not list(tmp_path.glob("*.journal*"))


@both
def test_results_of_every_kind(framework: Framework, tmp_path: Path) -> None:
    """A path, a map at an offset into a file, an array that is not contiguous; a tensor, where tensors are writable."""
    arrays, shape = image(), (*SHAPE[:-1], 6)
    (wanted, wanted_lse) = whole(Backend(framework, "pure"), arrays, "float32", {"kernel_size": 3})
    results: list[tuple[Any, Any]] = [
        (str(tmp_path / "out.npy"), tmp_path / "lse.npy"),
        (np.memmap(tmp_path / "out.bin", np.float32, "w+", 12, shape), np.zeros((*shape[:-1], 2), np.float32)[..., 0]),
    ]
    if framework is MPS:
        results.append((framework.tensor(np.zeros(shape), "float32"), np.zeros(shape[:-1], np.float32)))
    for out, lse in results:
        with cut_into(framework, (1, 5, 20)):
            found = framework.package.tiled(**arrays, kernel_size=3, out=out, lse=lse, **on_cpu(framework, tiled=True))
        assert_alike(np.asarray(found[0]), wanted, 1e-5)
        assert_alike(np.asarray(found[1]), wanted_lse, 1e-5)
    assert_alike(np.fromfile(tmp_path / "out.bin", np.float32, offset=12).reshape(shape), wanted, 1e-5)


def test_a_tensor_of_bfloat16() -> None:
    """numpy has no bfloat16: inputs and the result are tensors."""
    import torch

    arrays = image()
    given = {name: torch.from_numpy(array).bfloat16() for name, array in arrays.items()}
    out = torch.zeros((*SHAPE[:-1], 6), dtype=torch.bfloat16)
    with cut_into(MPS, (1, 5, 20)):
        assert MPS.package.tiled(**given, kernel_size=3, out=out, device="cpu") is out
    (wanted, _) = whole(
        Backend(MPS, "pure"),
        {name: np.float64(array.float()) for name, array in given.items()},
        "bfloat16",
        {"kernel_size": 3},
    )
    assert_alike(out.double().numpy(), wanted, 2**-7)


@pytest.mark.all
@both
def test_an_array_of_bfloat16(framework: Framework, tmp_path: Path) -> None:
    """Of ml_dtypes, which `./dev.sh test --all` installs: files of two untyped bytes, seen as bfloat16."""
    import ml_dtypes

    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    arrays = image(bfloat16)
    given = {
        name: laid_out("memmap", tmp_path, name, array, framework).view(bfloat16) for name, array in arrays.items()
    }
    out = np.zeros((*SHAPE[:-1], 6), bfloat16)
    with cut_into(framework, (1, 5, 20)):
        framework.package.tiled(**given, kernel_size=3, out=out, **on_cpu(framework, tiled=True))
    floats = {name: np.float64(array) for name, array in arrays.items()}
    (wanted, _) = whole(Backend(framework, "pure"), floats, "bfloat16", {"kernel_size": 3})
    assert_alike(out, wanted, 2**-7)


def test_an_array_of_bfloat16_from_mlx() -> None:
    """MLX's arrays are read-only, so the result needs an array of another kind, and numpy has no bfloat16."""
    given = [MLX.tensor(array, "bfloat16") for array in image().values()]
    with pytest.raises(TypeError) as error:
        MLX.package.tiled(*given, 3, out="out.npy")
    assert str(error.value) == (
        "tiled: out would be a .npy file of bfloat16, which numpy does not have; give out as a writable tensor, or as "
        "an array of ml_dtypes.bfloat16"
    )


@both
def test_a_batch_without_items(framework: Framework, tmp_path: Path) -> None:
    arrays = {name: array[:0] for name, array in image().items()}
    out = framework.package.tiled(**arrays, kernel_size=3, out=tmp_path / "out.npy", **on_cpu(framework, tiled=True))
    assert out.shape == (0, *SHAPE[1:-1], 6)


@both
def test_a_progress_bar(framework: Framework, capsys: pytest.CaptureFixture[str]) -> None:
    arrays, out = image(), np.zeros((*SHAPE[:-1], 6), np.float32)
    for progress, shown in ((None, False), (False, False), (True, True)):
        with cut_into(framework, (1, 5, 33)):
            framework.package.tiled(
                **arrays, kernel_size=3, out=out, progress=progress, **on_cpu(framework, tiled=True)
            )
        printed = capsys.readouterr().err
        assert ("tiled: 100%" in printed and f"{2 * 14 * 33}/{2 * 14 * 33} " in printed) == shown, printed


@both
def test_the_example_of_the_documentation(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its budget is tight enough for several slabs."""
    text = (Path(__file__).parents[2] / "docs" / "larger-than-memory.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    where = on_cpu(framework, tiled=True)
    original = framework.package.tiled
    monkeypatch.setattr(framework.package, "tiled", lambda *given, **named: original(*given, **named, **where))
    with cut_into(framework, None) as used:
        exec(compile(example.replace("natten_mps", framework.package_name), "example", "exec"), {})
    assert used[0][:2] < (1, 256), used
    assert capsys.readouterr().out == "(1, 256, 256, 4, 16)\n"
    arrays = [np.load(f"{name}.npy", mmap_mode="r")[:, :20] for name in ("query", "key", "value")]
    few = (framework.tensor(array, "float32") for array in arrays)
    wanted = framework.numpy(framework.package.na2d(*few, (7, 9), backend="pure"))[:, :16]
    assert_alike(np.load("out.npy", mmap_mode="r")[:, :16], wanted, 1e-5)
