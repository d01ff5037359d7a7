"""Command line: ``natten-mlx COMMAND``, also ``python -m natten_mlx COMMAND``."""

from collections.abc import Sequence
from typing import Any

from ._metal.plan.backend import AUTO, FAST_METAL, NANOBIND, PURE
from ._metal.tools.cli import CommandLine
from ._metal.tools.installation import Framework

FRAMEWORK = Framework(
    "MLX",
    "mlx.core",
    "mlx",
    install={"": "pip install mlx", "linux": "pip install 'natten-mlx[cpu]'"},
    parts={"darwin": ("mlx-metal",), "linux": ("mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")},
)


def _tensors(arrays: Sequence[Any], backend: str | None) -> Sequence[Any]:
    import mlx.core as mx

    return [mx.array(array) for array in arrays]


def _numpy(tensor: Any) -> Any:
    import numpy as np

    return np.array(tensor)


main = CommandLine("natten-mlx", FRAMEWORK, (AUTO, NANOBIND.name, FAST_METAL.name, PURE.name), _tensors, _numpy).main
