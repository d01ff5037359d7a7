"""Which of NATTEN's own tests cannot pass on natten-mps, and why. The patterns are pytest's node ids."""

from __future__ import annotations

import fnmatch

CUDA_ONLY = "calls one CUDA kernel by its private name"
NON_DETERMINISTIC = "expects an error, or another result, from kernels that are not deterministic; here all are"
OWN_LOG = "is about NATTEN's own log lines"
FP8 = "8-bit floats: no op here takes them"
EXPECTED = "is expected to fail, because NATTEN's own "
OWN_SWITCHES = "expects switches to be refused where NATTEN's kernels cannot do both; here they change nothing"

# For every release, or for those that start with the key.
LEFT_OUT: dict[str, dict[str, str]] = {
    "": {
        "*test_compute_delta*": CUDA_ONLY,
        "*test_log.py*": OWN_LOG,
        "*fp8*": FP8,
        "*e4m3*": FP8,
        "*e5m2*": FP8,
        "*determinism*": NON_DETERMINISTIC,
        "*non_deterministic*": NON_DETERMINISTIC,
        "*test_varlen_recompile*": "counts CUDA kernels by their names in a profile",
        "*permute_kernel_cuda*": "compares a CUDA kernel with the function that runs here",
    },
    "0.17": {
        "*test_context.py*test_fail*": OWN_SWITCHES,
        "*test_context.py*test_warn_skip*": OWN_SWITCHES,
        "*test_torch_flops_unfused*": EXPECTED + "unfused ops are not counted",
        "*test_torch_flops_fna*": "counts the whole window on a causal axis, of which a part is computed",
        "*test_torch_compile_[012]": EXPECTED + "ops do not compile, except the experimental ones",
    },
}


def reason_for(version: str, node: str) -> str | None:
    """Why a test of a release is left out, or None."""
    for release, patterns in LEFT_OUT.items():
        if version.startswith(release):
            for pattern, why in patterns.items():
                if fnmatch.fnmatchcase(node, pattern):
                    return why
    return None
