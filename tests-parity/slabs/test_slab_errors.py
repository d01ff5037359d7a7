"""Every error of ``tiled`` in full, the same in both packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import Framework

from slabs.test_tiled import both, on_cpu

SHAPE = (1, 5, 6, 2, 4)
ONES = np.ones(SHAPE, np.float32)
OUT = np.zeros(SHAPE, np.float32)
FILES = "a numpy array, a tensor of this package's framework or the path of a .npy file"

NO_DTYPE = (
    "value has 2-byte elements of no known dtype; numpy has no bfloat16: view the array as ml_dtypes.bfloat16, or give "
    "a tensor"
)

# Arguments in place of legal ones, and the error's type and text.
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"memory": 1.5}, TypeError, "memory must be an int or a text such as '300 MB' or '2 GiB'; got 1.5"),
    ({"memory": True}, TypeError, "memory must be an int or a text such as '300 MB' or '2 GiB'; got True"),
    ({"memory": 0}, ValueError, "memory must be at least 1; got 0"),
    (
        {"memory": "300 Mbit"},
        ValueError,
        "memory must be a number of bytes or a text such as '300 MB' or '2 GiB'; got '300 Mbit'",
    ),
    ({"memory": "i"}, ValueError, "memory must be a number of bytes or a text such as '300 MB' or '2 GiB'; got 'i'"),
    ({"progress": 1}, TypeError, "progress must be a bool; got 1"),
    ({"query": [1.0]}, TypeError, f"query must be {FILES}; got [1.0]"),
    ({"out": None}, TypeError, f"out must be {FILES}; got None"),
    ({"key": "key.npz"}, ValueError, "key must be the path of a .npy file, or an array; got 'key.npz'"),
    ({"out": Path("out")}, ValueError, "out must be the path of a .npy file, or an array; got 'out'"),
    ({"query": ONES.astype(">f4")}, TypeError, "query must have this machine's byte order; got >f4"),
    ({"query": ONES.astype("i4")}, TypeError, "query must be float16, bfloat16, float32 or float64; got int32"),
    (
        {"value": ONES.astype("f2").view("V2")},
        TypeError,
        NO_DTYPE,
    ),
    (
        {"key": ONES.astype("f2")},
        TypeError,
        "query, key and value must share one dtype; got float32, float16 and float32",
    ),
    ({"kernel_size": 7}, ValueError, None),
    ({"out": OUT[:, 1:]}, ValueError, f"out must have the result's shape {SHAPE}; got {(1, 4, 6, 2, 4)}"),
    ({"lse": OUT}, ValueError, f"lse must have the result's shape {SHAPE[:-1]}; got {SHAPE}"),
    ({"out": OUT.astype("f8")}, TypeError, "out must have the result's dtype float32; got float64"),
    (
        {"lse": np.zeros(SHAPE[:-1], "f8")},
        TypeError,
        "lse must have the result's dtype float32; got float64",
    ),
    ({"out": np.broadcast_to(OUT[:1], SHAPE)}, ValueError, "out must be writable; got a read-only array"),
]


def call(framework: Framework, **changed: Any) -> Any:
    legal = dict.fromkeys(("query", "key", "value"), ONES) | {"kernel_size": 3, "out": OUT, "backend": "pure"}
    return framework.package.tiled(**(legal | on_cpu(framework, tiled=True) | changed))


@both
@pytest.mark.parametrize(("changed", "kind", "words"), BAD)
def test_an_illegal_call(framework: Framework, changed: dict[str, Any], kind: type[Exception], words: str) -> None:
    if words is None:  # the text is that of the op that computes it
        with pytest.raises(kind) as error:
            arrays = [framework.tensor(ONES, "float32")] * 3
            framework.package.neighborhood_attention(*arrays, **changed)
        words = str(error.value).removeprefix("neighborhood_attention: ")
    with pytest.raises(kind) as error:
        call(framework, **changed)
    assert str(error.value) == f"tiled: {words}"


@both
def test_one_file_for_two_arrays(framework: Framework, tmp_path: Path) -> None:
    for name in ("query", "out"):
        np.save(tmp_path / f"{name}.npy", ONES)
    written = (tmp_path / "query.npy").read_bytes()
    for changed, one, other, name in (
        ({"query": tmp_path / "query.npy", "out": tmp_path / "query.npy"}, "out", "query", "query.npy"),
        ({"query": tmp_path / "query.npy", "out": np.load(tmp_path / "query.npy", "r+")}, "out", "query", "query.npy"),
        ({"out": tmp_path / "out.npy", "lse": tmp_path / "out.npy"}, "lse", "out", "out.npy"),
    ):
        with pytest.raises(ValueError) as error:
            call(framework, **changed)
        assert str(error.value) == f"tiled: {one} and {other} must be different files; got {name!r} for both"
    assert (tmp_path / "query.npy").read_bytes() == written


@both
def test_a_file_that_was_cut_short(framework: Framework, tmp_path: Path) -> None:
    """Also after it was mapped, where reading the missing part would end the process."""
    np.save(tmp_path / "query.npy", ONES)
    query = np.load(tmp_path / "query.npy", mmap_mode="r")
    with (tmp_path / "query.npy").open("r+b") as file:
        file.truncate(500)
    with pytest.raises(ValueError) as error:
        call(framework, query=query)
    assert str(error.value) == "tiled: query is truncated: 'query.npy' ends before its array does"


def test_a_tensor_on_another_device() -> None:
    import torch
    from frameworks import MPS

    with pytest.raises(ValueError) as error:
        call(MPS, query=torch.ones(SHAPE, device="meta"))
    assert str(error.value) == "tiled: query must be on the CPU, where slabs are read from; got a tensor on meta"


def test_arrays_of_mlx_are_read_only() -> None:
    from frameworks import MLX

    with pytest.raises(ValueError) as error:
        call(MLX, out=MLX.tensor(OUT, "float32"))
    assert str(error.value) == "tiled: out must be writable; got a read-only array"
