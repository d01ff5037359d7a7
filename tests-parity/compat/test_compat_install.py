"""A module `natten` for clients that import it, the versions, and upstream's switches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import FRAMEWORKS, MPS, Framework

from natten_mps import compat

# --- versions ----------------------------------------------------------------------------------------

VERSIONS = {
    "0.14.1": "v0141",
    "0.14.4": "v0141",
    "0.14.5": "v0145",
    "0.14.6": "v014",
    "0.14": "v014",
    "v0.14": "v014",
    "0.15.0": "v015",
    "0.15.1": "v015",
    "0.17.0": "v017",
    "0.17.5": "v017",
    "0.17.5+torch260cu124": "v017",
    "0.17": "v017",
    "0.20.0": "v020",
    "0.20.1": "v020",
    "0.20": "v020",
    "0.21.0": "v020",
    "0.21.1": "v020",
    "0.21": "v021",
    "0.21.5": "v021",
    "0.21.7": "v021",
    "0.22.0": "v021",
}


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_for_version(framework: Framework) -> None:
    found = framework.module("compat")
    for version, generation in VERSIONS.items():
        assert found.for_version(version) is framework.module(f"compat.{generation}"), version
        assert getattr(found, generation) is framework.module(f"compat.{generation}")
    for version, words in (
        ("0.13.0", "the oldest version is 0.14.1"),
        ("0.13.9", "the oldest version is 0.14.1"),
        ("0.16.0", "0.16 was never released"),
        ("0.19", "0.19 was never released"),
        ("newest", "must be like '0.17.5'"),
        ("0", "must be like"),
        ("0.17.5.1", "must be like"),
    ):
        with pytest.raises(ValueError, match=words):
            found.for_version(version)
    with pytest.raises(TypeError, match="must be a string"):
        found.for_version(0.17)


def test_only_torch_clients_need_an_install() -> None:
    import natten_mlx.compat

    assert not hasattr(natten_mlx.compat, "install") and "no ``install``" in (natten_mlx.compat.__doc__ or "")


# --- switches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_switches_are_remembered(framework: Framework) -> None:
    natten = framework.module("compat.v021")
    context = natten.NattenContext
    context.reset()
    try:
        pairs = (
            ("use_kv_parallelism_in_fused_na", "is_kv_parallelism_in_fused_na_enabled", True),
            ("use_deterministic_algorithms", "are_deterministic_algorithms_enabled", False),
            ("use_fused_na", "is_fused_na_enabled", False),
            ("use_fna", "is_fna_enabled", False),
            ("use_tiled_na", "is_tiled_na_enabled", True),
            ("use_gemm_na", "is_gemm_na_enabled", True),
            ("use_tf32_in_gemm_na", "is_tf32_in_gemm_na_enabled", True),
        )
        for switch, question, first in pairs:
            assert getattr(natten, question)() is first, question
            for mode in (False, True, False):
                assert getattr(natten, switch)(mode) is None
                assert getattr(natten, question)() is mode, switch
        natten.use_fused_na(True, kv_parallel=True, use_flex_attention=False)
        assert natten.is_fna_enabled() and natten.is_kv_parallelism_in_fused_na_enabled()
        assert natten.is_memory_usage_default()
        for preference in ("strict", "unrestricted", "default"):
            natten.set_memory_usage_preference(preference)
            assert natten.get_memory_usage_preference().name.lower() == preference
            assert getattr(natten, f"is_memory_usage_{preference}")()
        with pytest.raises(ValueError, match="default, strict, unrestricted; got 'lots'"):
            natten.set_memory_usage_preference("lots")
        guards = [natten.is_flex_compile_allowed, natten.is_flex_compile_backprop_allowed]
        for call, wanted in (
            (lambda: natten.allow_flex_compile(), [True, False]),
            (lambda: natten.allow_flex_compile_backprop(), [True, True]),
            (lambda: natten.disable_flex_compile_backprop(), [True, False]),
            (lambda: natten.allow_flex_compile(True, True), [True, True]),
            (lambda: natten.disable_flex_compile(), [False, False]),
            (lambda: natten.allow_flex_compile_backprop(), [False, False]),
        ):
            call()
            assert [guard() for guard in guards] == wanted
        natten.use_autotuner(True, thorough_mode_backward=True)
        assert natten.is_autotuner_enabled() and natten.is_autotuner_enabled_for_forward()
        assert natten.is_autotuner_thorough_for_backward() and not natten.is_autotuner_enabled_for_backward()
        natten.disable_autotuner()
        assert not natten.is_autotuner_enabled() and not natten.is_autotuner_thorough_for_backward()
        assert (natten.enable_tf32(), natten.disable_gemm_na()) == (True, False)
        context.reset()
        assert all(getattr(natten, question)() is first for _, question, first in pairs)
    finally:
        context.reset()


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_what_is_said_to_be_available(framework: Framework) -> None:
    natten = framework.module("compat.v021")
    assert natten.HAS_LIBNATTEN is True
    assert natten.has_fused_na() and natten.has_fna() and natten.has_half() and natten.has_bfloat(0)
    assert not (natten.has_cuda() or natten.has_gemm() or natten.has_tf32_gemm() or natten.has_fp64_gemm())
    assert natten.get_configs_for_cutlass_fna(1, 2, 3) == natten.get_bwd_configs_for_cutlass_hopper_fmha(1) == []
    counter = Counter()
    assert natten.add_natten_handle(counter) is counter
    if framework is MPS:
        handle = counter.handles["prim::PythonOp.NATTEN2DQKRPBFunction"]
        query, logits = np.zeros((2, 3, 5, 7, 4)), np.zeros((2, 3, 5, 7, 9))
        assert handle([query, query, None], [logits]) == 2 * 3 * 5 * 7 * 9 * (4 + 1)


class Counter:
    """The part of fvcore's counter that adding a handle needs."""

    def __init__(self) -> None:
        self.handles: dict[str, Any] = {}

    def set_op_handle(self, **handles: Any) -> Counter:
        self.handles |= handles
        return self


