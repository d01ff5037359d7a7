"""Programs saved by torch.export in one process run in another, which has imported the package but called nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from frameworks import MPS
from processes import in_a_process
from torch import Tensor, nn

X = torch.linspace(-1, 1, 144).view(2, 9, 2, 4)


class Calls(nn.Module):
    """An op of every kind that a program may name."""

    def forward(self, x: Tensor) -> list[Tensor]:
        package = MPS.package
        weights = package.na1d_qk(x, x * 2, 3).softmax(-1)
        return [
            package.na1d(x, x * 2, x + 1, 3),
            package.attention(x, x * 2, x + 1),
            package.na1d_av(weights, x, 3),
            package.na1d_varlen(x, x * 2, x + 1, [9, 5], 3),
        ]


# Which of the two is imported first; and a search for torch before it is imported, as some libraries do.
IMPORTS = {
    "package first": "import natten_mps\nimport torch",
    "torch first": "import torch\nimport natten_mps",
    "searched first": "import natten_mps, importlib.util\nassert importlib.util.find_spec('torch')\nimport torch",
}
# Prints what existed before the program ran, and the sums of its results.
LOAD = """
import json, sys
called = "natten_mps.functional" in sys.modules
x = torch.linspace(-1, 1, 144).view(2, 9, 2, 4)
program = {load}
found = program(x)
print(json.dumps([called, [part.sum().item() for part in found], [part.abs().sum().item() for part in found]]))
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("saved") / "program.pt2"
    torch.export.save(torch.export.export(Calls(), (X,)), file)
    return file


@pytest.mark.parametrize("imports", IMPORTS)
def test_a_saved_program(imports: str, program: Path) -> None:
    load = f"torch.export.load({str(program)!r}).module()"
    done = in_a_process(IMPORTS[imports] + LOAD.format(load=load))
    assert done.returncode == 0, done.stderr
    called, *sums = json.loads(done.stdout)
    wanted = Calls()(X)
    assert not called, "importing the package imports no more than its ops"
    for found, of in zip(sums, ([w.sum() for w in wanted], [w.abs().sum() for w in wanted]), strict=True):
        torch.testing.assert_close(torch.tensor(found), torch.stack(of).detach(), rtol=1e-5, atol=1e-5)
    assert all(sums[1])


def test_importing_the_package_alone_imports_no_torch() -> None:
    """It waits for an import of torch, then for one of torch's counter of operations, and for nothing after that."""
    waiting = "print('torch' in sys.modules, [type(f).__name__ for f in sys.meta_path if 'with_torch' in repr(f)])"
    imports = ("sys, natten_mps", "torch", "torch.utils.flop_counter")
    done = in_a_process("\n".join(f"import {name}\n{waiting}" for name in imports))
    assert done.stdout == "False ['_Torch']\nTrue ['_After']\nTrue []\n", done.stderr


def test_an_import_of_torch_that_fails_may_be_tried_again() -> None:
    done = in_a_process(
        """
import sys, types, natten_mps
sys.modules["torch._C"] = types.ModuleType("torch._C")  # has nothing that torch needs
try:
    import torch
except (AttributeError, ImportError):  # torch's own error
    print("torch" in sys.modules, "natten_mps._ops" in sys.modules)
for name in [name for name in sys.modules if name.partition(".")[0] == "torch"]:
    del sys.modules[name]
import torch
print(torch.ops.natten_mps.na_forward.default)
"""
    )
    # Torch 2.15 refuses to be imported again in the same process.
    refused = "`torch` can only be initialized once per process" in done.stderr
    found = "" if refused else "natten_mps.na_forward.default\n"
    assert done.stdout == f"False False\n{found}", done.stderr
