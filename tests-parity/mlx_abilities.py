"""What releases of MLX before the pinned one lack, for the tests that `./dev.sh mlx VERSION` runs on them."""

from __future__ import annotations

import mlx.core as mx
import pytest

RELEASE = f"MLX {mx.__version__}"


def _maps_padding() -> bool:
    try:
        mx.vmap(lambda x: mx.pad(x, (0, 1)))(mx.zeros((1, 1), stream=mx.cpu))
    except RuntimeError:
        return False
    return True


def makes_kernels() -> bool:
    """Whether ``mx.fast.metal_kernel`` makes a kernel that is never launched, on this machine."""
    try:
        mx.fast.metal_kernel(name="made", input_names=["x"], output_names=["out"], source="out[0] = x[0];")
    except RuntimeError:
        return False
    return True


# 0.31.2 brought both.
needs_mapped_padding = pytest.mark.skipif(not _maps_padding(), reason=f"{RELEASE}: mx.vmap does not map mx.pad")
needs_thread_local_streams = pytest.mark.skipif(
    not hasattr(mx, "new_thread_local_stream"), reason=f"{RELEASE} has no streams of one thread"
)
needs_strict_threads = pytest.mark.skipif(
    mx.__version__.startswith("0.31."), reason=f"{RELEASE} evaluates what another thread's stream computes"
)
