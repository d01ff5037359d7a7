"""natten_mps before torch: whatever is asked for first finds torch, and with it the package's ops."""

from __future__ import annotations

import subprocess
import sys

# Children of one process that has imported the package alone: each asks for something else first.
FIRST = """
import os, sys, warnings
import natten_mps
assert "torch" not in sys.modules
warnings.simplefilter("ignore")
asked = [f"natten_mps.{names[0]}" for names in natten_mps._HOMES.values()]
asked += ["import natten_mps.support_matrix"]
for first in asked:
    child = os.fork()
    if not child:
        exec(first)
        import torch
        found = [hasattr(torch.ops.natten_mps, name) for name in (OPS)]
        os._exit(0 if found and all(found) else 3)
    assert os.waitpid(child, 0)[1] == 0, first
print(len(asked))
"""


def test_whatever_is_asked_for_first_works() -> None:
    import torch

    import natten_mps._ops  # noqa: F401 - registers what is looked for

    ops = [
        str(name).split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("natten_mps::")
    ]
    assert len(ops) > 2
    script = FIRST.replace("(OPS)", repr(sorted({op.split(".")[0] for op in ops})))
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) > 6
