"""Tracing the package's functions as plain torch operations."""

from contextlib import AbstractContextManager

import torch

from ._config import use_backend


def export_mode() -> AbstractContextManager[None]:
    """``with export_mode(): ...`` - what is traced within holds plain torch operations only, none of this package's.

    For tools that know torch's own operations: ``torch.jit.trace``, ``torch.onnx.export`` (of either kind), counters of
    operations. ``torch.export`` and ``torch.compile`` need it only where the program is to run without this package.

        with natten_mps.export_mode():
            traced = torch.jit.trace(model, x)

    The operations are those of the dense path: every query against every key, quadratic memory, for the sizes that are
    traced, and any batch. A call that forces another backend keeps it. Holds for this thread or asyncio task, as
    :func:`use_backend`.
    """
    return use_backend("dense")


def _for_onnx() -> bool:
    """Whether torch.onnx.export is at work."""
    if not torch.onnx.is_in_onnx_export():
        return False
    # Its first try is traced by Python, its next by Dynamo, which would take the line above for False.
    torch.compiler.assume_constant_result(_for_onnx)
    return True


def recording(face: str) -> bool:
    """Whether torch.compile or torch.export records the call of ``face``, as one op of this package's.

    NotImplementedError where something records that knows torch's own operations alone.
    """
    recorded = torch.compiler.is_compiling() or torch.compiler.is_exporting()
    by_name = torch.jit.is_tracing()  # type: ignore[attr-defined]  # public, and in no list of exports
    if by_name or (torch.compiler.is_exporting() and _for_onnx()):
        raise NotImplementedError(
            f"{face}: torch.jit.trace and torch.onnx.export cannot record this package's ops; call them inside of "
            "`with natten_mps.export_mode():`, which makes these ops plain operations"
        )
    return recorded