# --- install -----------------------------------------------------------------------------------------

CLIENT = """
import importlib.metadata
import importlib.util

import torch

available = importlib.util.find_spec("natten") is not None
version = importlib.metadata.version("natten")
import natten
import natten.functional
from natten import NeighborhoodAttention2D
from natten.functional import {old}

assert available and natten.__version__ == version, version
assert importlib.util.find_spec("natten.functional") is natten.functional.__spec__
assert "natten" in importlib.metadata.packages_distributions()["natten"]
layer = NeighborhoodAttention2D({arguments})
x = torch.randn(1, 6, 7, 8, requires_grad=True)
layer(x).sum().backward()
assert x.grad is not None and x.grad.abs().sum() > 0
query = torch.randn(1, 2, 9, 4)
out = {call}
assert out.shape == {shape}
print(version, hasattr(natten, "context"))
"""


def run(folder: Path, code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    """A fresh Python, with ``folder`` and ``paths`` to import from."""
    known = os.pathsep.join(str(path) for path in (folder, *paths))
    environment = os.environ | {"PYTHONPATH": known, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("version", "printed", "client"),
    [
        (
            None,
            "0.21.7 True",
            {
                "old": "natten2dqkrpb, natten2dav, na1d_qk, na1d_av, na2d, neighborhood_attention_generic",
                "arguments": "8, 2, 3, 2, is_causal=True",
                "call": "na1d_av(na1d_qk(query, query, 3).softmax(-1), query, 3)",
                "shape": "(1, 2, 9, 4)",
            },
        ),
        (
            "0.14.4",
            "0.14.4 False",
            {
                "old": "natten1dqkrpb, natten1dav",
                "arguments": "8, 3, 2",
                "call": "natten1dav(natten1dqkrpb(query, query, torch.zeros(2, 5), 2).softmax(-1), query, 2)",
                "shape": "(1, 2, 9, 4)",
            },
        ),
        (
            "0.17.3",
            "0.17.3 True",
            {
                "old": "na1d, natten1dqk",
                "arguments": "8, 2, 3, rel_pos_bias=True",
                "call": "na1d(query.transpose(1, 2), query.transpose(1, 2), query.transpose(1, 2), 3, 2, True)",
                "shape": "(1, 9, 2, 4)",
            },
        ),
    ],
    ids=["newest", "0.14.4", "0.17.3"],
)
def test_a_client_runs(version: str | None, printed: str, client: dict[str, str], tmp_path: Path) -> None:
    """A client looks natten up by name, spec and version, and imports from it what that release had."""
    (tmp_path / "client.py").write_text(CLIENT.format(**client))
    done = run(tmp_path, f"import natten_mps.compat as c; c.install({version!r}); import client")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == printed


SUBMODULES = """
import natten_mps.compat
root = natten_mps.compat.install()
import natten
assert root is natten
from natten.context import NattenContext, use_fused_na
from natten.flops import add_natten_handle
from natten.modules import NeighborhoodAttention3D
from natten.na1d import NeighborhoodAttention1D
from natten.natten2d import NeighborhoodAttention2D, natten2dav, natten2dqkrpb
from natten.types import CausalArg3DTypeOrDed, CausalArgType, Dimension2DTypeOrDed, DimensionType
from natten.utils.varlen import generate_varlen_parameters
from natten.varlen import configure_varlen, neighborhood_attention_varlen
from natten.functional import natten2dqkrpb
from natten.flops import fna_flop_count
from natten.nested import na2d_av_nested
from natten.token_permute import token_permute_operation, token_unpermute
from natten.backends.fna import na2d_cutlass_fna
from natten.backends import get_configs_for_flex_fna
from natten_mps.compat import v021
assert natten.na1d is v021.na1d and natten.context.NattenContext is NattenContext
assert Dimension2DTypeOrDed == int | tuple[int, int] and CausalArgType == tuple[bool, ...]
try:
    import natten.profiler
except ModuleNotFoundError as error:
    assert "natten.profiler" in str(error)
else:
    raise AssertionError("natten.profiler was imported")
again = natten_mps.compat.install("0.20.1")
import importlib.metadata, importlib.util, sys
assert sys.modules["natten"] is again and importlib.metadata.version("natten") == "0.20.1"
assert "natten.natten2d" not in sys.modules and "natten.varlen" not in sys.modules
finders = len(sys.meta_path)
natten_mps.compat.uninstall()
assert len(sys.meta_path) == finders - 1
assert not [name for name in sys.modules if name.split(".")[0] == "natten"]
assert importlib.util.find_spec("natten") is None
try:
    importlib.metadata.version("natten")
except importlib.metadata.PackageNotFoundError:
    print("gone")
natten_mps.compat.uninstall()
"""


def test_submodules_and_uninstall(tmp_path: Path) -> None:
    done = run(tmp_path, SUBMODULES)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "gone"


INSTALL = "import natten_mps.compat as c; c.install()"


def refused(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert done.returncode == 1 and f"ImportError: natten_mps.compat.install: {words}" in done.stderr, done.stderr
    assert "uninstall it, or use natten_mps.compat.for_version(...) instead" in done.stderr


def test_refused_if_natten_itself_is_installed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "site"
    (elsewhere / "natten").mkdir(parents=True)
    source = elsewhere / "natten" / "__init__.py"
    source.write_text("__version__ = '0.21.6'\n")
    refused(run(tmp_path, INSTALL, elsewhere), f"natten is installed, in {source}; ")
    refused(run(tmp_path, f"import natten; {INSTALL}", elsewhere), f"natten is imported already, from {source}; ")


def test_refused_if_only_its_metadata_is_left(tmp_path: Path) -> None:
    (tmp_path / "natten-0.17.5.dist-info").mkdir()
    (tmp_path / "natten-0.17.5.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: natten\nVersion: 0.17.5\n"
    )
    refused(run(tmp_path, INSTALL), "natten 0.17.5 is installed; ")


def test_a_folder_of_that_name_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "natten").mkdir()
    (tmp_path / "natten" / "notes.txt").write_text("")
    done = run(tmp_path, f"{INSTALL}; import natten; print(natten.__version__)")
    assert done.returncode == 0 and done.stdout.strip() == "0.21.7", done.stderr


def test_a_bad_version_installs_nothing() -> None:
    for version, error in (("0.16.0", ValueError), (14, TypeError)):
        with pytest.raises(error):
            compat.install(version)  # type: ignore[arg-type]
    assert "natten" not in sys.modules


def test_importing_compat_imports_no_framework(tmp_path: Path) -> None:
    for package, framework in (("natten_mps", "torch"), ("natten_mlx", "mlx")):
        done = run(tmp_path, f"import sys, {package}.compat, {package}.extras; print({framework!r} in sys.modules)")
        assert done.stdout.strip() == "False", done.stderr


def test_dir_lists_the_parts_of_a_package() -> None:
    import natten_mlx
    import natten_mps

    for package in (natten_mps, natten_mlx):
        assert {"compat", "extras", "load_weights", "generate_varlen_parameters"} <= set(dir(package))
        assert package.compat.for_version("0.20").na1d and package.extras
    assert {"v014", "for_version", "install"} <= set(dir(natten_mps.compat))
