"""natten_mps before torch: whichever name is used first imports torch, and with it the package's ops."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from frameworks import MPS

import natten_mps
import natten_mps._ops

# Children of one process that has imported only the package; each uses something else first.
FIRST = """
import os, sys, warnings
import natten_mps
assert "torch" not in sys.modules
warnings.simplefilter("ignore")
asked = [f"natten_mps.{names[0]}" for names in natten_mps._NAMES.homes.values()]
asked += [f"import natten_mps.{module}" for module in MODULES]
def child_of(): pass
for first in asked:
    child = os.fork()
    if not child:
        exec(first)
        import torch
        found = [hasattr(torch.ops.natten_mps, name) for name in (OPS)]
        modules = [module for name, module in sys.modules.items() if name.startswith("natten_mps.")]
        functions = [each for module in modules for each in vars(module).values() if type(each) is type(child_of)]
        ours = [each for each in functions if str(each.__module__).startswith("natten_mps.")]
        once = [getattr(each, "__wrapped__", each).__globals__ is vars(sys.modules[each.__module__]) for each in ours]
        os._exit(0 if found and all(found) and once and all(once) else 3)
    assert os.waitpid(child, 0)[1] == 0, first
print(len(asked))
"""


EVERY = sorted(p.stem for p in Path(MPS.package.__path__[-1]).glob("*.py") if not p.stem.startswith("__"))


@pytest.mark.parametrize(
    "modules", [["_config", "_ops", "support_matrix"], pytest.param(EVERY, marks=pytest.mark.all)], ids=["some", "all"]
)
def test_whatever_is_used_first_works(modules: list[str]) -> None:
    """Public names, and modules: the ops are registered, and every module is executed once."""
    assert set(modules) <= set(EVERY)
    ops = [
        str(name).split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("natten_mps::")
    ]
    assert len(ops) > 2
    script = FIRST.replace("(OPS)", repr(sorted({op.split(".")[0] for op in ops}))).replace("MODULES", repr(modules))
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=900)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) == len(natten_mps._NAMES.homes) + len(modules)
