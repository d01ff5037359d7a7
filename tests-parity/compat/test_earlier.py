"""Code that was written for natten-mps and natten-mlx 0.3: its imports, its environment, its helpers."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from frameworks import FRAMEWORKS, MLX, MPS, Framework
from processes import LIMIT, python

# Names of 0.3 by module; those of the top level are in the documentation of both packages.
NAMES = {
    "nn": "NeighborhoodAttention1D NeighborhoodAttention2D NeighborhoodAttention3D",
    "merge": "merge_attentions",
    "support_matrix": "get_support_matrix",
    "version": "__version__",
    "utils": "normalize_tuple_param normalize_kernel_size check_kernel_size_vs_input check_stride_vs_kernel "
    "check_dilation_kernel_vs_input get_window_start get_window_end get_pb_start",
    "utils.params": "normalize_tuple_param normalize_kernel_size check_kernel_size_vs_input check_stride_vs_kernel "
    "check_dilation_kernel_vs_input",
    "utils.window": "get_window_start get_window_end get_pb_start",
    "functional": "na1d na2d na3d na1d_qk na2d_qk na3d_qk na1d_av na2d_av na3d_av na1d_varlen na2d_varlen na3d_varlen",
    "extras.allin1": "na1d_qk_rpb na1d_av_fused na2d_qk_rpb na2d_av_fused",
    "extras.allin1.functional": "natten1dqkrpb natten1dav natten2dqkrpb natten2dav",
    "compat": "for_version",
}
MORE = {
    "mps": {"utils": "get_window_start_vectorized get_pb_start_vectorized"},
    "mlx": {"utils": "compute_window_start_end compute_pb_start"},
}


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_module_and_name(framework: Framework) -> None:
    """Imports as in such code; modules that have moved warn once."""
    package = framework.package_name
    for module, names in [*NAMES.items(), *MORE[framework.name].items()]:
        found = importlib.import_module(f"{package}.{module}")
        for name in names.split():
            exec(f"from {package}.{module} import {name}")
            assert getattr(found, name) is not None
    for moved in ("nn", "merge", "support_matrix", "utils"):
        sys.modules.pop(f"{package}.{moved}")
        with pytest.warns(DeprecationWarning, match=rf"^{package}.{moved} is a module of 0.3; (import|copy) "):
            importlib.import_module(f"{package}.{moved}")
    with pytest.raises(AttributeError, match=r"functional' has no attribute 'na4d'"):
        _ = framework.module("functional").na4d


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_a_package_gives_its_module(framework: Framework) -> None:
    """``from package import module``, where nothing else has imported the module."""
    modules = [f"{framework.package_name}.{module}" for module in (*NAMES, *MORE[framework.name])]
    lines = ["import sys"]
    for package, _, name in (module.rpartition(".") for module in modules):
        lines += [
            f"from {package} import {name}",
            f"print({name} is sys.modules['{package}.{name}'], '{package}.{name}')",
        ]
    done = python("\n".join(lines))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"True {module}" for module in modules]


# Tokens on axes of 9, 11 and 13 with windows of 3, 3 and 5 and dilations of 1, 2 and 2: the window's first token, its
# last, and the first rpb entry, counted by hand.
WINDOWS = (
    (9, 3, 1, [0, 0, 1, 2, 3, 4, 5, 6, 6], [2, 2, 3, 4, 5, 6, 7, 8, 8], [2, 1, 1, 1, 1, 1, 1, 1, 0]),
    (
        11,
        3,
        2,
        [0, 1, 0, 1, 2, 3, 4, 5, 6, 5, 6],
        [4, 5, 4, 5, 6, 7, 8, 9, 10, 9, 10],
        [2, 2, 1, 1, 1, 1, 1, 1, 1, 0, 0],
    ),
    (
        13,
        5,
        2,
        [0, 1, 0, 1, 0, 1, 2, 3, 4, 3, 4, 3, 4],
        [8, 9, 8, 9, 8, 9, 10, 11, 12, 11, 12, 11, 12],
        [4, 4, 3, 3, 2, 2, 2, 2, 2, 1, 1, 0, 0],
    ),
)


@pytest.mark.parametrize(("length", "w", "d", "start", "last", "entry"), WINDOWS)
def test_windows(length: int, w: int, d: int, start: list[int], last: list[int], entry: list[int]) -> None:
    """natten-mps returns the window's last token, natten-mlx the one after it, each as in 0.3."""
    import torch

    ours, theirs = MPS.module("utils.window"), MLX.module("utils.window")
    tokens = range(length)
    assert [ours.get_window_start(i, length, w, d) for i in tokens] == start
    assert [ours.get_window_end(i, length, w, d) for i in tokens] == last
    assert [ours.get_pb_start(i, length, w, d) for i in tokens] == entry
    every = torch.arange(length)
    assert ours.get_window_start_vectorized(every, length, w, d).tolist() == start
    assert ours.get_pb_start_vectorized(every, length, w, d).tolist() == entry
    ends = [min(first + w * d, length) for first in start]
    assert [theirs.get_window_start(i, length, w, w // 2, d) for i in tokens] == start
    assert [theirs.get_window_end(first, length, w, d) for first in start] == ends
    assert [theirs.get_pb_start(i, length, w, w // 2, d) for i in tokens] == entry
    found = theirs.compute_window_start_end(np.arange(length), length, w, d)
    assert [part.tolist() for part in found] == [start, ends]
    assert theirs.compute_pb_start(np.arange(length), length, w, d).tolist() == entry


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_parameters(framework: Framework) -> None:
    params = framework.module("utils.params")
    assert params.normalize_kernel_size(3, 2) == params.normalize_kernel_size((3, 3), 2) == (3, 3)
    assert params.normalize_tuple_param(2, 3, "stride") == (2, 2, 2)
    assert params.normalize_tuple_param((True, False), 2, "is_causal") == (True, False)
    for check, given, words in (
        (params.check_kernel_size_vs_input, ((3, 9), (5, 8)), r"axis 1 has 9 \* 1 = 9 > 8"),
        (params.check_stride_vs_kernel, ((4,), (3,)), "axis 0 has 4 > 3"),
        (params.check_dilation_kernel_vs_input, ((2,), (3,), (5,)), r"axis 0 has 3 \* 2 = 6 > 5"),
    ):
        with pytest.raises(ValueError, match=f"^{check.__name__}: .*{words}"):
            check(*given)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("rank", [1, 2])
def test_the_split_ops_of_allin1(framework: Framework, rank: int) -> None:
    """Unscaled; natten-mps's are heads-last, natten-mlx's heads-first."""
    random, shape = np.random.default_rng(rank), (9, 8)[:rank]
    arrays = [random.standard_normal((1, *shape, 2, 4)) for _ in range(3)]
    bias = random.standard_normal((2, *(5,) * rank))
    query, key, value, rpb = (framework.tensor(array) for array in (*arrays, bias))
    qk, av = (framework.face(f"na{rank}d_{op}") for op in ("qk", "av"))
    wanted = qk(query, key, 3, 1, scale=1.0, rpb=rpb)
    functional = framework.module("extras.allin1.functional")
    old_qk, old_av = (getattr(functional, f"natten{rank}d{op}") for op in ("qkrpb", "av"))
    first = framework is MLX

    def laid(tensor: Any, back: bool = False) -> Any:
        import mlx.core as mx

        return tensor if not first else mx.moveaxis(tensor, *((1, -2) if back else (-2, 1)))

    found = laid(old_qk(laid(query), laid(key), rpb, 3, 1), back=True)
    np.testing.assert_allclose(framework.numpy(found), framework.numpy(wanted), rtol=0, atol=1e-12)
    out = laid(old_av(laid(wanted), laid(value), 3, 1), back=True)
    np.testing.assert_allclose(framework.numpy(out), framework.numpy(av(wanted, value, 3, 1)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_merging_by_the_earlier_name(framework: Framework) -> None:
    out, lse = (framework.tensor(np.ones(shape)) for shape in ((1, 7, 2, 4), (1, 7, 2)))
    merge = framework.package.merge_attentions
    for a, b in zip(merge([out] * 2, [lse] * 2), merge(outputs=[out] * 2, lse_tensors=[lse] * 2), strict=True):
        assert np.array_equal(framework.numpy(a), framework.numpy(b))
    with pytest.raises(TypeError, match=r"^merge_attentions: lses must be a list of tensors; got None$"):
        merge([out])


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_a_version_that_was_never_released(framework: Framework, caplog: pytest.LogCaptureFixture) -> None:
    framework.module("_metal.plan.backends").logged.clear()
    with caplog.at_level(logging.WARNING, "natten"):
        for _ in range(2):
            assert framework.module("compat").for_version("0.14.0") is framework.module("compat.v014")
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["for_version"]


@pytest.mark.parametrize("word", ["metal", "mlx"])
def test_a_backend_that_a_client_sets(word: str) -> None:
    """all-in-one-mlx sets these in the environment of every process, so they must work without Metal."""
    code = (
        "import mlx.core as mx; mx.set_default_device(mx.cpu); import natten_mlx\n"
        "q = mx.ones((1, 7, 2, 4)); mx.eval(natten_mlx.na1d(q, q, q, 3)); print(natten_mlx.get_backend())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"NATTEN_MLX_BACKEND": word},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    assert done.stdout == "auto\n"
    assert done.stderr.count(f"NATTEN_MLX_BACKEND={word} is a word of natten-mlx 0.3's clients, read as 'auto'") == 1
