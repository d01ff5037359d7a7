"""Tracing the package's functions as plain torch operations."""

from contextlib import AbstractContextManager

from ._config import use_backend
from ._metal.plan.backend import DENSE


def export_mode() -> AbstractContextManager[None]:
    """``with export_mode(): ...`` - what is traced inside consists of plain torch operations, none of this package's.

    For tools that know torch's own operations: ``torch.jit.trace``, ``torch.onnx.export`` (of either kind), counters of
    operations. ``torch.export`` and ``torch.compile`` need it only if the program has to run without this package.

        with natten_mps.export_mode():
            traced = torch.jit.trace(model, x)

    The operations are those of the dense backend: every query against every key, in quadratic memory. The program takes
    the sizes that were traced, and any batch. A call that forces another backend keeps it. Like :func:`use_backend`, it
    holds for this thread or asyncio task.
    """
    return use_backend(DENSE.name)
