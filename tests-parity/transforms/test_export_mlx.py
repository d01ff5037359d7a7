"""``export_function``: what MLX can write to a file and read again without this package."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from cases import BY_NAME
from frameworks import MLX
from test_transforms_mlx import NAMES, attend, given_to

Call = Callable[..., Any]
SPLIT = BY_NAME["img-mixed"]


@pytest.fixture(autouse=True, params=["pure", "nanobind"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The backend of plain calls; what is exported must not depend on it."""
    MLX.package.set_backend(request.param)
    yield request.param


def gradient_of(call: Call, count: int) -> Call:
    def loss(*arrays: mx.array) -> mx.array:
        found = call(*arrays)
        parts = found if isinstance(found, tuple) else (found,)
        return sum((part.astype(mx.float32) ** 2).sum() for part in parts)

    gradient: Call = mx.grad(loss, argnums=tuple(range(count)))
    return gradient


def assert_close(found: Any, wanted: Any, limit: float) -> None:
    """The difference is at most ``limit`` times the largest number of each array."""
    found, wanted = ([x] if isinstance(x, mx.array) else list(x) for x in (found, wanted))
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        top = np.abs(MLX.numpy(b)).max()
        np.testing.assert_allclose(MLX.numpy(a), MLX.numpy(b), rtol=0, atol=limit * top)


def round_trip(file: Path, call: Call, *arrays: mx.array) -> Call:
    """``call`` written to ``file``, through the pure backend whatever the default, and read again."""
    with MLX.watch() as ran:
        MLX.face("export_function")(str(file), call, *arrays)
    assert ran == {"pure"}
    imported: Call = mx.import_function(str(file))
    return imported


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_forward(tmp_path: Path, name: str, dtype: str) -> None:
    arrays = given_to(BY_NAME[name], dtype)
    call = attend(BY_NAME[name], tuple(arrays), return_lse=True)
    imported = round_trip(tmp_path / "f.mlxfn", call, *arrays.values())
    limit = {"float32": 1e-6, "bfloat16": 2**-8, "float64": 1e-14}[dtype]
    for factor in (1.0, 0.5):
        given = [a * factor for a in arrays.values()]
        assert_close(imported(*given), call(*given), limit)


@pytest.mark.parametrize("name", NAMES)
def test_gradient(tmp_path: Path, name: str) -> None:
    """MLX's own derivative of the exported operations, against the kernels' and the walk's."""
    arrays = given_to(BY_NAME[name], "float64")
    gradient = gradient_of(attend(BY_NAME[name], tuple(arrays), return_lse=True), len(arrays))
    imported = round_trip(tmp_path / "g.mlxfn", gradient, *arrays.values())
    given = [a * 0.5 for a in arrays.values()]
    assert_close(imported(*given), gradient(*given), 1e-12)


def test_the_other_ops(tmp_path: Path) -> None:
    query, key, value = given_to(SPLIT, "float32").values()

    def call(query: mx.array, key: mx.array, value: mx.array) -> tuple[mx.array, ...]:
        logits = MLX.face("na2d_qk")(query, key, **SPLIT.window)
        split = MLX.face("na2d_av")(mx.softmax(logits, -1), value, **SPLIT.window)
        two = [mx.concatenate([tensor, -tensor]) for tensor in (query, key, value)]
        padded = MLX.face("na2d_varlen")(*two, [(3, 4), (5, 0)], 2)
        parts = [MLX.face("attention")(q[:, 0], key[:, 1], value[:, 1], return_lse=True) for q in (query, -query)]
        return split, padded, *MLX.face("merge_attentions")(*map(list, zip(*parts, strict=True)))

    imported = round_trip(tmp_path / "f.mlxfn", call, query, key, value)
    assert_close(imported(query, key, value), call(query, key, value), 1e-6)


def test_vmap_and_compile_inside(tmp_path: Path) -> None:
    query, key, value = given_to(SPLIT, "float32").values()
    many = mx.stack([query, -query])
    call = mx.vmap(attend(SPLIT, ("query", "key", "value"), return_lse=True), in_axes=(0, None, None))
    imported = round_trip(tmp_path / "f.mlxfn", mx.compile(call), many, key, value)
    assert_close(imported(many, key, value), call(many, key, value), 1e-6)


READER = """
import sys
import mlx.core as mx
mx.set_default_device(mx.cpu)
file, arrays, found = sys.argv[1:]
(out,) = mx.import_function(file)(mx.load(arrays)["x"])
mx.savez(found, out=out)
assert not any(name.startswith("natten") for name in sys.modules)
"""


