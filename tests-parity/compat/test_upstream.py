"""The plugin with which `./dev.sh upstream` runs NATTEN's own tests, tried on tests that are written like those."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import LIMIT

PLUGIN = Path(__file__).parents[2] / "tests-upstream"

TWENTY_ONE = """
import unittest

import natten
import torch
from natten._environment import _NUM_RAND_SWEEP_TESTS, HAS_LIBNATTEN
from natten.backends.configs.cutlass import get_all_backward_configs, get_all_forward_configs
from natten.backends.configs.cutlass_hopper import get_all_fmha_forward_configs
from natten.utils import log
from natten.utils.testing import skip_if_libnatten_is_not_supported, skip_if_not_running_extended_tests

from .utils import CUDA


class Tests(unittest.TestCase):
    @skip_if_libnatten_is_not_supported()
    def test_runs(self):
        torch.set_default_device(CUDA)
        query = torch.randn((1, 9, 2, 8), device=CUDA, dtype=torch.float16, requires_grad=True)
        assert query.is_cuda and query.device.type == "cpu" and torch.zeros(1).to(torch.device("cuda:0")).is_cuda
        (tiles,), (backward,) = get_all_forward_configs(query), get_all_backward_configs(query, (1,))
        ((sizes, schedule),) = get_all_fmha_forward_configs(query)
        out = natten.na1d(query, query, query, 3, q_tile_shape=tiles[0], backward_kv_splits=backward[2])
        out.sum().backward()
        torch.cuda.synchronize()
        assert query.grad is not None and natten.__version__ == "0.21.6"

    @skip_if_not_running_extended_tests()
    def test_long(self):
        raise AssertionError("extended tests were not requested")

    def test_determinism_off(self):
        raise AssertionError("a test that is left out was run")

    def test_fails(self):
        raise AssertionError("on purpose")
"""
SEVENTEEN = """
import unittest

import torch
from natten import has_gemm, use_kv_parallelism_in_fused_na
from natten.functional import na1d_qk
from natten.utils import check_all_args
from natten.utils.testing import skip_if_gemm_is_not_supported
from torch.autograd import forward_ad


class Tests(unittest.TestCase):
    def test_runs(self):
        assert not has_gemm()
        with forward_ad.dual_level():
            forward_ad.make_dual(torch.randn(3), torch.randn(3)).softmax(0)
        query = torch.randn((1, 2, 9, 4)).cuda()
        assert na1d_qk(query, query, *check_all_args(1, 3, None, None)[:2]).shape == (1, 2, 9, 3)

    @skip_if_gemm_is_not_supported()
    def test_gemm(self):
        raise AssertionError("there are no such kernels")
"""


@pytest.mark.parametrize(
    ("release", "text", "counts"),
    [
        pytest.param("0.21.6", TWENTY_ONE, ["1", "1", "0", "2"], id="0.21.6"),
        pytest.param("0.17.5", SEVENTEEN, ["1", "0", "0", "1"], id="0.17.5", marks=pytest.mark.all),
    ],
)
def test_a_test_of_a_release(release: str, text: str, counts: list[str], tmp_path: Path) -> None:
    """It runs on a CPU, decorators and the list of exceptions leave out what they should, and failures are failures."""
    tests, results = tmp_path / "tests", tmp_path / "results.tsv"
    tests.mkdir()
    (tests / "__init__.py").touch()
    (tests / "utils.py").write_text('CUDA = "cuda"\n')
    (tests / "test_it.py").write_text(text)
    environment = os.environ | {
        "NATTEN_UPSTREAM_VERSION": release,
        "NATTEN_UPSTREAM_RESULTS": str(results),
        "PYTHONPATH": str(PLUGIN),
        "OMP_NUM_THREADS": "1",
    }
    options = ["-p", "natten_upstream", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(tmp_path), "-rs"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tests)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        cwd=tmp_path,
    )
    assert results.read_text().split("\t")[:5] == [release, *counts], done.stdout + done.stderr
    assert done.returncode == int(counts[1] != "0")
    if release == "0.21.6":
        assert "not deterministic" in done.stdout and "NATTEN_RUN_EXTENDED_TESTS" in done.stdout


def test_the_command_is_listed() -> None:
    done = subprocess.run(["bash", "dev.sh", "--help"], cwd=PLUGIN.parent, capture_output=True, text=True, check=True)
    assert "upstream [VERSION...] [pytest args]" in done.stdout and "upstream signatures" in done.stdout
