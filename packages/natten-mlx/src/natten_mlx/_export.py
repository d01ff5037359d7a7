"""Functions with neighborhood attention in them, written to a file by MLX."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ._autodiff import as_plain_operations
from ._config import get_backend, use_backend
from ._metal.plan.backend import DENSE, PURE
from ._metal.problem import checks


def export_function(
    file: Any, function: Callable[..., Any], /, *arguments: Any, shapeless: bool = False, **named: Any
) -> None:
    """``mx.export_function`` for functions that call this package; ``mx.import_function`` reads the file.

    A file can hold only MLX's own operations, neither the C++ extension's primitives nor custom derivatives:
    ``mx.export_function`` itself raises ``Unable to serialize primitive ...`` for them. Here the ops are traced as the
    pure backend's plain operations (the dense backend's under ``use_backend("dense")``), so the file needs only MLX.

    Args:
        file, function, arguments, named: as ``mx.export_function`` takes them. ``function`` may contain ``mx.grad``;
            that gradient is then MLX's own derivative of the pure backend: equal up to rounding, but it keeps every
            query's weights, O(N * prod(kernel_size)) memory, and has no fixed order of sums on a GPU.
        shapeless: must be False, because an op is traced for one size.

    Raises:
        NotImplementedError: shapeless. ValueError, MLX's own: the function cannot be written, because a call in it
            forces a backend with kernels of its own, or for another reason.
    """
    if checks.flag("export_function", "shapeless", shapeless):
        checks.reject_shapeless()
    backend = DENSE.name if get_backend() == DENSE.name else PURE.name
    with use_backend(backend), as_plain_operations():
        mx.export_function(file, function, *arguments, **named)
