"""Which tracer records a call in a graph, and which cannot."""

import torch

from ._metal.problem import checks


def _for_onnx() -> bool:
    """Whether torch.onnx.export is running."""
    if not torch.onnx.is_in_onnx_export():
        return False
    # Its first attempt is traced in Python, its next one by Dynamo, which would evaluate the line above to False.
    torch.compiler.assume_constant_result(_for_onnx)
    return True


def recording(face: str) -> bool:
    """Whether torch.compile or torch.export records the call of ``face`` as one op of this package.

    NotImplementedError under a tracer that only knows torch's own operations.
    """
    exporting = torch.compiler.is_exporting()
    by_name = torch.jit.is_tracing()  # type: ignore[attr-defined]  # public, but not exported
    if by_name or (exporting and _for_onnx()):
        checks.reject_recorder(face)
    return exporting or torch.compiler.is_compiling()