def test_a_model_is_read_without_this_package(tmp_path: Path) -> None:
    MLX.package  # noqa: B018 - selects the CPU
    model = nn.Sequential(MLX.face("NeighborhoodAttention2D")(12, 4, 3, rel_pos_bias=True), nn.GELU())
    x = mx.random.normal((1, 5, 6, 12))
    round_trip(tmp_path / "model.mlxfn", model, x)
    mx.savez(str(tmp_path / "x.npz"), x=x)
    files = [str(tmp_path / name) for name in ("model.mlxfn", "x.npz", "found.npz")]
    subprocess.run([sys.executable, "-c", READER, *files], check=True, env=os.environ)
    assert_close(mx.load(files[-1])["out"], model(x), 1e-6)


def test_dense_is_kept(tmp_path: Path) -> None:
    arrays = given_to(BY_NAME["seq"], "float32")
    call = attend(BY_NAME["seq"], tuple(arrays), return_lse=True)
    with MLX.package.use_backend("dense"), MLX.watch() as ran:
        MLX.face("export_function")(str(tmp_path / "f.mlxfn"), call, *arrays.values())
    assert ran == {"dense"}
    found = mx.import_function(str(tmp_path / "f.mlxfn"))(*arrays.values())
    assert_close(found, call(*arrays.values()), 1e-6)


def test_another_size_is_refused(tmp_path: Path) -> None:
    """Also one with as many tokens, which would fit every table."""
    query = mx.random.normal((1, 6, 4, 2, 4), stream=mx.cpu)
    call = lambda q: MLX.face("na2d")(q, q, q, 3)  # noqa: E731
    with pytest.raises(NotImplementedError, match=r"shapeless=True is not implemented.*export one function per size"):
        MLX.face("export_function")(str(tmp_path / "f.mlxfn"), call, query, shapeless=True)
    assert not (tmp_path / "f.mlxfn").exists()
    with pytest.raises(TypeError, match="export_function: shapeless must be a bool"):
        MLX.face("export_function")(str(tmp_path / "f.mlxfn"), call, query, shapeless=1)
    for function in (call, mx.compile(call, shapeless=True)):
        imported = round_trip(tmp_path / "f.mlxfn", function, query)
        with pytest.raises(ValueError, match="No imported function found"):
            imported(query.swapaxes(1, 2))
    with pytest.raises(ValueError, match="infer"):  # exported functions keep working outside
        mx.eval(mx.compile(call, shapeless=True)(query))


def test_mlx_s_own_errors(tmp_path: Path, backend: str) -> None:
    """Of its own function."""
    arrays = given_to(BY_NAME["seq"], "float32")
    call = attend(BY_NAME["seq"], tuple(arrays), return_lse=True)
    named = {"pure": "CustomTransforms", "nanobind": "na1d"}
    for function in (call, gradient_of(call, len(arrays))):
        with pytest.raises(ValueError, match=f"Unable to serialize primitive {named[backend]}"):
            mx.export_function(str(tmp_path / "f.mlxfn"), function, *arrays.values())


def test_no_backend_takes_the_place_of_nanobind(tmp_path: Path) -> None:
    """Where a call requests the C++ primitives, MLX's own error is raised."""
    arrays = given_to(BY_NAME["seq"], "float32")
    forced = attend(BY_NAME["seq"], tuple(arrays), return_lse=True, backend="nanobind")
    for _ in range(2):  # the second time the plan is recalled
        with pytest.raises(ValueError, match="Unable to serialize primitive na1d"):
            MLX.face("export_function")(str(tmp_path / "f.mlxfn"), forced, *arrays.values())


def test_an_export_leaves_no_setting_behind(tmp_path: Path, backend: str) -> None:
    """Neither after an export nor after a failed one."""

    def failing(*_: mx.array) -> mx.array:
        raise RuntimeError("planted")

    arrays = given_to(BY_NAME["seq"], "float32")
    call = attend(BY_NAME["seq"], tuple(arrays), return_lse=True)
    round_trip(tmp_path / "f.mlxfn", call, *arrays.values())
    with pytest.raises(RuntimeError, match="planted"):
        MLX.face("export_function")(str(tmp_path / "f.mlxfn"), failing, *arrays.values())
    assert MLX.package.get_backend() == backend
    with MLX.watch() as ran, pytest.raises(NotImplementedError, match="second derivatives"):
        gradient_of(lambda *a: gradient_of(call, len(a))(*a), len(arrays))(*arrays.values())
    assert ran == {backend}
